"""Small annotation files, one per data set, with the quirks that the real ones have."""

import io
import json

import numpy as np
from PIL import Image

from clipvis_jax.data.raw import RawDataset
from clipvis_jax.masks.resize import encode_rle

HEIGHT, WIDTH = 6, 8
SIZE = [HEIGHT, WIDTH]
SQUARE = [1.0, 1, 5, 1, 5, 4, 1, 4]


def box_mask(top=1, left=2, height=3, width=4, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def compressed(mask=None):
    return encode_rle(box_mask() if mask is None else mask)


def uncompressed(mask=None):
    flat = (box_mask() if mask is None else mask).ravel(order="F").astype(int)
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0])), append=flat.size).tolist()
    return {"size": SIZE, "counts": runs if not flat[0] else [0, *runs]}


def image_bytes(seed, height=HEIGHT, width=WIDTH, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def youtube_vis():
    """Three encodings in one track, Windows prefixes, ids with gaps and out of order, null frames, crowd, extras."""
    return {
        "info": {"description": "é"},
        "licenses": [],
        "videos": [
            {"id": 7, "height": HEIGHT, "width": WIDTH, "length": 3, "file_names": [f"b/{t}.jpg" for t in range(3)]}
            | {"license": 1, "coco_url": "", "flickr_url": None, "date_captured": "x"},
            {
                "id": 2,
                "height": HEIGHT,
                "width": WIDTH,
                "file_names": [f"D:\\lv\\JPEGImages\\a\\{t}.jpg" for t in (0, 1)],
            },
        ],
        "categories": [
            {"id": 30, "name": "naïve fox", "supercategory": "animal", "partition": 2},
            {"id": 4, "name": "person", "partition": 0},
        ],
        "annotations": [
            {
                "id": 1,
                "video_id": 7,
                "category_id": 30,
                "iscrowd": 0,
                "segmentations": [[SQUARE, [1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7]], uncompressed(), compressed()],
                "bboxes": [[1, 1, 4, 3], None, [2, 1.5, 4, 3]],
                "areas": [12, None, 12.5],
                "occlusion": ["slight"] * 3,
            },
            {
                "id": 5,
                "video_id": 2,
                "category_id": 4,
                "iscrowd": 1,
                "height": HEIGHT,
                "width": WIDTH,
                "length": 2,
                "segmentations": [None, compressed()],
                "bboxes": [None, [2, 1, 4, 3]],
                "areas": [None, 12],
            },
            {"id": 3, "video_id": 7, "category_id": 4, "segmentations": [[], [[1, 1, 2, 2]], None]},
        ],
    }


def lvis():
    """No ``file_name``, no ``iscrowd``, annotations before images, a rare class."""
    classes = (("fox", "f"), ("yo-yo", "c"), ("apple", "r"))
    return {
        "info": {},
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 1, 4, 3], "area": 12.0, "segmentation": [SQUARE]},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [1, 1, 4, 3], "area": 12, "segmentation": [SQUARE] * 2},
            {"id": 3, "image_id": 4, "category_id": 3, "bbox": [0, 0, 1, 1], "area": 1.5, "segmentation": [SQUARE]},
        ],
        "images": [
            {
                "id": i,
                "height": HEIGHT,
                "width": WIDTH,
                "coco_url": f"http://images.cocodataset.org/{split}2017/{i}.jpg",
            }
            | {"neg_category_ids": [2], "not_exhaustive_category_ids": [3, 1], "license": 1}
            for i, split in ((9, "train"), (4, "val"))
        ],
        "categories": [
            {"id": i, "name": name, "synonyms": [name, f"a {name}"], "frequency": frequency, "synset": f"{name}.n.01"}
            for i, (name, frequency) in enumerate(classes, 1)
        ],
    }


def coco():
    """Gaps in the ids, uncompressed run lengths for a crowd, an annotation without a usable polygon."""
    return {
        "images": [
            {"id": 12, "height": HEIGHT, "width": WIDTH, "file_name": "12.jpg", "coco_url": "http://x/y/other.jpg"},
            {"id": 3, "height": HEIGHT, "width": WIDTH, "file_name": "3.jpg"},
        ],
        "annotations": [
            {"id": 1768, "image_id": 12, "category_id": 90, "bbox": [1, 1, 4, 3], "area": 12.25, "iscrowd": 0}
            | {"segmentation": [SQUARE]},
            {"id": 900, "image_id": 12, "category_id": 1, "bbox": [2, 1, 4, 3], "area": 12, "iscrowd": 1}
            | {"segmentation": uncompressed()},
            {"id": 901, "image_id": 3, "category_id": 1, "segmentation": [[1, 1, 2, 2]]},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person", "supercategory": "person"}],
    }


def burst():
    """Tracks as objects by frame, counts without a size, frames that are not annotated."""
    counts = compressed()["counts"]
    return {
        "split": "val",
        "categories": [
            {"id": 1057, "name": "skateboard", "synset": "s", "def": "d", "synonyms": ["skateboard"]},
            {"id": 805, "name": "person", "synonyms": ["person", "man"], "frequency": "f", "merged": []},
        ],
        "sequences": [
            {
                "id": 1,
                "seq_name": "v_1",
                "dataset": "YFCC100M",
                "width": WIDTH,
                "height": HEIGHT,
                "fps": 30,
                "all_image_paths": ["f1.jpg", "f2.jpg", "f3.jpg"],
                "annotated_image_paths": ["f1.jpg", "f3.jpg"],
                "neg_category_ids": [1],
                "not_exhaustive_category_ids": [805],
                "track_category_ids": {"1": 805, "4": 1057},
                "segmentations": [
                    {"1": {"rle": counts, "is_gt": True, "score": 1.0}},
                    {"4": {"rle": counts, "is_gt": True}, "1": {"rle": counts}},
                ],
            },
            {
                "id": 0,
                "seq_name": "v_0",
                "dataset": "LaSOT",
                "width": WIDTH,
                "height": HEIGHT,
                "annotated_image_paths": ["0.jpg"],
                "track_category_ids": {"2": 805},
                "segmentations": [{"2": {"rle": counts}}],
            },
        ],
    }


def burst_converted():
    """The same as the authors' conversion writes it: ids of annotations from 0, no ``iscrowd``, no ``areas``."""
    mask = compressed()
    return {
        "images": [{"id": 1, "file_name": "x.jpg"}],
        "videos": [
            {"id": 0, "height": HEIGHT, "width": WIDTH, "length": 1, "file_names": ["LaSOT/v_0/0.jpg"]},
            {"id": 1, "height": HEIGHT, "width": WIDTH, "length": 2}
            | {"file_names": ["YFCC100M/v_1/f1.jpg", "YFCC100M/v_1/f3.jpg"]},
        ],
        "categories": [
            {"id": 1, "name": "person", "frequency": "f", "split": "common"},
            {"id": 2, "name": "skateboard", "frequency": "c", "split": "uncommon"},
        ],
        "annotations": [
            {"id": 0, "video_id": 0, "category_id": 1, "segmentations": [mask], "bboxes": [[2, 1, 4, 3]]},
            {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [mask, mask]},
            {"id": 2, "video_id": 1, "category_id": 2, "segmentations": [None, mask]},
        ],
        "cate_ori": [],
        "track_id_mapping": {"1": {"2": 0}},
    }


FILES = {
    "youtube_vis": youtube_vis,
    "lvis": lvis,
    "coco": coco,
    "burst": burst,
    "burst_converted": burst_converted,
}


def write_dataset(folder, content, frames=True):
    """Write an annotation file and its images; return the file and the image folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path, images = folder / "annotations.json", folder / "images"
    # Half a character becomes an escape, as it stands in a JSON file.
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")
    images.mkdir(exist_ok=True)
    if frames:
        for seed, name in enumerate(name for video in RawDataset(path, images) for name in video.file_names):
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).write_bytes(image_bytes(seed))
    return path, images
