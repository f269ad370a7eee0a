"""What importers find: videos, or pictures, whose instances have a mask per frame; and where their pictures lie."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from clipvis_jax.data.formats.parts import file_name
from clipvis_jax.data.importing import shapes
from clipvis_jax.errors import InputError, show
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.masks.rle import measure, to_counts
from clipvis_jax.media.images import IMAGE_SUFFIXES, MAX_PIXELS, check_pixels, image_size, natural_order
from clipvis_jax.media.video_reader import open_frames

BOXES = "boxes that became rectangular masks"
EMPTY = "masks without pixels that were left out"


class FrameFile(NamedTuple):
    """Where a frame's picture is.

    Attributes:
        name: What it will be called.
        path: The picture, or the video that it is a frame of.
        where: What messages call the record that it belongs to.
        number: Its number in the video, from 0; None for a picture.
    """

    name: str
    path: Path
    where: str
    number: int | None = None


class FoundInstance:
    """An instance: its class, its id in the source (None if it has none) and compressed run lengths by frame."""

    def __init__(self, label: str, track_id: int | str | None, is_crowd: bool) -> None:
        """Begin an instance without masks."""
        self.label, self.track_id, self.is_crowd = label, track_id, is_crowd
        self.masks: dict[int, str] = {}


class FoundVideo:
    """A video with its instances; a picture is one frame.

    Attributes:
        name: From the source's folders and files; need be neither unique nor a proper name for a folder.
        frames: In their order.
        split: What the source calls the part that it belongs to (train, val); empty if there are none.
        size: Height and width in pixels.
        instances: Those with a mask.
    """

    def __init__(
        self, name: str, frames: Sequence[FrameFile], size: tuple[int, int], notes: Counter[str], split: str = ""
    ) -> None:
        """Begin a video without instances; ``notes`` counts what is changed of its annotations."""
        self.name, self.frames, self.size, self.split = name, list(frames), size, split
        self._notes = notes
        self._instances: dict[Hashable, FoundInstance] = {}

    @property
    def instances(self) -> list[FoundInstance]:
        """The instances that have a mask."""
        return list(self._instances.values())

    def add(
        self,
        key: Hashable,
        label: str,
        frame: int,
        mask: Any,
        where: str,
        *,
        track_id: int | str | None = None,
        is_crowd: bool = False,
    ) -> None:
        """Add a mask; one that the instance has in this frame already is extended.

        Args:
            key: Tells the instances of the video apart.
            label: The class.
            frame: The frame's position, from 0.
            mask: Booleans, polygons, or run lengths with their size.
            where: What messages call it.
            track_id: The instance's id in the source.
            is_crowd: Whether it is a group.

        Raises:
            InputError: The mask is damaged or of another size, or the class has no name.
        """
        label, size = label.strip(), list(self.size)
        if not label:
            raise InputError(f"{where}: its class has no name; name it")
        try:
            counts, own_size = to_counts(encode_rle(mask) if isinstance(mask, np.ndarray) else mask, size)
        except ValueError as error:
            raise InputError(f"{where}: its mask {error}; correct the file") from error
        if own_size != size:
            raise InputError(f"{where}: its mask has the size {own_size}, but its picture {size}; correct the file")
        areas, totals = measure([counts] if counts else [])
        if counts and totals[0] != size[0] * size[1]:
            raise InputError(f"{where}: its mask is damaged; its run lengths do not describe {size[0]} x {size[1]}")
        if counts is None or not areas[0]:
            self._notes[EMPTY] += 1
            return
        instance = self._instances.setdefault(key, FoundInstance(label, track_id, is_crowd))
        if frame in instance.masks:
            both = [{"size": size, "counts": text} for text in (counts, instance.masks[frame])]
            counts = coco_mask.merge(both)["counts"].decode("ascii")
        instance.masks[frame] = counts

    def add_box(self, key: Hashable, label: str, frame: int, box: Sequence[float], where: str, **more: Any) -> None:
        """Add a box (left, top, width and height in pixels) as a rectangular mask; see ``add``."""
        self._notes[BOXES] += 1
        self.add(key, label, frame, [shapes.box(*box)], where, **more)


class Found(NamedTuple):
    """What an importer found.

    Attributes:
        is_video: Whether these are videos; False: pictures.
        videos: In the order in which they are written.
        labels: All classes that the source names, in its order, whether they have instances or not.
    """

    is_video: bool
    videos: list[FoundVideo]
    labels: list[str]


class Pictures:
    """The pictures that annotations name: below folders, or as frames of a video."""

    def __init__(self, given: Path | None, *folders: Path) -> None:
        """Take the folder or video that the user gave, or else the folders that the format has them in."""
        self.video = given if given is not None and given.is_file() else None
        self.folders = [given] if given is not None else [folder for folder in folders if folder.is_dir()]
        self._listed: dict[Path, dict[str, Path]] = {}

    def below(self, name: str) -> "Pictures":
        """Return those of a folder below, as far as there is one; ``name`` must be a folder's."""
        if self.video is None:
            return Pictures(None, *(folder / name for folder in self.folders), *self.folders)
        return self

    def find(self, name: str, where: str) -> FrameFile:
        """Find a picture by its name; if need be, without regard to its suffix.

        Of a video, the number at the end of the name counts.

        Raises:
            InputError: There is none, or the name leads out of the folder.
        """
        name = file_name(name, where)
        if self.video is not None:
            return self.frame(number_of(name, where), where, Path(name).stem)
        for folder in self.folders:
            path = folder / name
            found = path if path.is_file() else self._by_stem(path.parent).get(path.stem)
            if found is not None:
                return FrameFile(found.name, found, where)
        looked = f"is not in {' or '.join(map(str, self.folders))}" if self.folders else "has no folder to look in"
        raise InputError(f"{where}: its picture {show(name)} {looked}; say where the pictures (or the video) are")

    def frame(self, number: int, where: str, stem: str | None = None) -> FrameFile:
        """Return a frame of the video."""
        assert self.video is not None
        return FrameFile(f"{stem or f'frame_{number:06d}'}.jpg", self.video, where, number)

    def check_no_video(self) -> None:
        """Raise InputError if it is a video: records without tracks need pictures."""
        if self.video is not None:
            raise InputError(f"{self.video}: is a video, but the source has no tracks; give the folder of the pictures")

    @cached_property
    def all(self) -> list[Path]:
        """All pictures of the first folder that has any, in natural order."""
        for folder in self.folders:
            if paths := self._by_stem(folder):
                return sorted(paths.values(), key=natural_order)
        return []

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listed[folder] = {
                path.stem: path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            }
        return self._listed[folder]


def number_of(name: str, where: str) -> int:
    """Return the number at the end of a frame's name.

    Raises:
        InputError: It has none, or one of more than 9 digits.
    """
    found = re.search(r"(?<!\d)\d{1,9}$", Path(name).stem)
    if found is None:
        raise InputError(f"{where}: {show(name)} ends with no frame number; name it like frame_000012.png")
    return int(found[0])


def size_of(frames: Sequence[FrameFile], where: str) -> tuple[int, int]:
    """Return the height and width that the frames of a video have in common.

    Raises:
        InputError: They differ, or one cannot be read.
    """
    sizes = _sizes(frames)
    if len(sizes) != 1:
        names = " and ".join(path.name for path in list(sizes.values())[:2])
        raise InputError(f"{where}: {names} differ in size; make them one size")
    return next(iter(sizes))


def check_size(frames: Sequence[FrameFile], size: tuple[int, int]) -> None:
    """Raise InputError if a frame has another height or width than its annotations, or cannot be read."""
    for own, path in _sizes(frames).items():
        if own != size:
            raise InputError(
                f"{path}: is {own[1]}x{own[0]} pixels, but its annotations are for {size[1]}x{size[0]}; give the "
                "pictures (or the video) that were annotated"
            )


def _sizes(frames: Sequence[FrameFile]) -> dict[tuple[int, int], Path]:
    """Return an example of every height and width, none of which is too large to be decoded."""
    if frames[0].number is not None:
        video = open_frames(frames[0].path)
        return {(video.height, video.width): frames[0].path}
    sizes: dict[tuple[int, int], Path] = {}
    for frame in frames:
        height, width = image_size(frame.path)
        check_pixels(width, height, str(frame.path), MAX_PIXELS)
        sizes.setdefault((height, width), frame.path)
    return sizes


def check_frames(found: Found) -> None:
    """Raise InputError if a picture, or a frame of a video, belongs to two records."""
    known: dict[tuple[Path, int | None], FrameFile] = {}
    for frame in (frame for video in found.videos for frame in video.frames):
        other = known.setdefault((frame.path.absolute(), frame.number), frame)
        if other is not frame:
            what = f"{frame.path}: " + ("" if frame.number is None else f"frame {frame.number} ")
            raise InputError(
                f"{what}belongs to both {other.where} and {frame.where}; leave one out, or give each its own pictures"
            )
