"""What a segmenter gives back: tracks of a video, and the state of all tracks in one frame."""

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Sequence
from operator import eq
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.errors import InputError
from clipvis_jax.masks.resize import Rle, decode_rle
from clipvis_jax.media.visualize import bounding_box, draw_tracks, track_color
from clipvis_jax.text.vocabulary import short_names


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


@dataclasses.dataclass(frozen=True)
class LiveTrack:
    """A track in one frame: the newest of a stream, as it stands after it, or any of a result; see ``Track``."""

    track_id: int
    class_index: int
    class_name: str
    score: float
    mask: Bool[np.ndarray, "h w"]
    embedding: Float[np.ndarray, " e"] | None = None

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the mask in pixels, the last two just outside; None if it is empty."""
        return bounding_box(self.mask)


def seen(tracks: Sequence[LiveTrack]) -> list[LiveTrack]:
    """Choose of a stream's tracks, best first, every instance that shows in the frame, under its best class."""
    best: dict[int, LiveTrack] = {}
    for track in tracks:
        best.setdefault(track.track_id, track)
    return [track for track in best.values() if track.mask.any()]


def draw_live(
    image: UInt8[np.ndarray, "h w 3"], tracks: Sequence[LiveTrack], class_names: tuple[str, ...]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw masks and names of tracks, best first, on a copy of an RGB frame."""
    if not tracks:
        return image.copy()
    tracks = tracks[::-1]  # the best on top
    masks, names = np.stack([track.mask for track in tracks]), short_names(class_names)
    labels = [f"{names[track.class_index]} {track.score:.2f}" for track in tracks]
    colors = np.array([track_color(track.track_id) for track in tracks], np.uint8)
    return draw_tracks(image, masks, labels, colors)


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
    ``raw`` is there after ``predict(..., keep_raw=True)``, for ``rename``. ``frame_numbers`` are the frames' numbers in
    the file or folder that they were read from, if they were.
    """

    tracks: list[Track]
    class_names: tuple[str, ...]
    height: int
    width: int
    num_frames: int
    background: tuple[str, ...] = ()
    raw: Raw | None = dataclasses.field(default=None, compare=False, repr=False)
    frame_numbers: tuple[int, ...] | None = dataclasses.field(default=None, compare=False, repr=False)

    def rename(self, classes: Sequence[str], **options: Any) -> "VideoResult":
        """Give the result of other classes, without running the network; for options see ``Segmenter.rename``.

        Raises:
            InputError: A class name cannot be used, or nothing was kept for this.
        """
        if self.raw is None:
            raise InputError("a result can be renamed only after predict with keep_raw=True")
        renamed = self.raw.rename(self.raw.video, classes, **options)
        return dataclasses.replace(renamed, frame_numbers=self.frame_numbers)

    def save(self, path: str | Path) -> None:
        """Write the result as one JSON file, embeddings included: that of ``clipvis predict`` (tracks.json).

        Raises:
            InputError: The file cannot be written.
        """
        from clipvis_jax.inference.result_file import save_result  # noqa: PLC0415 (it imports this module)

        save_result(Path(path), self)

    @staticmethod
    def load(path: str | Path) -> "VideoResult":
        """Read what ``save`` or ``clipvis predict`` wrote.

        Raises:
            InputError: The file is missing, damaged or something else.
        """
        from clipvis_jax.inference.result_file import load_result  # noqa: PLC0415 (it imports this module)

        return load_result(Path(path))[0]

    def best(self) -> "VideoResult":
        """Keep every instance once, under its best class."""
        best: dict[int, Track] = {}
        for track in self.tracks:
            best.setdefault(track.track_id, track)
        return dataclasses.replace(self, tracks=list(best.values()))

    def frame(self, index: int) -> list[LiveTrack]:
        """Return the tracks that show in a frame, best first, with their masks there.

        Raises:
            IndexError: There is no such frame; they count from 0.
        """
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index}: the result has frames 0 to {self.num_frames - 1}")
        present = []
        for track in self.tracks:
            mask = track.mask(index)
            if mask.any():
                names = track.track_id, track.class_index, track.class_name
                present.append(LiveTrack(*names, track.score, mask, track.embedding))
        return present

    def plot(self, index: int, image: UInt8[np.ndarray, "h w 3"] | None = None) -> Image.Image:
        """Draw a frame's masks and names, every instance once.

        Args:
            index: The frame, from 0.
            image: The frame's RGB picture; without one, on black.

        Raises:
            IndexError: There is no such frame.
        """
        if image is None:
            image = np.zeros((self.height, self.width, 3), np.uint8)
        return Image.fromarray(draw_live(image, self.best().frame(index), self.class_names))

    def _repr_html_(self) -> str:
        """Show some frames and a table of the best tracks in a notebook."""
        pictures = []
        for index in sorted({i * (self.num_frames - 1) // 3 for i in range(4)} if self.num_frames else ()):
            picture = self.plot(index)
            picture.thumbnail((240, 240))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            pictures.append(f'<img alt="frame {index}" title="frame {index}" src="data:image/png;base64,{data}">')
        rows = "".join(
            f"<tr><td>{track.track_id}</td><td>{html.escape(track.class_name)}</td><td>{track.score:.3f}</td></tr>"
            for track in self.tracks[:20]
        )
        head = f"{len(self.tracks)} results, {len(self.best().tracks)} instances, {self.num_frames} frames"
        table = f"<table><tr><th>track</th><th>class</th><th>score</th></tr>{rows}</table>"
        return f"<div><p>{head}</p>{' '.join(pictures)}{table}</div>"

    def to_supervision(self) -> list[Any]:
        """Return ``supervision.Detections`` of every frame: masks, tracker ids, confidence, class ids and names.

        Every instance has its best class alone.

        Raises:
            InputError: The package supervision is not installed.
        """
        try:
            import supervision  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise InputError("to_supervision needs supervision: pip install 'clipvis-jax[supervision]'") from error
        best, size = self.best(), (self.height, self.width)
        detections = []
        for index in range(self.num_frames):
            tracks = best.frame(index)
            detections.append(
                supervision.Detections(
                    xyxy=np.array([track.box for track in tracks], np.float32).reshape(-1, 4),
                    mask=np.array([track.mask for track in tracks], bool).reshape(-1, *size),
                    confidence=np.array([track.score for track in tracks], np.float32),
                    class_id=np.array([track.class_index for track in tracks], int),
                    tracker_id=np.array([track.track_id for track in tracks], int),
                    data={"class_name": np.array([track.class_name for track in tracks], str)},
                )
            )
        return detections

    def to_coco(self, file_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Write the result as a COCO annotation file has it: an image per frame, ``track_id`` in every annotation.

        Every instance has its best class alone. Boxes are [left, top, width, height].

        Args:
            file_names: Names of the frames' pictures; by default 000000.jpg and so on.
        """
        images = [
            {"id": index + 1, "file_name": name, "width": self.width, "height": self.height, "frame_index": index}
            for index, name in enumerate(file_names or [f"{i:06d}.jpg" for i in range(self.num_frames)])
        ]
        annotations: list[dict[str, Any]] = []
        best = self.best().tracks
        for index in range(self.num_frames):
            for track in best:
                mask = track.segmentations[index]
                area = int(coco_mask.area(mask))
                if area:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": index + 1,
                            "category_id": track.class_index + 1,
                            "track_id": track.track_id,
                            "score": track.score,
                            "segmentation": mask,
                            "area": area,
                            "bbox": coco_mask.toBbox(mask).tolist(),
                            "iscrowd": 0,
                        }
                    )
        categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

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
