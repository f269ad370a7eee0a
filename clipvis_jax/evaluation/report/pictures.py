"""Pictures of a video for the page: the ground truth above what was found, frame by frame."""

import base64
import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.records import Dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import Annotation, MaskTrack, Result, Video
from clipvis_jax.evaluation.outcomes import distinct_tracks
from clipvis_jax.evaluation.video_ap import track_overlaps
from clipvis_jax.masks.resize import decode_rle
from clipvis_jax.media.visualize import color_palette, draw_tracks

_MAX_SIDE = 384
"""Longest side of a picture in pixels."""

_JPEG_QUALITY = 75
_MAX_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Scene:
    """A video with its ground truth and its results, best first."""

    video: Video
    annotations: Sequence[Annotation]
    results: Sequence[Result]


@dataclasses.dataclass(frozen=True)
class FramePictures:
    """A frame with its ground truth, and with tracks: addresses of images that carry their own bytes."""

    number: int
    ground_truth: str
    prediction: str


def find_index(dataset: Dataset, video_id: int) -> int:
    """Return the index of a video in a data set, whose videos come in the order of their ids.

    Raises:
        InputError: The data set has no such video.
    """
    index = bisect_left(range(len(dataset)), video_id, key=lambda i: dataset[i].id)
    if index == len(dataset) or dataset[index].id != video_id:
        raise InputError(f"{dataset.name}: has no video {video_id}")
    return index


def draw_video(dataset: Dataset, index: int, scene: Scene, names: dict[int, str]) -> list[FramePictures]:
    """Draw a few frames of a video twice: with its ground truth, and with as many of its best tracks.

    A track has the colour of the instance with which it has an IoU of 0.5 or more.

    Args:
        dataset: Where frames are read.
        index: Index of the video in it.
        scene: What there is to draw, at least one instance.
        names: Names of classes by id.

    Raises:
        InputError: A frame cannot be read.
    """
    video, annotations = scene.video, scene.annotations
    tracks = distinct_tracks(scene.results)[: len(annotations)]
    true_colors, track_colors = _colors(tracks, annotations, video)
    true_labels = [names[annotation.category_id] for annotation in annotations]
    track_labels = [f"{names[result.category_id]} {result.score:.2f}" for result in tracks]
    true_masks = [annotation.track for annotation in annotations]
    found_masks = [result.track for result in tracks]
    record = dataset[index]
    pictures = []
    for frame in _frames_to_show(annotations):
        picture = _shrink(decode_frame(dataset, index, frame, record))
        size = picture.shape[0], picture.shape[1]
        ground_truth, prediction = (
            _jpeg(draw_tracks(picture, _masks_at(masks, frame, video, size), labels, colors))
            for masks, labels, colors in (
                (true_masks, true_labels, true_colors),
                (found_masks, track_labels, track_colors),
            )
        )
        pictures.append(FramePictures(frame, ground_truth, prediction))
    return pictures


def _frames_to_show(annotations: Sequence[Annotation]) -> list[int]:
    """Choose frames evenly among those that show an instance."""
    areas = np.stack([annotation.track.areas for annotation in annotations])
    shown = np.flatnonzero(areas.any(axis=0))
    chosen = np.linspace(0, len(shown) - 1, min(_MAX_FRAMES, len(shown))).round().astype(int)
    return shown[chosen].tolist()


def _colors(
    tracks: Sequence[Result], annotations: Sequence[Annotation], video: Video
) -> tuple[UInt8[np.ndarray, "g 3"], UInt8[np.ndarray, "d 3"]]:
    """Give instances a colour each, and tracks that of their instance or one of their own."""
    palette = color_palette(len(annotations) + len(tracks))
    chosen = np.arange(len(annotations), len(palette))
    if tracks:
        overlap = track_overlaps(tracks, annotations, video)
        chosen = np.where(overlap.max(axis=1) >= 0.5, overlap.argmax(axis=1), chosen)
    return palette[: len(annotations)], palette[chosen]


def _shrink(frame_u8: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h_small w_small 3"]:
    image = Image.fromarray(frame_u8)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return np.array(image)


def _masks_at(
    tracks: Sequence[MaskTrack], frame: int, video: Video, size: tuple[int, int]
) -> Bool[np.ndarray, "n h w"]:
    """Decode the masks of tracks in a frame at another size."""
    masks = np.zeros((len(tracks), *size), bool)
    for mask, track in zip(masks, tracks, strict=True):
        counts = track.counts[frame]
        if counts is not None:
            image = Image.fromarray(decode_rle({"size": video.size, "counts": counts}))
            mask[:] = image.resize(size[::-1], Image.Resampling.NEAREST)
    return masks


def _jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """Write a picture as the address of an image that carries its own bytes."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
