"""YOLO's segmentation format: data.yaml, pictures, and a text file of polygons for each.

By hand: a line is a class and its corners, and the rest is finding the files, about which tools disagree.
"""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from clipvis_jax.data.importing.found import Found, FoundVideo, FrameFile, size_of
from clipvis_jax.errors import InputError, show
from clipvis_jax.media.images import list_images

_MAX_YAML = 2**20
"""Bytes of data.yaml; it holds some paths and the classes' names."""


class _Data(msgspec.Struct):
    names: list[str] | dict[int, str]
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None


def read_yolo(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read data.yaml and what it names: folders or lists of pictures, with labels/*.txt for images/*.jpg.

    Lines of four numbers are boxes. Pictures without a text file have no instance.

    Raises:
        InputError: A file is missing or cannot be used.
    """
    found = Found(False, [], [])
    for source in sources:
        path = _data_file(source)
        data = _load(path)
        names = dict(enumerate(data.names)) if isinstance(data.names, list) else data.names
        found.labels.extend(names.values())
        roots = [path.parent] if images is None else [images, path.parent]
        for split in ("train", "val", "test"):
            places = getattr(data, split) or []
            for place in [places] if isinstance(places, str) else places:
                pictures = _list(roots, data.path, place, f"{path}: {split}")
                if not pictures and split != "test":  # which exports name also where they have none
                    raise InputError(f"{path}: {split} is {show(place)}, which is not below {roots[0]}; complete it")
                for picture in pictures:
                    frames = [FrameFile(picture.name, picture, f"{path}: {split}")]
                    video = FoundVideo(split, frames, size_of(frames, str(picture)), notes, split)
                    _add_lines(video, _label_file(picture, roots), names)
                    found.videos.append(video)
        if not found.videos:
            raise InputError(f"{path}: names no pictures; it needs train, val or test")
    return found


def _data_file(source: Path) -> Path:
    if source.is_dir():
        names = ("data.yaml", "data.yml", "dataset.yaml")
        paths = [*(source / name for name in names), *sorted((*source.glob("*.yaml"), *source.glob("*.yml")))]
        source = next((path for path in paths if path.is_file()), source / "data.yaml")
    if not source.is_file():
        raise InputError(f"{source}: does not exist; give data.yaml or its folder")
    return source


def _load(path: Path) -> _Data:
    if path.stat().st_size > _MAX_YAML:
        raise InputError(f"{path}: is larger than 1 MiB; give a file with names, train and val")
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=_Data)
    # What the YAML package makes of odd tags gets through some versions of msgspec.
    except (msgspec.DecodeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).replace("`", "").split())[:200]
        raise InputError(f"{path}: is no data.yaml of YOLO ({reason}); correct it") from error


def _list(roots: list[Path], base: str | None, place: str, where: str) -> list[Path]:
    """Return the pictures of a folder or of a list; none if it is not there.

    Paths are of the machine that wrote the file: absolute ones, or with ".." before. What counts is where below the
    roots their last parts are found.
    """
    target = _below(roots, f"{base or ''}/{place}") or _below(roots, place)
    if target is None:
        return []
    if target.is_dir():
        return list_images(target)
    try:
        lines = [line.strip() for line in target.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{target}: is no list of pictures; correct {where}") from error
    pictures = []
    for line in lines:
        picture = _below(roots, line)
        if picture is None or not picture.is_file():
            raise InputError(f"{target}: names {show(line)}, which is not below {roots[0]}; complete the folder")
        pictures.append(picture)
    return pictures


def _below(roots: list[Path], name: str) -> Path | None:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    places = (root.joinpath(*parts[start:]) for start in range(len(parts)) for root in roots)
    return next((path for path in places if path.exists()), None)


def _label_file(picture: Path, roots: list[Path]) -> Path:
    """Return the text file of a picture: "labels" takes the place of the last "images" of its path.

    Of pictures that lie elsewhere, texts are looked for at the same place below "labels".
    """
    *images, root = roots
    if images and picture.is_relative_to(images[0]):
        return (root / "labels" / picture.relative_to(images[0])).with_suffix(".txt")
    parts = list(picture.relative_to(root).parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return root.joinpath(*parts, f"{picture.stem}.txt")


def _add_lines(picture: FoundVideo, path: Path, names: dict[int, str]) -> None:
    if not path.is_file():
        return
    height, width = picture.size
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text; give the labels that YOLO writes") from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            first, *rest = line.split()
            index, values = int(first), np.array([float(value) for value in rest])
        except ValueError as error:
            raise InputError(f"{where} is {show(line)}, but a class and numbers are needed; correct it") from error
        if index not in names:
            raise InputError(f"{where} has class {index}, which data.yaml does not name; name it")
        # Polygons that leave the picture a little are cut off at its edge.
        if not (np.abs(values - 0.5) <= 1.5).all():
            raise InputError(f"{where} has numbers far outside of 0 to 1; they are parts of the picture's sides")
        if len(values) == 4:
            x, y, w, h = (values * [width, height, width, height]).tolist()
            picture.add_box(number, names[index], 0, (x - w / 2, y - h / 2, w, h), where)
        elif len(values) >= 6 and len(values) % 2 == 0:
            polygon = (values.reshape(-1, 2) * [width, height]).ravel().tolist()
            picture.add(number, names[index], 0, [polygon], where)
        else:
            raise InputError(f"{where} has {len(values)} numbers after the class; a polygon has 6 or more, two by two")
