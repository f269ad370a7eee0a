"""Shapes videos as a data set that is drawn on demand: no files, and the same bytes every time."""

import dataclasses
import functools
import hashlib
import io
import json
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.records import Box, Category, Instance, VideoRecord
from clipvis_jax.data.shapes.classes import categories
from clipvis_jax.data.shapes.frames import draw_frame, draw_labels
from clipvis_jax.data.shapes.scenes import Scene, build_scene
from clipvis_jax.data.shapes.splits import TRAINED_ON, WORLD_VERSION, ShapesConfig
from clipvis_jax.errors import InputError

MIN_AREA = 8
"""An object that shows fewer pixels in a frame counts as absent there."""

_MAX_INSTANCES = 8
_JPEG_QUALITY = 95


def draw_video(config: ShapesConfig, index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], VideoRecord]:
    """Draw video ``index`` of a split, with its ground truth.

    Raises:
        InputError: The split has no such video, or no masks.
    """
    scene = _scene(config, index)
    return np.stack([draw_frame(scene, frame) for frame in range(config.frames)]), video_record(config, index)


@functools.lru_cache(maxsize=4096)
def video_record(config: ShapesConfig, index: int) -> VideoRecord:
    """Return the ground truth of video ``index`` of a split: what is visible of every object, frame by frame.

    Raises:
        InputError: The split has no such video, or no masks.
    """
    if config.split == "captions":
        raise InputError("split 'captions' of the Shapes world has no masks; it is for the pretraining of CLIP only")
    scene = _scene(config, index)
    class_numbers = [actor.class_number for actor in scene.actors if actor.class_number is not None]
    masks: list[list[str | None]] = [[] for _ in class_numbers]
    boxes: list[list[Box | None]] = [[] for _ in class_numbers]
    areas: list[list[float | None]] = [[] for _ in class_numbers]
    for frame in range(config.frames):
        planes = draw_labels(scene, frame)[:, :, None] == np.arange(1, len(class_numbers) + 1, dtype=np.uint8)
        encoded = coco_mask.encode(np.asfortranarray(planes, np.uint8))
        sizes, corners = coco_mask.area(encoded).tolist(), coco_mask.toBbox(encoded).tolist()
        for number, (mask, area, (left, top, width, height)) in enumerate(zip(encoded, sizes, corners, strict=True)):
            shows = area >= MIN_AREA
            masks[number].append(str(mask["counts"], "ascii") if shows else None)
            boxes[number].append((left, top, width, height) if shows else None)
            areas[number].append(float(area) if shows else None)
    instances = tuple(
        Instance(
            id=index * _MAX_INSTANCES + number + 1,
            category_id=class_number + 1,
            is_crowd=False,
            masks=tuple(masks[number]),
            boxes=tuple(boxes[number]),
            areas=tuple(areas[number]),
        )
        for number, class_number in enumerate(class_numbers)
        if any(masks[number])  # the others never come into the picture
    )
    names = tuple(f"{index:06d}/{frame:05d}.jpg" for frame in range(config.frames))
    return VideoRecord(index + 1, config.size, config.size, names, instances)


def shapes_info(split: str) -> DatasetInfo:
    """Return what is known of a split, drawn or written."""
    names = tuple(category.name for category in categories())
    # Models of this world know no other names.
    return DatasetInfo(protocol="shapes", background=names, purpose="training" if split in TRAINED_ON else "evaluation")


class ShapesDataset:
    """Some videos of a split, as a `Dataset`. Any process that has the settings draws the same ones.

    Attributes:
        name: What messages and reports call it.
        info: How it is scored, and whether models are trained on it.
        config: Which world, split, size and length.
        categories: All 360 classes; a category's partition is 0 for base, 2 for novel, 3 for unseen ones.
        has_annotations: True.
        digest: SHA-256 of the settings, which everything follows from.
    """

    def __init__(self, config: ShapesConfig, count: int | None = None, first: int = 0) -> None:
        """Take ``count`` videos (default: the split's) from number ``first`` on; nothing is drawn yet.

        Raises:
            InputError: The split has not so many videos, or no masks.
        """
        if config.split == "captions":
            raise InputError("split 'captions' of the Shapes world has no masks; choose another one")
        self.name = f"shapes_{config.split}"
        self.info = shapes_info(config.split)
        self.config = config
        self.categories: Sequence[Category] = categories()
        self.has_annotations = True
        self._first, self._count = first, len(config.video_seeds(first, count))
        settings = [WORLD_VERSION, dataclasses.asdict(config), self._first, self._count]
        self.digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        return video_record(self.config, self._number(index))

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video."""
        return [(self.config.size, self.config.size, self.config.frames)] * self._count

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return a frame as the bytes of a JPEG file, those that `writing.write_ytvis` writes."""
        if not 0 <= operator.index(frame) < self.config.frames:
            raise IndexError(f"frame {frame} of a video of {self.config.frames}")
        return encode_frame(self.config, self._number(index), operator.index(frame))

    def _number(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        if not 0 <= number < self._count:
            raise IndexError(f"video {number} of {self._count}")
        return self._first + number


def encode_frame(config: ShapesConfig, index: int, frame: int) -> bytes:
    """Draw one frame of a video and encode it as JPEG."""
    file = io.BytesIO()
    image = Image.fromarray(draw_frame(_scene(config, index), frame))
    image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # full colour: stripes are a few pixels wide
    return file.getvalue()


@functools.lru_cache(maxsize=8)
def _scene(config: ShapesConfig, index: int) -> Scene:
    """Keep the last scenes, because frames are mostly read in turn."""
    return build_scene(config, index)
