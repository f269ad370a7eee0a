"""Label Studio: its JSON export (brushes, polygons, boxes, ellipses; boxes in videos), and its COCO export.

By hand: its own converter needs its SDK, and knows no tracks with masks.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from clipvis_jax.data.importing.coco_files import add_coco, find_files, read_coco
from clipvis_jax.data.importing.found import BOXES, Found, FoundVideo, FrameFile, Pictures, size_of
from clipvis_jax.data.importing.shapes import OTHERS, box, ellipse, rotated
from clipvis_jax.errors import InputError, show
from clipvis_jax.io.json_text import decode, read_json
from clipvis_jax.masks.brush import decode_brush
from clipvis_jax.media.images import IMAGE_SUFFIXES
from clipvis_jax.media.video_reader import FrameSelection, open_frames

_FURTHER = "further annotations of a task that were left out"
_MAX_BOXES = 2 * 10**6
"""Of all videos; every one becomes a mask."""
_MAX_DEPTH = 16
"""Folders above a picture that are compared with its address."""
_VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
_KINDS = {
    "brushlabels": "brush",
    "polygonlabels": "polygon",
    "rectanglelabels": "box",
    "ellipselabels": "ellipse",
    "videorectangle": "video",
}
"""Types of results that have an area; ``labels`` for videos, and for the rest the type itself, holds the classes."""


class _Result(msgspec.Struct):
    type: str = ""
    value: msgspec.Raw = msgspec.Raw(b"null")
    original_width: int = 0
    original_height: int = 0


class _Annotation(msgspec.Struct):
    result: list[_Result]
    was_cancelled: bool = False


class _Task(msgspec.Struct):
    data: dict[str, Any]
    annotations: list[_Annotation]


class _Key(msgspec.Struct):
    """A box at a frame, from 1; without ``enabled`` the object is gone after it."""

    frame: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0
    enabled: bool = True


class _Value(msgspec.Struct, rename="camel"):
    """The values of all kinds of results; lengths are percentages of the picture's sides."""

    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    radius_x: float = 0.0
    radius_y: float = 0.0
    rotation: float = 0.0
    points: list[tuple[float, float]] = []
    rle: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] = []
    sequence: list[_Key] = []
    frames_count: Annotated[int, msgspec.Meta(ge=0, le=10**6)] = 0
    labels: list[str] = []
    brushlabels: list[str] = []
    polygonlabels: list[str] = []
    rectanglelabels: list[str] = []
    ellipselabels: list[str] = []


def read_label_studio(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read a JSON or COCO export. Of a task the first annotation that was not cancelled counts.

    Of a video the frames from the first to the last that shows an object are taken.

    Raises:
        InputError: A file, picture or video is missing or cannot be used, or pictures and videos are mixed.
    """
    found = Found(False, [], [])
    for source in sources:
        for path in find_files(source, "result.json", "*.json"):
            with path.open("rb") as file:
                is_coco = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
            if is_coco:
                pictures = Pictures(images, path.parent, path.parent / "images")
                add_coco(found, read_coco(path), pictures, notes, name="", split="", crowds=True)
                continue
            tasks: list[_Task] = read_json(path, list[_Task], "give Label Studio's JSON (not JSON-MIN) or COCO export")
            for number, task in enumerate(tasks):
                video = _read_task(task, path, f"{path}: task {number}", images, notes)
                found.videos.append(video)
    kinds = {len(video.frames) > 1 or video.frames[0].number is not None for video in found.videos}
    if len(kinds) > 1:
        raise InputError(f"{sources[0]}: has pictures and videos; export them apart")
    labels = sorted({instance.label for video in found.videos for instance in video.instances})
    return Found(True in kinds, found.videos, found.labels or labels)


def _read_task(task: _Task, path: Path, where: str, images: Path | None, notes: Counter[str]) -> FoundVideo:
    valid = [annotation for annotation in task.annotations if not annotation.was_cancelled]
    if len(valid) > 1:
        notes[_FURTHER] += len(valid) - 1
    results = []
    for index, result in enumerate(valid[0].result if valid else []):
        if result.type in _KINDS:
            place = f"{where}: result {index}"
            results.append((result, decode(result.value, _Value, place), place))
        else:
            notes[OTHERS] += 1
    file = _file(task, path, images, where)
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return _read_video(file, [(value, place) for _, value, place in results], where, notes)
    frames = [FrameFile(file.name, file, where)]
    picture = FoundVideo(file.stem, frames, size_of(frames, where), notes)
    for number, (result, value, place) in enumerate(results):
        if result.type == "videorectangle":
            raise InputError(f"{place}: is a box of a video, but the task is of a picture; correct the file")
        own = result.original_height, result.original_width
        if own not in ((0, 0), picture.size):
            raise InputError(f"{place}: is of a picture of {own[1]}x{own[0]} pixels, but {file} has another size")
        mask = _mask(_KINDS[result.type], value, picture.size, place)
        if result.type == "rectanglelabels":
            notes[BOXES] += 1
        picture.add(number, _label(getattr(value, result.type), place), 0, mask, place)
    return picture


def _file(task: _Task, path: Path, images: Path | None, where: str) -> Path:
    """Find the picture or video of a task by its address, of which as many of the last parts count as there are.

    Label Studio puts eight digits before the names of uploaded files.
    """
    known = [task.data.get(key) for key in ("video", "image")]
    addresses = [_parts(value) for value in (*known, *task.data.values()) if isinstance(value, str)]
    if not addresses:
        raise InputError(f"{where}: data names no picture or video; correct the file")
    if images is not None and images.is_file():
        return images
    named = (parts for parts in addresses if parts[-1].lower().endswith((*IMAGE_SUFFIXES, *_VIDEO_SUFFIXES)))
    *above, name = next(named, addresses[0])
    names = [name, name[9:]] if name[8:9] == "-" else [name]
    folders = [path.parent, path.parent / "images"] if images is None else [images]
    for start in range(len(above) + 1 if name not in ("", "..") else 0):
        for place in (folder.joinpath(*above[start:], name) for folder in folders for name in names):
            with suppress(OSError):  # a part of an address may be too long for a name
                if place.is_file():
                    return place
    raise InputError(f"{where}: {show(name)} is not in {folders[-1]}; say where the pictures or videos are")


def _parts(address: str) -> list[str]:
    """Return the last folders of an address, and the file's name."""
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [])  # /data/local-files/?d=folder/a.jpg
        path = local[0] if local else unquote(parts.path)
    except ValueError:  # it is no address
        path = address
    *above, name = path.replace("\\", "/").split("/")
    return [*[part for part in above if part not in ("", ".", "..")][-_MAX_DEPTH:], name]


def _label(labels: list[str], where: str) -> str:
    if not labels:
        raise InputError(f"{where}: has no class; give it one")
    return labels[0]


def _mask(kind: str, value: _Value, size: tuple[int, int], where: str) -> Any:
    """Return booleans or polygons."""
    height, width = size
    if kind == "brush":
        try:
            return decode_brush(value.rle, size)
        except ValueError as error:
            raise InputError(f"{where}: {error}; export it again, and give the pictures that were drawn on") from error
    x, y = value.x * width / 100, value.y * height / 100
    if kind == "polygon":
        return [[number for a, b in value.points for number in (a * width / 100, b * height / 100)]]
    if kind == "ellipse":
        outline = ellipse(x, y, value.radius_x * width / 100, value.radius_y * height / 100)
    else:
        outline = box(x, y, value.width * width / 100, value.height * height / 100)
    return [rotated(outline, value.rotation, (x, y))]  # a box turns about its first corner


def _read_video(path: Path, results: list[tuple[_Value, str]], where: str, notes: Counter[str]) -> FoundVideo:
    ends = [value.frames_count for value, _ in results] or [1]
    source = open_frames(path, FrameSelection(end=max(ends) if all(ends) else None))
    size = source.height, source.width
    length = max(number for number, _ in source) + 1  # what the header says may be a little wrong
    shown: set[int] = set()
    total = notes[BOXES]
    for value, place in results:
        for number, _ in _boxes(value, length):
            shown.add(number)
            total += 1
            if total > _MAX_BOXES:
                raise InputError(f"{place}: is more than {_MAX_BOXES:,} boxes with those before; import fewer at once")
    numbers = range(min(shown), max(shown) + 1) if shown else range(1)
    frames = [FrameFile(f"frame_{number:06d}.jpg", path, where, number) for number in numbers]
    video = FoundVideo(path.stem, frames, size, notes)
    for key, (value, place) in enumerate(results):
        label = _label(value.labels, place)
        for number, shape in _boxes(value, length):
            notes[BOXES] += 1
            video.add(key, label, number - numbers.start, _mask("box", shape, size, place), place, track_id=key)
    return video


def _boxes(value: _Value, length: int) -> Iterator[tuple[int, _Value]]:
    """Yield frame (from 0) and box of a track, between two of its keys in a straight line."""
    length = min(value.frames_count or length, length)
    keys = sorted({key.frame: key for key in value.sequence}.values(), key=lambda key: key.frame)
    for index, key in enumerate(keys):
        following = keys[index + 1] if index + 1 < len(keys) else None
        stop = (following.frame if following else length + 1) if key.enabled else key.frame + 1
        for frame in range(key.frame, min(stop, length + 1)):
            part = 0.0 if following is None else (frame - key.frame) / (following.frame - key.frame)
            other = following or key
            sides = (
                getattr(key, name) * (1 - part) + getattr(other, name) * part
                for name in ("x", "y", "width", "height", "rotation")
            )
            x, y, width, height, rotation = sides
            yield frame - 1, _Value(x=x, y=y, width=width, height=height, rotation=rotation)
