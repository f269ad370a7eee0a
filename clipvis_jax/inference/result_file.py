"""Results as a file: tracks.json, which ``clipvis predict`` and ``VideoResult.save`` write."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec
import numpy as np

from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.io.files import atomic_path
from clipvis_jax.io.json_text import read_json
from clipvis_jax.masks.rle import MAX_SIDE, empty_mask, measure
from clipvis_jax.text.vocabulary import parse_synonyms
from clipvis_jax.version import __version__

_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
_ADVICE = "give a tracks.json of 'clipvis predict'"


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What tracks.json tells of its video; see ``clipvis_jax.media.video_reader.FrameSource`` for the fields.

    ``frame_numbers`` are those of the results' frames in the source;
    None where the frames came from elsewhere than a file or folder.
    """

    height: _Side
    width: _Side
    length: Annotated[int, msgspec.Meta(ge=1)]
    name: str = ""
    fps: float | None = None
    frame_numbers: list[Annotated[int, msgspec.Meta(ge=0)]] | None = None
    frame_times_s: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("frame_numbers", "frame_times_s"):
            values = getattr(self, name)
            if values is not None and len(values) != self.length:
                raise ValueError(f"{name} has {len(values)} entries, not {self.length}")
        if self.frame_numbers is not None and self.frame_numbers != sorted(set(self.frame_numbers)):
            raise ValueError("frame_numbers must rise")


@dataclasses.dataclass(frozen=True)
class _Mask:
    size: tuple[int, int]
    counts: Annotated[str, msgspec.Meta(min_length=1, pattern="^[ -~]+$")]


@dataclasses.dataclass(frozen=True)
class _Category:
    id: int
    name: str


@dataclasses.dataclass(frozen=True)
class _Record:
    category_id: int
    score: float
    segmentations: list[_Mask | None]
    track_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    embedding: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class _Document:
    video: VideoFacts
    categories: list[_Category]
    results: list[_Record]
    background: list[str] = dataclasses.field(default_factory=list)


def write_tracks(file: TextIO, result: VideoResult, video: dict[str, Any], *, embeddings: bool = False) -> None:
    """Write the tracks as JSON.

    ``results`` is a list of YouTube-VIS results with ``category_name`` and ``track_id`` added; ``categories`` and
    ``video`` say what their ids and frames are, see ``VideoFacts``. ``background`` lists the names that took part in
    the classification besides the categories, if any did. With ``embeddings``, every result has its track's.
    """
    head = {
        "info": {"creator": f"clipvis_jax {__version__}", "format": "YouTube-VIS results"},
        "video": video,
        "categories": [
            {"id": index, "name": name, "synonyms": list(parse_synonyms(name))}
            for index, name in enumerate(result.class_names, start=1)
        ],
    }
    if result.background:
        head["background"] = list(result.background)
    # Track by track: the masks of all need not fit into memory.
    file.write(json.dumps(head)[:-1] + ', "results": [')
    for position, track in enumerate(result.tracks):
        (record,) = dataclasses.replace(result, tracks=[track]).to_ytvis(video_id=1)
        record |= {"category_name": track.class_name, "track_id": track.track_id}
        if embeddings and track.embedding is not None:
            record["embedding"] = [float(f"{number:.9g}") for number in track.embedding.tolist()]  # exact
        file.write((",\n" if position > 0 else "\n") + json.dumps(record))
    file.write("\n]}\n")


def save_result(path: Path, result: VideoResult) -> None:
    """Write a result, see ``write_tracks``.

    Raises:
        InputError: The file cannot be written.
    """
    video: dict[str, Any] = {"id": 1, "height": result.height, "width": result.width, "length": result.num_frames}
    if result.frame_numbers is not None:
        video["frame_numbers"] = list(result.frame_numbers)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_tracks(file, result, video, embeddings=True)


def load_result(path: Path) -> tuple[VideoResult, VideoFacts]:
    """Read a result, and what the file tells of its video.

    Raises:
        InputError: The file is missing, damaged or something else; the message names the field.
    """
    document: _Document = read_json(path, _Document, _ADVICE)
    video, names = document.video, tuple(category.name for category in document.categories)
    size, positions = (video.height, video.width), {c.id: i for i, c in enumerate(document.categories)}
    numbers = None if video.frame_numbers is None else tuple(video.frame_numbers)
    empty = empty_mask(list(size))
    tracks = []
    for index, record in enumerate(document.results):
        where = f"{path}: results[{index}]"
        if record.category_id not in positions:
            raise InputError(f"{where}.category_id is {record.category_id}, which is no category; {_ADVICE}")
        if len(record.segmentations) != video.length:
            count = len(record.segmentations)
            raise InputError(f"{where}.segmentations has {count} masks for {video.length} frames; {_ADVICE}")
        masks = record.segmentations
        counts = [empty if mask is None else mask.counts for mask in masks]
        # pycocotools does not check run lengths, and loops for ever on some.
        if any(mask and mask.size != size for mask in masks) or (measure(counts)[1] != size[0] * size[1]).any():
            raise InputError(f"{where}.segmentations: a mask is not of {size[0]} x {size[1]} pixels; {_ADVICE}")
        position = positions[record.category_id]
        embedding = None if record.embedding is None else np.array(record.embedding, np.float32)
        kept = TrackMasks(size, counts)
        tracks.append(Track(record.track_id, position, names[position], record.score, kept, embedding))
    background = tuple(document.background)
    return VideoResult(tracks, names, *size, video.length, background, frame_numbers=numbers), video
