"""What a segmenter gives back: tracks of a video, and the state of all tracks in one frame."""

import dataclasses
from collections.abc import Callable, Sequence
from operator import eq
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float

from clipvis_jax.errors import InputError
from clipvis_jax.masks.resize import Rle, decode_rle


class TrackMasks(Sequence[Rle]):
    """The masks of a track, one per frame, as COCO's run lengths. Every access makes a new ``Rle``.

    Not a plain tuple of these: dictionaries can be changed, and take several times the memory.
    """

    def __init__(self, size: tuple[int, int], counts: Sequence[str]) -> None:
        """Take the size (height, width) of all masks and the compressed run lengths of each."""
        self._size, self._counts = size, tuple(counts)

    def __len__(self) -> int:
        return len(self._counts)

    @overload
    def __getitem__(self, index: int) -> Rle: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rle]: ...

    def __getitem__(self, index: int | slice) -> Rle | list[Rle]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {"size": list(self._size), "counts": self._counts[index]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Track:
    """One instance over a whole video (or image) under one class.

    ``track_id`` numbers the instance: the same instance may appear under several classes. ``class_index`` counts
    from 0 in the order of the vocabulary. ``score`` is 0..1 (a ReLU mask-IoU head may exceed 1). ``segmentations``
    holds one mask per frame, empty where the instance is absent. ``embedding`` is CLIP's of what the masks show, of
    length 1: the mean over the frames, weighted as the score is.
    """

    track_id: int
    class_index: int
    class_name: str
    score: float
    segmentations: TrackMasks
    embedding: Float[np.ndarray, " e"] | None = dataclasses.field(default=None, compare=False, repr=False)

    def mask(self, frame: int) -> Bool[np.ndarray, "h w"]:
        """Decode the mask in a frame."""
        return decode_rle(self.segmentations[frame])


class Raw:
    """What a result can be named anew from. Copies of the result share it, pickles go without.

    Attributes:
        video: What the network predicted, see ``inference.raw_video``.
    """

    def __init__(self, video: Any, rename: Callable[..., "VideoResult"]) -> None:
        """Take the predictions, and ``Segmenter.rename`` of the model that made them."""
        self.video, self.rename = video, rename

    def __deepcopy__(self, _: object) -> "Raw":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """All tracks of a video, best first.

    ``background`` are the names that took part in the classification besides ``class_names``; no track has one.
    ``raw`` is there after ``predict(..., keep_raw=True)``, for ``rename``.
    """

    tracks: list[Track]
    class_names: tuple[str, ...]
    height: int
    width: int
    num_frames: int
    background: tuple[str, ...] = ()
    raw: Raw | None = dataclasses.field(default=None, compare=False, repr=False)

    def rename(self, classes: Sequence[str], **options: Any) -> "VideoResult":
        """Give the result of other classes, without running the network; for options see ``Segmenter.rename``.

        Raises:
            InputError: A class name cannot be used, or nothing was kept for this.
        """
        if self.raw is None:
            raise InputError("a result can be renamed only after predict with keep_raw=True")
        return self.raw.rename(self.raw.video, classes, **options)

    def to_ytvis(self, video_id: int = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Write the tracks as YouTube-VIS results.

        Args:
            video_id: The video's id.
            category_ids: Ids of the classes in the vocabulary's order; by default they count from 1.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        return [
            {
                "video_id": video_id,
                "category_id": ids[track.class_index],
                "score": track.score,
                "segmentations": list(track.segmentations),
            }
            for track in self.tracks
        ]


@dataclasses.dataclass(frozen=True)
class LiveTrack:
    """A track as it stands after the frames seen so far, with its mask in the newest one; see ``Track``."""

    track_id: int
    class_index: int
    class_name: str
    score: float
    mask: Bool[np.ndarray, "h w"]
    embedding: Float[np.ndarray, " e"]
