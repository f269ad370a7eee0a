"""What ``clipvis app`` does with an upload: take it in, segment, rename, draw, hand out. Nothing here knows a page."""

import dataclasses
import html
import mmap
import os
import re
import shutil
import tempfile
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax import bundled
from clipvis_jax.commands import predict_outputs
from clipvis_jax.commands.export_results import ExportResults
from clipvis_jax.errors import InputError, show
from clipvis_jax.inference.raw_video import load_video, save_video
from clipvis_jax.inference.result_formats import crops
from clipvis_jax.inference.results import Track, VideoResult
from clipvis_jax.inference.segmenter import Background, Segmenter
from clipvis_jax.media.images import IMAGE_SUFFIXES
from clipvis_jax.media.video_reader import FrameSelection, FrameSource, open_frames
from clipvis_jax.media.video_writer import VideoWriter
from clipvis_jax.media.visualize import track_color
from clipvis_jax.text.vocabulary import check_vocabulary, short_names

LOWEST_SCORE = 0.05
"""Tracks below it are not kept: their masks would take most of the time."""
MAX_CLASSES = 500
MAX_SYNONYMS = 2000
"""Of all classes together, their first names included: each costs the text encoder 14 sentences."""
FILES = {
    "tracks.json": "tracks",
    "overlay": "overlay",
    "CSV": "csv",
    "masks (PNG)": "png",
    "crops": "crops",
    "COCO": "coco",
    "Label Studio": "labelstudio",
    "MOTChallenge": "mot",
    "MOTS": "mots",
}
"""What can be downloaded, and the option of ``clipvis export-results`` for it."""
_CROPS = 8
_MOST_FILES, _LEAST_FREE = 50, 5
"""Uploads of full size that all files together may be as large as, and that must still fit on the disk."""
_ALL = FrameSelection()
Tell = Callable[[int, int | None, str], None]
"""Hears of progress: frames that are done, all frames (if known), and what is done."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is taken in.

    Attributes:
        megabytes: Size of an upload, and of what a zip holds.
        frames: Frames of a video, or pictures of a zip.
        pixels: Pixels of a frame. Those of all frames of a video may be as many as ``frames`` in Full HD have.
    """

    megabytes: int = 200
    frames: int = 600
    pixels: int = 50_000_000

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise InputError(f"{name} {value}: must be 1 or more")

    def check(self, name: str, frames: int, height: int, width: int) -> None:
        """Refuse a video that is too long.

        Raises:
            InputError: It is.
        """
        most = min(self.frames, max(self.frames * 1920 * 1080 // (height * width), 1))
        if frames > most:
            raise InputError(
                f"{name}: has more than {most} frames of {width}x{height} pixels; cut it, or make it smaller"
            )


@dataclasses.dataclass(frozen=True)
class Job:
    """An upload and its tracks.

    Attributes:
        folder: Holds the upload and raw.npz; removed with the last job that has it.
        path: The upload in there: a file, or a folder of frames.
        is_image: Whether it is a picture.
        limits: What is taken in.
        facts: What tracks.json tells of the video.
        result: The tracks, without what the network said of them.
    """

    folder: "_Folder"
    path: Path
    is_image: bool
    limits: Limits
    facts: dict[str, Any]
    result: VideoResult

    def open_frames(self) -> FrameSource:
        """Open the frames once more: a source is for one reader."""
        return open_frames(self.path, on_error="skip", max_pixels=self.limits.pixels)

    def found(self) -> list[tuple[str, str]]:
        """Return the classes that have tracks: their short names, and in full."""
        names = {track.class_index for track in self.result.best().tracks}
        return [
            (short_names(self.result.class_names)[index], self.result.class_names[index]) for index in sorted(names)
        ]

    def shown(self, min_score: float, hidden: Collection[str] = ()) -> VideoResult:
        """Return every instance that scores high enough under its best class, without those of hidden classes."""
        enough = [track for track in self.result.tracks if track.score >= min_score]
        best = dataclasses.replace(self.result, tracks=enough).best()
        return dataclasses.replace(best, tracks=[track for track in best.tracks if track.class_name not in hidden])


class _Folder:
    """A folder that is removed when nobody has this object any more, or the process ends."""

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="job-", dir=parent))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def check_space(scratch: Path, limits: Limits) -> None:
    """Refuse to write more where the disk is nearly full, or files have taken their share of it.

    Raises:
        InputError: It is, or they have.
    """
    taken = 0
    for folder, _, names in os.walk(scratch):
        for name in names:
            with suppress(OSError):  # deleted meanwhile
                taken += Path(folder, name).stat().st_size
    upload = limits.megabytes * 10**6
    if taken > _MOST_FILES * upload or shutil.disk_usage(scratch).free < _LEAST_FREE * upload:
        raise InputError("this machine has no space for more files now; come again in an hour")


def read_words(words: str) -> list[str]:
    """Read class names, one per line, with synonyms after commas.

    Raises:
        InputError: There is none, too many, or one that cannot be used.
    """
    names = [line.strip() for line in words.splitlines() if line.strip()]
    synonyms = sum(name.count(",") + 1 for name in names)
    if len(names) > MAX_CLASSES or synonyms > MAX_SYNONYMS:
        raise InputError(
            f"{len(names)} class names, {synonyms} with synonyms: give at most {MAX_CLASSES}, and {MAX_SYNONYMS} with "
            "synonyms"
        )
    check_vocabulary(names)
    return names


def segment(
    segmenter: Segmenter,
    upload: Path,
    names: Sequence[str],
    background: Background,
    *,
    scratch: Path,
    limits: Limits,
    tell: Tell = lambda *_: None,
) -> Job:
    """Take an upload in, and run the network on it.

    Args:
        segmenter: The model.
        upload: A video, an image, or a zip of a folder's images. It stays as it is.
        names: Class names.
        background: See ``Segmenter.predict``.
        scratch: Folder in which the job has its own.
        limits: What is taken in.
        tell: Hears of progress.

    Raises:
        InputError: The upload or a class name cannot be used, or there is no space for it.
    """
    check_space(scratch, limits)
    folder = _Folder(scratch)
    (folder.path / "in").mkdir()
    path = _take_in(upload, folder.path / "in", limits)
    source = open_frames(path, on_error="skip", max_pixels=limits.pixels)
    limits.check(source.name, source.expected_frames or 1, source.height, source.width)
    watched = _Watched(source, limits, tell, "segmenting")
    result = segmenter.predict(watched, names, background=background, min_score=LOWEST_SCORE, keep_raw=True)
    assert result.raw is not None
    save_video(folder.path / predict_outputs.RAW, result.raw.video)
    facts = predict_outputs.video_facts(result, source, _ALL)
    return Job(folder, path, source.kind == "image", limits, facts, dataclasses.replace(result, raw=None))


def rename(segmenter: Segmenter, job: Job, names: Sequence[str], background: Background) -> Job:
    """Give the job of other class names, without the network.

    Raises:
        InputError: A class name cannot be used.
    """
    raw, _ = load_video(job.folder.path / predict_outputs.RAW)
    result = segmenter.rename(raw, names, background=background, min_score=LOWEST_SCORE)
    return dataclasses.replace(
        job, result=dataclasses.replace(result, raw=None, frame_numbers=job.result.frame_numbers)
    )


def draw(job: Job, result: VideoResult, folder: Path, tell: Tell = lambda *_: None) -> Path:
    """Write the overlay of a result into a folder; returns its path."""
    path = folder / predict_outputs.OVERLAYS[job.is_image]
    source = _Watched(job.open_frames(), job.limits, tell, "drawing")
    times_s = job.facts.get("frame_times_s")
    predict_outputs.write_overlay(path, result, source, _ALL, show_progress=False, times_s=times_s)
    return path


def write_files(job: Job, result: VideoResult, kinds: Sequence[str], folder: Path) -> list[Path]:
    """Write a result into a folder in some of the formats of ``FILES``; several files of one format as a zip.

    Raises:
        InputError: There is no such format, or none is given.
    """
    if not kinds or set(kinds) - set(FILES):
        raise InputError(f"files {show(list(kinds))}: choose from {', '.join(FILES)}")
    written = []
    for kind in dict.fromkeys(kinds):
        option = FILES[kind]
        if option == "tracks":
            with predict_outputs.writing_tracks(folder, result, job.facts, embeddings=False, replaces=()) as (_, paths):
                written += paths
        elif option == "overlay":
            written.append(draw(job, result, folder))
        else:
            chosen: dict[str, Any] = {option: True}
            export = ExportResults(Path("tracks.json"), source=job.path, **chosen)
            target = folder / option
            target.mkdir()
            export.write(
                target, result, job.facts.get("frame_times_s"), job.open_frames() if option == "crops" else None
            )
            files = list(target.iterdir())
            if len(files) == 1 and files[0].is_file():
                written.append(files[0])
            else:
                written.append(Path(shutil.make_archive(str(folder / f"{option}"), "zip", target)))
                shutil.rmtree(target)
    return written


def table(result: VideoResult) -> list[list[Any]]:
    """Return a row for every track: id, name, score, number of frames that show it."""
    return [
        [track.track_id, name, f"{track.score:.3f}", len(_frames(track))]
        for track, name in zip(result.tracks, _names(result), strict=True)
    ]


def timeline(result: VideoResult) -> str:
    """Draw as HTML when every track is seen: a row of its name and a bar over all frames."""
    rows = []
    for track, name in zip(result.tracks, _names(result), strict=True):
        frames = _frames(track)
        ends = np.flatnonzero(np.diff(frames, prepend=-2, append=result.num_frames + 1) > 1)
        runs = [(int(frames[a]), int(frames[b - 1]) + 1) for a, b in pairwise(ends)]
        bars = "".join(f'<rect x="{start}" y="0" width="{end - start}" height="1"/>' for start, end in runs)
        seen = ", ".join(f"{start} to {end - 1}" for start, end in runs) or "none"
        label = html.escape(f"{track.track_id} {name}")
        rows.append(
            f'<div class="track"><span title="{label}">{label}</span><svg viewBox="0 0 {result.num_frames} 1" '
            f'preserveAspectRatio="none" role="img" aria-label="frames {seen}" fill="rgb{track_color(track.track_id)}">'
            f"<title>frames {seen}</title>{bars}</svg></div>"
        )
    return f'<div class="timeline">{"".join(rows)}</div>'


def cut_outs(job: Job, result: VideoResult, track_id: int) -> list[tuple[Image.Image, str]]:
    """Cut a track out of some frames, evenly over those that show it; with each, its frame's number.

    Raises:
        InputError: The result has no such track.
    """
    track = _track(result, track_id)
    frames = _frames(track)
    chosen = set(frames[np.linspace(0, len(frames) - 1, min(_CROPS, len(frames))).round().astype(int)].tolist())
    pictures = []
    alone = dataclasses.replace(result, tracks=[track])
    for index, _, picture in crops(alone, _until(job.open_frames(), max(chosen, default=-1) + 1)):
        if index in chosen:
            pictures.append((picture, f"frame {job.facts['frame_numbers'][index]}"))
    return pictures


def neighbours(result: VideoResult, track_id: int) -> list[tuple[int, str, float]]:
    """Return ids, names and cosines of the tracks whose CLIP embeddings are nearest to a track's, at most three.

    Raises:
        InputError: The result has no such track.
    """
    track = _track(result, track_id)
    others = [
        (other.track_id, name, float(np.dot(other.embedding, track.embedding)))
        for other, name in zip(result.tracks, _names(result), strict=True)
        if other is not track and other.embedding is not None and track.embedding is not None
    ]
    return sorted(others, key=lambda other: -other[2])[:3]


def example_clip(folder: Path) -> tuple[Path, str]:
    """Write the bundled clip as a video into a folder; returns its path, and names of what it shows.

    Raises:
        InputError: A bundled file is missing or damaged.
    """
    bundled.check_files()
    path = folder / "clip.mp4"
    source = open_frames(bundled.CLIP.parent / "JPEGImages" / "000025")
    with VideoWriter(path, source.height, source.width, predict_outputs.FOLDER_FPS) as writer:
        for _, frame in source:
            writer.write(frame)
    return path, "striped blue arrow\npink heart"


def without_paths(message: str, scratch: Path) -> str:
    """Take the server's folders out of a message, which then names an upload as its owner does."""
    return re.sub(rf"{re.escape(str(scratch))}/(job-\w+/(in/)?)?", "", message)


class _Watched(FrameSource):
    """A source that tells how far it was read, and fails beyond the limits."""

    def __init__(self, source: FrameSource, limits: Limits, tell: Tell, doing: str) -> None:
        self._source, self._limits, self._tell, self._doing = source, limits, tell, doing
        self.name, self.kind, self.height, self.width = source.name, source.kind, source.height, source.width
        self.fps, self.expected_frames, self.pixel_aspect = source.fps, source.expected_frames, source.pixel_aspect

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        second = None
        for count, (number, frame) in enumerate(self._source, start=1):
            self._limits.check(self.name, count, self.height, self.width)
            now = time.monotonic()
            left = ""
            if second is None:
                second = now if count == 2 else None  # the first frame waits for compilation
            elif self.expected_frames:
                left = f", {(self.expected_frames - count) * (now - second) / (count - 2):.0f} s left"
            self._tell(count - 1, self.expected_frames, self._doing + left)
            yield number, frame


def _take_in(upload: Path, folder: Path, limits: Limits) -> Path:
    """Copy an upload to a job's folder, or unpack it there; returns the path.

    Raises:
        InputError: It is too large, or a zip that cannot be used.
    """
    if upload.stat().st_size > limits.megabytes * 10**6:
        raise InputError(f"{upload.name}: is larger than {limits.megabytes} MB; cut it, or make it smaller")
    if upload.suffix.lower() == ".zip":
        return _unpack(upload, folder, limits)
    return Path(shutil.copyfile(upload, folder / upload.name))


def _unpack(path: Path, folder: Path, limits: Limits) -> Path:
    """Unpack the pictures of a zip into a folder.

    Raises:
        InputError: It is damaged, too large, or holds anything but a folder of pictures.
    """
    target = folder / path.stem
    target.mkdir()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Counted before they are listed, which takes half a kilobyte of memory for each.
            entries = sum(1 for _ in re.finditer(rb"PK\x01\x02", content))
        if entries > 10 * limits.frames:
            raise InputError(f"{path.name}: holds {entries} files; give at most {limits.frames} pictures")
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if _is_picture(member.filename)]
            if len(members) > limits.frames:
                raise InputError(f"{path.name}: holds {len(members)} pictures; give at most {limits.frames}")
            if not members:
                raise InputError(
                    f"{path.name}: holds no picture; give a video, a picture or a zip of a folder of pictures"
                )
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise InputError(f"{path.name}: is compressed in an unusual way; pack it again, with deflate")
            if len({PurePosixPath(member.filename).parent for member in members}) > 1:
                raise InputError(f"{path.name}: holds pictures in several folders; give one folder of frames")
            if sum(member.file_size for member in members) > limits.megabytes * 10**6:
                raise InputError(
                    f"{path.name}: unpacks to more than {limits.megabytes} MB; give fewer or smaller pictures"
                )
            for member in members:
                name = PurePosixPath(member.filename).name
                # No more than file_size is read, whatever follows.
                with archive.open(member) as packed, (target / name).open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    except FileExistsError as error:
        raise InputError(f"{path.name}: holds two pictures of one name; rename one") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name}: is no zip that can be read ({error}); pack it again") from error
    return target


def _is_picture(name: str) -> bool:
    """Whether an entry of a zip is a picture that is to be unpacked.

    Raises:
        InputError: Its name leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise InputError(f"{show(name)}: leads out of the zip; pack a folder of pictures with plain names")
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and not name.endswith("/")


def _track(result: VideoResult, track_id: int) -> Track:
    for track in result.tracks:
        if track.track_id == track_id:
            return track
    raise InputError(f"track {track_id}: is not shown; choose one of the table")


def _names(result: VideoResult) -> list[str]:
    names = short_names(result.class_names)
    return [names[track.class_index] for track in result.tracks]


def _frames(track: Track) -> np.ndarray:
    """Return the frames that show a track."""
    return np.flatnonzero([coco_mask.area(mask) for mask in track.segmentations])


def _until(source: FrameSource, end: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for _, (_, frame) in zip(range(end), source, strict=False):
        yield frame
