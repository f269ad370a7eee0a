"""Masks as pictures, one per frame, whose pixels say which instance they show: DAVIS, MOTS; and MOTS as text.

By hand: the pictures hold the whole format, and what reads them elsewhere (datumaro, trackeval) brings much more.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from clipvis_jax.data.importing.found import Found, FoundVideo, FrameFile, Pictures, number_of, size_of
from clipvis_jax.errors import InputError, show
from clipvis_jax.io.json_text import read_json
from clipvis_jax.masks.rle import MAX_SIDE
from clipvis_jax.media.images import natural_order, read_label_map

_MOTS_IDS = 1000
_MOTS_IGNORED = 10
"""The class of regions that KITTI MOTS and MOTSChallenge leave out of account."""
_MOTS_CLASSES = ["car", "pedestrian"]
"""Those of KITTI MOTS and MOTSChallenge, which have no labels.txt; they count from 1."""
_VOID = 255


def read_davis(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read folders of label maps: Annotations/VIDEO/*.png with JPEGImages/VIDEO, or those of ``export-results --png``.

    Classes are those of labels.csv, as our own export writes it, or of davis_semantics.json; else all are "object".

    Raises:
        InputError: A file is missing or cannot be used.
    """
    found = Found(True, [], [])
    for source in sources:
        for folder, maps in _folders(source, "Annotations", "labels"):
            name = folder.name if folder.name not in ("Annotations", "labels") else folder.parent.resolve().name
            pictures = _pictures(images, folder, name, "Annotations", "JPEGImages").below(name)
            video = _video(folder, maps, name, pictures, notes)
            labels = _davis_labels(folder, source, name)
            found.labels.extend(label for label, _ in labels.values())
            for index, path in enumerate(maps):
                values, mode = read_label_map(path)
                _check_size(values, video, path)
                for value in np.flatnonzero(np.bincount(values.ravel())).tolist():
                    # DAVIS 2016 has grey pictures, white where the object is; in those with a palette 255 is void.
                    if value == 0 or (value == _VOID and mode == "P" and value not in labels):
                        continue
                    label, track_id = labels.get(value, ("object", value))
                    where = f"{path}: instance {value}"
                    video.add(value, label, index, values == value, where, track_id=track_id)
            found.videos.append(video)
    return _checked(found)


def read_mots(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read MOTS, as pictures (instances/*.png or instances/VIDEO/*.png) or as text (VIDEO.txt, or VIDEO/gt/gt.txt).

    A pixel, or an id in a text, is class x 1000 + instance. labels.txt names the classes, from 1.

    Raises:
        InputError: A file is missing or cannot be used.
    """
    found = Found(True, [], [])
    for source in sources:
        texts = _text_files(source)
        if texts:
            for path in texts:
                _add_text(found, path, source, images, notes)
            continue
        for folder, maps in _folders(source, "instances"):
            name = folder.name if folder.name != "instances" else folder.parent.resolve().name
            pictures = _pictures(images, folder, name, "instances", "images", "image_02")
            labels = _mots_labels(folder, source)
            video = _video(folder, maps, name, pictures.below(name), notes)
            found.labels.extend(labels)
            for index, path in enumerate(maps):
                values, mode = read_label_map(path)
                if not mode.startswith("I"):
                    raise InputError(
                        f"{path}: has 8 bits per pixel, but MOTS pictures have 16; is it a davis label map?"
                    )
                _check_size(values, video, path)
                for value in np.flatnonzero(np.bincount(values.ravel())).tolist():
                    if value and (label := _mots_label(value, labels, str(path))):
                        where = f"{path}: instance {value}"
                        video.add(value, label, index, values == value, where, track_id=value % _MOTS_IDS)
            found.videos.append(video)
    return _checked(found)


def _folders(source: Path, *parts: str) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the folders of PNG pictures below a source, in those named like one of the parts if there are any.

    Raises:
        InputError: There are none.
    """
    if not source.is_dir():
        raise InputError(f"{source}: is not a folder; give the one that holds {' or '.join(parts)} (unpacked)")
    maps: dict[Path, list[Path]] = {}
    for path in source.rglob("*.[pP][nN][gG]"):
        if path.is_file() and not path.name.startswith("."):
            maps.setdefault(path.parent, []).append(path)
    named = [folder for folder in maps if any(part in folder.relative_to(source).parts for part in parts)]
    chosen = named or [folder for folder in maps if folder == source or set(folder.resolve().parts) & set(parts)]
    if not chosen:
        raise InputError(f"{source}: holds no mask pictures (*.png) below {' or '.join(parts)}; give another folder")
    for folder in sorted(chosen, key=natural_order):
        yield folder, sorted(maps[folder], key=natural_order)


def _pictures(images: Path | None, folder: Path, name: str, part: str, *instead: str) -> Pictures:
    """Return the pictures that belong to a folder of masks: those of the folder with another part in its path."""
    parts = folder.resolve().parts
    places = [index for index, found in enumerate(parts) if found == part]
    if not places:
        return Pictures(images, *(folder.resolve().parent / other for other in (*instead, "JPEGImages", "images")))
    others = [Path(*parts[: places[-1]], other, *parts[places[-1] + 1 :]) for other in instead]
    return Pictures(images, *others)


def _video(folder: Path, maps: list[Path], name: str, pictures: Pictures, notes: Counter[str]) -> FoundVideo:
    frames = [pictures.find(path.name, str(path)) for path in maps]
    return FoundVideo(name, frames, size_of(frames, str(folder)), notes)


def _check_size(values: np.ndarray, video: FoundVideo, path: Path) -> None:
    if values.shape != video.size:
        raise InputError(
            f"{path}: is {values.shape[1]}x{values.shape[0]} pixels, but its picture {video.size[1]}x{video.size[0]}; "
            "give the pictures that were annotated"
        )


def _checked(found: Found) -> Found:
    for name, count in Counter(video.name for video in found.videos).items():
        if count > 1:
            raise InputError(
                f"{name}: there are {count} videos of this name, perhaps in several sizes; give one folder"
            )
    return found


class _Label(msgspec.Struct):
    value: Annotated[int, msgspec.Meta(ge=1, le=_VOID)]
    track_id: int
    name: str = msgspec.field(name="class")


def _davis_labels(folder: Path, source: Path, name: str) -> dict[int, tuple[str, int]]:
    """Return class and track id by pixel value, as far as a file tells."""
    table, semantics = folder.with_suffix(".csv"), source / "davis_semantics.json"
    if table.is_file():
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                rows = [msgspec.convert(row, _Label, strict=False) for row in csv.DictReader(file)]
        except (UnicodeDecodeError, csv.Error, msgspec.ValidationError) as error:
            raise InputError(f"{table}: is no table of value, track_id and class ({error}); correct it") from error
        # An apostrophe keeps spreadsheets from taking a name for a formula.
        return {row.value: (re.sub(r"^'(?=[=+\-@\t\r])", "", row.name), row.track_id) for row in rows}
    if semantics.is_file():
        known = read_json(semantics, dict[str, dict[str, str]], "correct it, or remove it")
        return {int(value): (label, int(value)) for value, label in known.get(name, {}).items() if value.isdecimal()}
    return {}


def _text_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    patterns = ("gt/gt.txt", "*/gt/gt.txt", "instances_txt/*.txt", "*.txt")
    for pattern in patterns if source.is_dir() else ():
        paths = [path for path in sorted(source.glob(pattern)) if re.fullmatch(r"gt|[\w-]*\d[\w-]*", path.stem)]
        if paths:
            return paths
    return []


def _mots_labels(folder: Path, root: Path) -> list[str]:
    """Return the classes of the nearest labels.txt up to a root, or else those of KITTI MOTS and MOTSChallenge."""
    folder, root = folder.resolve(), root.resolve()
    for place in (folder, *folder.parents):
        path = place / "labels.txt"
        if path.is_file():
            try:
                return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8; save it as that") from error
        if place == root:
            break
    return _MOTS_CLASSES


def _mots_label(value: int, labels: list[str], where: str) -> str | None:
    """Return the class of an id; None for regions that count for nothing."""
    number = value // _MOTS_IDS
    if 1 <= number <= len(labels):
        return labels[number - 1]
    if number == _MOTS_IGNORED:
        return None
    raise InputError(f"{where}: has the id {value} of class {number}, but there are {len(labels)} classes; name all")


class _Line(msgspec.Struct, array_like=True):
    """A line of MOTS as text; height and width in pixels, ``counts`` COCO's compressed run lengths."""

    frame: Annotated[int, msgspec.Meta(ge=0, le=10**6)]
    instance: Annotated[int, msgspec.Meta(ge=1, le=10**7)]
    class_number: int
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    counts: str


def _add_text(found: Found, path: Path, source: Path, images: Path | None, notes: Counter[str]) -> None:
    is_challenge = path.stem == "gt"
    root = path.resolve().parents[1 if is_challenge else 0]
    name = root.name if is_challenge else path.stem
    folders = [root / "img1"] if is_challenge else [root.parent / part / name for part in ("images", "image_02")]
    pictures = Pictures(images, *folders, root / "images").below(name)
    labels = _mots_labels(path.parent, source if source.is_dir() else root)
    found.labels.extend(labels)
    lines = list(_lines(path))
    if not lines:
        raise InputError(f"{path}: holds no mask; give another file")
    if pictures.video is not None:
        numbers = [line.frame for line in lines]
        start = 1 if is_challenge else 0  # KITTI MOTS counts from 0
        if min(numbers) < start:
            raise InputError(f"{path}: has a frame 0, but MOTSChallenge counts from 1; correct it")
        frames = {n: pictures.frame(n - start, str(path)) for n in range(min(numbers), max(numbers) + 1)}
    else:
        files = [FrameFile(picture.name, picture, str(path)) for picture in pictures.all]
        frames = {number_of(file.name, str(file.path)): file for file in files}
        if len(frames) < len(files):
            raise InputError(f"{files[0].path.parent}: pictures end with the same number; give each frame one picture")
    if not frames:
        raise InputError(f"{path}: has no folder of pictures beside it; say where the pictures (or the video) are")
    video = FoundVideo(name, list(frames.values()), size_of(list(frames.values()), str(path)), notes)
    places = {number: index for index, number in enumerate(frames)}
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        if line.frame not in places:
            raise InputError(f"{where}: is of frame {line.frame}, of which there is no picture; give all pictures")
        if label := _mots_label(line.class_number * _MOTS_IDS, labels, where):
            mask = {"size": [line.height, line.width], "counts": line.counts}
            track_id = line.instance % _MOTS_IDS
            video.add((line.class_number, line.instance), label, places[line.frame], mask, where, track_id=track_id)
    found.videos.append(video)


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(encoding="ascii") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    try:
                        yield msgspec.convert(text.split(), _Line, strict=False)
                    except msgspec.ValidationError as error:
                        raise InputError(
                            f"{path}: line {number} is {show(text.strip())}, not frame, id, class, height, width and "
                            f"run lengths ({error}); correct it"
                        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text of MOTS ({error.reason}); give another file") from error
