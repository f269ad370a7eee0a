"""What ``clipvis predict`` is given: one video or image, or many of them by patterns, folders and lists."""

import glob
import hashlib
import json
import os
import unicodedata
import warnings
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


def find_sources(given: Sequence[Path], results: Path) -> list[Path]:
    """List the videos and images that are meant, in natural order where a folder or a pattern stands for several.

    A folder of images is a video of them. A folder without images stands for the videos and folders of images in it. A
    path with ``*``, ``?`` or ``[`` that does not exist is a pattern (``**`` stands for folders of any depth). What lies
    in the folder of results is no source, unless it is named itself.

    Raises:
        InputError: A pattern matches nothing, or a folder holds images, but not more than videos.
    """
    found: list[Path] = []
    own = results.resolve()
    for path in given:
        if os.path.exists(path) or not glob.has_magic(str(path)):  # noqa: PTH110 (never raises)
            found += _members(path) or [path]
            continue
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)), key=natural_order)  # noqa: PTH207
        matches = [match for match in matches if own not in (match.resolve(), *match.resolve().parents)]
        members = [part for match in matches for part in ([match] if match.is_file() else _members(match))]
        if not members:
            raise InputError(f"{path}: matches no video or image; check the pattern")
        found += members
    return list(dict.fromkeys(found))


def folder_names(sources: Sequence[Path]) -> list[str]:
    """Name a folder of results for every source: by the file's name, with its suffix only where two would be one.

    Raises:
        InputError: Two sources have one name, as some systems see it (in other letters, or letters of another form).
    """
    paths = [source.resolve() for source in sources]
    stems = [path.name if path.is_dir() or not path.stem.strip(".") else path.stem for path in paths]
    counts = Counter(map(_folded, stems))
    names = [path.name if counts[_folded(stem)] > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    for folded, count in Counter(map(_folded, names)).items():
        if count > 1:
            same = [index for index, name in enumerate(names) if _folded(name) == folded]
            raise InputError(
                f"{sources[same[0]]} and {sources[same[1]]} would both be written to the folder {names[same[0]]}; run "
                "them one after the other, with another --out"
            )
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


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
        """Whether there are whole results of a source, and neither has changed since."""
        try:
            return self._sources[name] == [source_state(source), source_state(self._path.parent / name / "tracks.json")]
        except (OSError, KeyError):
            return False

    def add(self, name: str, state: str) -> None:
        """Note that the results of a source are whole; ``state`` is that of the source when it was opened."""
        self._sources[name] = [state, source_state(self._path.parent / name / "tracks.json")]
        write_text(self._path, json.dumps({"settings": self._digest, "sources": self._sources}, indent=1) + "\n")


def source_state(path: Path) -> str:
    """Tell by names, sizes and times whether a file, or a folder of images, is the same as before.

    Raises:
        OSError: It is not there.
    """
    files = sorted(part for part in _visible(path) if _is_image(part)) if path.is_dir() else [path]
    states = [(os.fsencode(part.name), part.stat().st_size, part.stat().st_mtime_ns) for part in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _members(folder: Path) -> list[Path]:
    """Return what a folder stands for: itself if it holds images, else the videos and folders of images in it.

    Raises:
        InputError: It holds images, but not more than videos.
    """
    members = sorted(_visible(folder), key=natural_order)
    videos = [path for path in members if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    images = [path for path in members if _is_image(path)]
    if images and videos:
        both = f"{folder}: holds {len(images)} image(s) and {len(videos)} video(s)"
        if len(images) <= len(videos):
            raise InputError(f"{both}; name the videos, or put the images into a folder of their own")
        warnings.warn(f"{both}; the images are taken, as one video", stacklevel=2)
    if images:
        return [folder]
    return [path for path in members if path in videos or any(map(_is_image, _visible(path)))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _visible(folder: Path) -> list[Path]:
    """List a folder; nothing of what cannot be listed, which whoever opens it says better."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
