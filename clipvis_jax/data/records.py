"""The one kind of record that every annotation format is read into: videos with instances.

An image is a video of one frame.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from clipvis_jax.data.dataset_info import DatasetInfo

Polygons = tuple[tuple[float, ...], ...]
"""Outlines of the parts of a mask: x and y of their corners by turns, in pixels."""

Mask = str | Polygons
"""A mask of its video's size: COCO's compressed run lengths, or polygons as the annotators drew them."""

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""


@dataclasses.dataclass(frozen=True, slots=True)
class Category:
    """A class of a data set; ``id`` is the annotation file's and need not be contiguous.

    Attributes:
        id: The file's number of the class.
        name: The class's name as the data set spells it.
        synonyms: Other names, the first usually ``name`` (LVIS, BURST).
        frequency: ``f``, ``c`` or ``r``: in how many training images it occurs (LVIS, BURST).
        partition: 0 or 1: base, 2 or 3: novel (LV-VIS).
        split: ``common`` or ``uncommon`` (BURST).
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    frequency: str | None = None
    partition: int | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """A true instance in all frames of its video.

    ``masks``, ``boxes`` and ``areas`` have one entry per frame, None where the instance is absent. ``areas`` are the
    file's, which need not agree with the masks; None if the file has none.
    """

    id: int
    category_id: int
    is_crowd: bool
    masks: tuple[Mask | None, ...]
    boxes: tuple[Box | None, ...] | None = None
    areas: tuple[float | None, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video with its instances; an image has one frame.

    ``file_names`` are relative to the data set's image folder, with forward slashes. ``neg_category_ids`` are classes
    known to be absent, ``not_exhaustive_category_ids`` classes of which instances may lack annotation (LVIS, BURST).
    """

    id: int
    height: int
    width: int
    file_names: tuple[str, ...]
    instances: tuple[Instance, ...] = ()
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.file_names)


@runtime_checkable
class Dataset(Protocol):
    """Videos in the order of their ids, read when they are asked for."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        ...

    @property
    def info(self) -> DatasetInfo:
        """How it is run, scored and compared."""
        ...

    @property
    def categories(self) -> Sequence[Category]:
        """In the order of their ids; a class's index in a vocabulary is its position here."""
        ...

    @property
    def has_annotations(self) -> bool:
        """Whether it has any instance; not so for test sets, whose ground truth is not public."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the annotation file, as hexadecimal digits."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> VideoRecord: ...

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video, without reading the videos."""
        ...

    def read_frame(self, index: int, frame: int) -> bytes:
        """Return the encoded image file (JPEG or PNG) of one frame of video ``index``."""
        ...
