"""A small data set in memory, for tests of the training data; it can be pickled."""

import dataclasses
import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.records import Category, Instance, VideoRecord

HEIGHT, WIDTH = 48, 64


@dataclasses.dataclass
class MemoryDataset:
    """Videos and their encoded frames, by (video, frame)."""

    records: list[VideoRecord]
    frames: dict[tuple[int, int], bytes]
    categories: list[Category]
    name: str = "memory"
    has_annotations: bool = True
    digest: str = "digest"
    info: DatasetInfo = DatasetInfo()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def video_sizes(self):
        return [(record.height, record.width, record.length) for record in self.records]

    def read_frame(self, index, frame):
        return self.frames[index, frame]


def encode_png(frame_u8):
    buffer = io.BytesIO()
    Image.fromarray(frame_u8).save(buffer, "png")
    return buffer.getvalue()


def encode_counts(mask):
    return str(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"], "ascii")


def triangle(rng):
    """Draw three corners that do not lie too close."""
    centre = rng.uniform([16, 12], [48, 36])
    angles = rng.uniform(0, 2) + np.arange(3) * 2 * np.pi / 3
    corners = centre + 10 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (tuple(corners.ravel().tolist()),)


def make_dataset(num_videos=10, num_frames=2, seed=0):
    """Make videos of noise with one to three instances, as polygons and as run lengths by turns."""
    rng = np.random.default_rng(seed)
    records, frames = [], {}
    for video in range(num_videos):
        instances = []
        for i in range(1 + video % 3):
            polygons = [triangle(rng) for _ in range(num_frames)]
            if i % 2:
                masks = tuple(
                    str(coco_mask.merge(coco_mask.frPyObjects([list(p[0])], HEIGHT, WIDTH))["counts"], "ascii")
                    for p in polygons
                )
            else:
                masks = tuple(polygons)
            instances.append(Instance(id=i + 1, category_id=1 + i, is_crowd=False, masks=masks))
        names = tuple(f"{video:03}/{frame}.png" for frame in range(num_frames))
        records.append(VideoRecord(video + 1, HEIGHT, WIDTH, names, tuple(instances)))
        for frame in range(num_frames):
            frames[video, frame] = encode_png(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    categories = [
        Category(1, "common", frequency="f"),
        Category(2, "less", frequency="c"),
        Category(3, "rare", frequency="r"),
    ]
    return MemoryDataset(records, frames, categories)
