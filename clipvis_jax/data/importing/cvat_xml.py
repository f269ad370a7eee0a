"""CVAT's own XML, "CVAT for video 1.1" and "CVAT for images 1.1".

By hand, for the tracks; read as a stream by expat, and refused if it declares a document type: no entity can grow, and
none leads to another file.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from xml.etree.ElementTree import ParseError, XMLParser

import msgspec
import numpy as np

from clipvis_jax.data.importing.coco_files import find_files
from clipvis_jax.data.importing.found import BOXES, Found, FoundVideo, FrameFile, Pictures, check_size, size_of
from clipvis_jax.data.importing.shapes import OTHERS, box, ellipse, rotated
from clipvis_jax.errors import InputError, show
from clipvis_jax.masks.rle import MAX_SIDE

_BLOCK = 2**16
_MAX_DEPTH = 32
_MAX_FRAMES = 10**6
_NO_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")

Frame = Annotated[int, msgspec.Meta(ge=0, lt=_MAX_FRAMES)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class _Image(msgspec.Struct):
    name: str
    height: Side
    width: Side
    subset: str = ""


class _Track(msgspec.Struct):
    id: int
    label: str
    task_id: str = ""


class _Shape(msgspec.Struct, kw_only=True):
    """The attributes of a shape, in pixels and degrees; which of them it has hangs on its kind."""

    label: str = ""
    frame: Frame = 0
    outside: int = 0
    rotation: float = 0.0
    points: str = ""
    rle: str = ""
    left: int = 0
    top: int = 0
    width: int = 0
    height: int = 0
    xtl: float = 0.0
    ytl: float = 0.0
    xbr: float = 0.0
    ybr: float = 0.0
    cx: float = 0.0
    cy: float = 0.0
    rx: float = 0.0
    ry: float = 0.0


class _Document:
    """What the parser calls for every element; keeps images, tracks and shapes, and the texts of ``meta``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, str] = {}
        self.labels: list[str] = []
        self.images: list[tuple[_Image, list[tuple[str, _Shape, str]]]] = []
        self.tracks: list[tuple[_Track, list[tuple[str, _Shape, str]]]] = []
        self._tags: list[str] = []
        self._text: list[str] = []
        self._where = str(path)

    def doctype(self, *_: str | None) -> None:
        raise InputError(f"{self.path}: declares a document type, which CVAT does not; remove it")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        parent = self._tags[-1] if self._tags else ""
        self._tags.append(tag)
        self._text = []
        if len(self._tags) == 1 and tag != "annotations":
            raise InputError(
                f"{self.path}: begins with {show(tag)}, but CVAT's XML with 'annotations'; give another file"
            )
        if len(self._tags) > _MAX_DEPTH:
            raise InputError(f"{self.path}: is nested more deeply than CVAT's XML; give another file")
        if self._tags == ["annotations", "image"]:
            self._where = f"{self.path}: image {show(attributes.get('name'))}"
            self.images.append((self._convert(attributes, _Image), []))
        elif self._tags == ["annotations", "track"]:
            self._where = f"{self.path}: track {attributes.get('id')}"
            self.tracks.append((self._convert(attributes, _Track), []))
        elif len(self._tags) == 3 and parent in ("image", "track"):
            where = self._where + (f", frame {attributes.get('frame')}" if parent == "track" else "")
            # A skeleton's parts are not looked at, and so need no schema.
            shape = _Shape() if tag in _NO_AREA else self._convert(attributes, _Shape, where)
            (self.images if parent == "image" else self.tracks)[-1][1].append((tag, shape, where))

    def data(self, text: str) -> None:
        if self._tags[1:2] == ["meta"]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if self._tags[1:2] == ["meta"]:
            text = "".join(self._text).strip()
            if self._tags[-2:] == ["label", "name"]:
                self.labels.append(text)
            elif self._tags[2:3] and self._tags[3:4] == [tag]:  # below task, job or project
                self.meta[tag] = text
            elif "original_size" in self._tags:
                self.meta[f"original_{tag}"] = text
        self._text = []
        self._tags.pop()

    def close(self) -> "_Document":
        return self

    def _convert(self, attributes: dict[str, str], kind: Any, where: str | None = None) -> Any:
        try:
            return msgspec.convert(attributes, kind, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"{where or self._where}: {str(error).replace('`', '')}; correct the file") from error


def read_cvat_xml(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read annotations.xml of CVAT; with tracks it is a video, the frames of which are called frame_000012 and so on.

    Frames without a picture and without an instance are left out.

    Raises:
        InputError: A file or picture is missing or cannot be used.
    """
    documents = []
    for source in sources:
        for path in find_files(source, "annotations.xml", "*.xml", "*/annotations.xml"):
            documents.append(_parse(path))
    found = Found(any(document.tracks for document in documents), [], [])
    for document in documents:
        root = document.path.parent
        found.labels.extend(document.labels)
        if found.is_video:
            if not document.tracks:
                raise InputError(f"{document.path}: has no tracks, but others have; import pictures and videos apart")
            pictures = Pictures(images, root / "images" / "default", root / "images", root).below(root.resolve().name)
            found.videos.append(_read_video(document, pictures, notes))
            continue
        for image, shapes in document.images:
            folders = (root / "images" / (image.subset or "default"), root / "images", root)
            pictures = Pictures(images, *folders)
            pictures.check_no_video()
            frames = [pictures.find(image.name, f"{document.path}: image {show(image.name)}")]
            picture = FoundVideo(image.name, frames, (image.height, image.width), notes)
            check_size(frames, picture.size)
            for number, (kind, shape, where) in enumerate(shapes):
                if (mask := _mask(kind, shape, picture.size, where, notes)) is not None:
                    picture.add(number, shape.label, 0, mask, where)
            found.videos.append(picture)
    return found


def _parse(path: Path) -> _Document:
    document = _Document(path)
    parser = XMLParser(target=document)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                parser.feed(block)
        parser.close()
    except (ParseError, LookupError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not valid XML ({error}); export it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return document


def _read_video(document: _Document, pictures: Pictures, notes: Counter[str]) -> FoundVideo:
    if len({track.task_id for track, _ in document.tracks}) > 1:
        raise InputError(f"{document.path}: holds several tasks; export each by itself")
    shown = {shape.frame for _, shapes in document.tracks for _, shape, _ in shapes if not shape.outside}
    frames = _frames(document, shown, pictures)
    places = {number: index for index, number in enumerate(frames)}
    files = list(frames.values())
    size = size_of(files, str(document.path))
    own = document.meta.get("original_height"), document.meta.get("original_width")
    if own != (None, None) and own != tuple(map(str, size)):
        raise InputError(
            f"{files[0].path}: is {size[1]}x{size[0]} pixels, but {document.path} is for {own[1]}x{own[0]}"
        )
    title = document.meta.get("name") or document.path.resolve().parent.name
    video = FoundVideo(title, files, size, notes)
    for track, shapes in document.tracks:
        for kind, shape, where in shapes:
            if not shape.outside and (mask := _mask(kind, shape, size, where, notes)) is not None:
                key = track.id, track.label
                video.add(key, track.label, places[shape.frame], mask, where, track_id=track.id)
    return video


def _frames(document: _Document, shown: set[int], pictures: Pictures) -> dict[int, FrameFile]:
    """Return the pictures of a video by frame number: those named after it, or else by their order."""
    numbers = sorted({*_numbers(document), *shown})
    if not numbers:
        raise InputError(f"{document.path}: shows no instance in any frame; nothing to import")
    if pictures.video is not None:
        return {number: pictures.frame(number, str(document.path)) for number in numbers}
    files = {path.stem: FrameFile(path.name, path, str(document.path)) for path in pictures.all}
    frames = {number: files[name] for number in numbers if (name := f"frame_{number:06d}") in files}
    if not frames and len(files) == len(numbers):
        # CVAT sorts names as text unless told otherwise, and the file does not say.
        if sorted(pictures.all) != pictures.all:
            raise InputError(
                f"{pictures.all[0].parent}: it is not known how CVAT sorted these names, as 10 may come before 2; "
                "rename them with leading zeros, or export COCO 1.0, which has the names"
            )
        return dict(zip(numbers, files.values(), strict=True))
    for number in sorted(shown - frames.keys()):
        pictures.find(f"frame_{number:06d}.png", f"{document.path}: frame {number}")  # says where it is missing
    return frames


def _numbers(document: _Document) -> range:
    """Return the frames of a task; none if the file does not say."""
    meta = document.meta
    step = re.fullmatch(r"step=(\d+)", meta.get("frame_filter", ""))
    texts = meta.get("size", "0"), meta.get("start_frame") or "0", step[1] if step else "1"
    if not all(re.fullmatch(r"\d{1,8}", text) for text in texts):
        raise InputError(f"{document.path}: meta has size, start_frame and step of {texts}; whole numbers are needed")
    size, start, stride = map(int, texts)
    if stride < 1 or start + size * stride > _MAX_FRAMES:
        raise InputError(f"{document.path}: meta tells of {size} frames; at most {_MAX_FRAMES} can be imported")
    return range(start, start + size * stride, stride)


def _mask(kind: str, shape: _Shape, size: tuple[int, int], where: str, notes: Counter[str]) -> Any:
    """Return the mask of a shape, as booleans or polygons; nothing if it has no area."""
    if kind == "polygon":
        return [_corners(shape.points, where)]
    if kind == "box":
        notes[BOXES] += 1
        outline = box(shape.xtl, shape.ytl, shape.xbr - shape.xtl, shape.ybr - shape.ytl)
        return [rotated(outline, shape.rotation, ((shape.xtl + shape.xbr) / 2, (shape.ytl + shape.ybr) / 2))]
    if kind == "ellipse":
        outline = ellipse(shape.cx, shape.cy, shape.rx, shape.ry)
        return [rotated(outline, shape.rotation, (shape.cx, shape.cy))]
    if kind == "mask":
        return _drawn(shape, size, where)
    notes[OTHERS] += 1
    return None


def _corners(points: str, where: str) -> list[float]:
    try:
        return [float(number) for point in points.split(";") for number in point.split(",")]
    except ValueError as error:
        raise InputError(f"{where}: points are {show(points)}, not x,y;x,y and so on; correct the file") from error


def _drawn(shape: _Shape, size: tuple[int, int], where: str) -> np.ndarray:
    """Decode CVAT's run lengths, which go row by row through the mask's box and begin with what is outside."""
    rows, columns = slice(shape.top, shape.top + shape.height), slice(shape.left, shape.left + shape.width)
    sides = min(shape.top, shape.left, shape.height - 1, shape.width - 1)
    if sides < 0 or rows.stop > size[0] or columns.stop > size[1]:
        raise InputError(f"{where}: a mask is not within the picture of {size[1]}x{size[0]} pixels; correct the file")
    try:
        counts = [int(text) for text in shape.rle.split(",")]
    except ValueError as error:
        raise InputError(f"{where}: rle is {show(shape.rle)}, not whole numbers; correct the file") from error
    if min(counts) < 0 or sum(counts) != shape.height * shape.width:
        raise InputError(f"{where}: rle does not describe {shape.width}x{shape.height} pixels; correct the file")
    mask = np.zeros(size, bool)
    mask[rows, columns] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape.height, shape.width)
    return mask
