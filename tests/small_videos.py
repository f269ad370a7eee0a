"""A small video data set on disk, in YouTube-VIS format, and the tiny model's own results as its ground truth."""

import json

import numpy as np
from PIL import Image
from tiny import clip_frames

from clipvis_jax.masks.resize import encode_rle

CATEGORIES = [
    {"id": 3, "name": "cat", "partition": 0},
    {"id": 5, "name": "dog", "partition": 2},
    {"id": 9, "name": "bird", "partition": 1},
]


def write_videos(folder, *, lengths=(5, 3, 4)):
    """Write videos of two sizes with moving squares as instances; returns the annotation file."""
    videos, annotations = [], []
    for index, length in enumerate(lengths):
        frames = [frame[: 96 - 32 * (index % 2)] for frame in clip_frames()[:length]]
        height, width = frames[0].shape[:2]
        names = [f"v{index}/{t:05d}.png" for t in range(length)]
        for name, frame in zip(names, frames, strict=True):
            path = folder / "JPEGImages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
        videos.append({"id": 10 + index, "height": height, "width": width, "length": length, "file_names": names})
        for number, category in enumerate(CATEGORIES[: 1 + index % 3]):
            masks = [np.zeros((height, width), bool) for _ in range(length)]
            for t, mask in enumerate(masks):
                mask[5 + t : 30 + t, 20 * number : 20 * number + 25] = True
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": 10 + index,
                    "category_id": category["id"],
                    "iscrowd": 0,
                    "segmentations": [encode_rle(mask) for mask in masks],
                    "areas": [int(mask.sum()) for mask in masks],
                    "bboxes": [[20.0 * number, 5.0 + t, 25.0, 25.0] for t in range(length)],
                }
            )
    path = folder / "instances.json"
    path.write_text(json.dumps({"videos": videos, "categories": CATEGORIES, "annotations": annotations}))
    return path


def perfect_results(annotations_file):
    """Return results that repeat the ground truth."""
    annotations = json.loads(annotations_file.read_text())["annotations"]
    return [
        {key: record[key] for key in ("video_id", "category_id", "segmentations")} | {"score": 0.9}
        for record in annotations
    ]
