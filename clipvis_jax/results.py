"""What a segmenter gives back: tracks of a video, and the state of all tracks in one frame."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool

from clipvis_jax.masks import Rle, decode_rle


@dataclasses.dataclass(frozen=True)
class Track:
    """One instance over a whole video (or image) under one class.

    ``track_id`` numbers the instance: the same instance may appear under several classes. ``class_index`` counts
    from 0 in the order of the vocabulary. ``score`` is 0..1. ``segmentations`` holds one mask per frame, empty
    where the instance is absent.
    """

    track_id: int
    class_index: int
    class_name: str
    score: float
    segmentations: list[Rle]

    def mask(self, frame: int) -> Bool[np.ndarray, "h w"]:
        """Decode the mask in a frame."""
        return decode_rle(self.segmentations[frame])


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """All tracks of a video, best first."""

    tracks: list[Track]
    class_names: tuple[str, ...]
    height: int
    width: int
    num_frames: int

    def to_ytvis(self, video_id: int = 1) -> list[dict[str, Any]]:
        """Write the tracks as YouTube-VIS results; ``category_id`` counts from 1 in the vocabulary's order."""
        return [
            {
                "video_id": video_id,
                "category_id": track.class_index + 1,
                "score": track.score,
                "segmentations": track.segmentations,
            }
            for track in self.tracks
        ]


@dataclasses.dataclass(frozen=True)
class LiveTrack:
    """A track as it stands after the frames seen so far, with its mask in the newest one."""

    track_id: int
    class_index: int
    class_name: str
    score: float
    mask: Bool[np.ndarray, "h w"]
