"""What ``clipvis predict`` is given: one video or image, or many of them by patterns, folders and lists."""

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import write_text
from clipvis_jax.media.images import IMAGE_SUFFIXES, natural_order

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".webm", ".wmv", ".y4m"),
)
"""Of the files that are taken from a folder of videos; a file that is named itself may have any."""


def find_sources(given: Sequence[Path]) -> list[Path]:
    """List the videos and images that are meant, in natural order where a folder or a pattern stands for several.

    A folder of images is a video of them. A folder without images stands for the videos and folders of images in it. A
    path with ``*``, ``?`` or ``[`` that does not exist is a pattern (``**`` stands for folders of any depth).

    Raises:
        InputError: A pattern or a folder matches nothing.
    """
    found: list[Path] = []
    for path in given:
        if os.path.exists(path) or not glob.has_magic(str(path)):  # noqa: PTH110 (never raises)
            members = [] if _has_images(path) else _members(path)
            found += members or [path]
            continue
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)), key=natural_order)  # noqa: PTH207
        if not matches:
            raise InputError(f"{path}: matches nothing; check the pattern")
        found += [match for match in matches if match.is_file() or _has_images(match)]
    return list(dict.fromkeys(found))


def folder_names(sources: Sequence[Path]) -> list[str]:
    """Name a folder of results for every source: by the file's name, with its suffix only where two would be one.

    Raises:
        InputError: Two sources have one name.
    """
    stems = [source.resolve().name if source.is_dir() else source.resolve().stem for source in sources]
    counts = Counter(stems)
    names = [source.resolve().name if counts[stem] > 1 else stem for source, stem in zip(sources, stems, strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            first, second = [source for source, other in zip(sources, names, strict=True) if other == name][:2]
            raise InputError(f"{first} and {second} would both be written to the folder {name}; give them separately")
    return names


class Finished:
    """The sources whose results are whole, in ``finished.json`` of the folder of results."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Read what an earlier run with these settings has finished.

        Raises:
            InputError: The folder is of other settings, or its file is damaged.
        """
        self._path = folder / "finished.json"
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        self._sources: dict[str, list[Any]] = {}
        if not self._path.exists():
            return
        try:
            content = json.loads(self._path.read_bytes())
            digest, sources = content["settings"], dict(content["sources"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path}: damaged; delete it, and all is segmented again") from error
        if digest != self._digest:
            raise InputError(f"{folder}: holds results of other settings or another model; choose another --out")
        self._sources = sources

    def has(self, name: str, source: Path) -> bool:
        """Whether there are whole results of a source, which has not changed since."""
        is_there = source.exists() and (self._path.parent / name / "tracks.json").is_file()
        return is_there and self._sources.get(name) == _state(source)

    def add(self, name: str, source: Path) -> None:
        """Note that the results of a source are whole."""
        self._sources[name] = _state(source)
        write_text(self._path, json.dumps({"settings": self._digest, "sources": self._sources}, indent=1) + "\n")


def _state(source: Path) -> list[Any]:
    status = source.stat()
    return [str(source.resolve()), status.st_size, status.st_mtime_ns]


def _members(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(_visible(folder), key=natural_order)
        if (path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES) or (path.is_dir() and _has_images(path))
    ]


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in _visible(folder))


def _visible(folder: Path) -> list[Path]:
    """List a folder; nothing of what cannot be listed, which whoever opens it says better."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
