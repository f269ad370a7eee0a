"""What ``clipvis predict`` writes and prints: tracks, overlay, summary."""

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask
from tqdm import tqdm

from clipvis_jax.commands.sources import source_state
from clipvis_jax.errors import InputError
from clipvis_jax.inference.raw_video import RawVideo, load_video, save_video
from clipvis_jax.inference.result_file import VideoFacts, write_tracks
from clipvis_jax.inference.results import VideoResult
from clipvis_jax.io.files import atomic_path, prepare_output_dir, writing_together
from clipvis_jax.io.terminal import print_lines, print_table
from clipvis_jax.media.video_reader import FrameSelection, FrameSource, open_frames
from clipvis_jax.media.video_writer import VideoWriter

FOLDER_FPS = 10.0
"""Speed of the overlay where the source has none, in frames per second."""

_MIN_FPS = 0.01
"""The slowest that ``VideoWriter`` takes; reached with a large distance between frames."""


OVERLAYS = "overlay.mp4", "overlay.png"
"""Of videos and of images."""
RAW = "raw.npz"


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make a folder for results; if the block fails, folders that were made and are empty are removed again.

    Raises:
        InputError: `path` is a file, or nothing can be written there.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]  # noqa: PTH110 (never raises)
    try:
        yield prepare_output_dir(path)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def check_no_overlay(source: Path, folder: Path) -> None:
    """Make sure that a source is not what results in a folder replace.

    Raises:
        InputError: It is.
    """
    if source.resolve() in [(folder / name).resolve() for name in OVERLAYS]:
        raise InputError(f"{source}: is an overlay in the output folder, which is replaced; choose another --out")


def overlay_path(folder: Path, source: FrameSource) -> Path:
    """Say where the overlay of a source goes."""
    return folder / OVERLAYS[source.kind == "image"]


def write_results(
    folder: Path,
    result: VideoResult,
    source: FrameSource,
    selection: FrameSelection,
    *,
    overlay: bool,
    show_progress: bool,
    embeddings: bool = False,
    raw_facts: dict[str, Any] | None = None,
    shown: Collection[str] | None = None,
) -> list[Path]:
    """Write tracks.json, the overlay, and raw.npz of a result that kept it, all or none.

    Args:
        folder: Where to.
        result: The tracks.
        source: Where the frames are from.
        selection: Which of them were used.
        overlay: Whether to write the overlay.
        show_progress: Show a progress bar.
        embeddings: Whether tracks.json has the tracks' embeddings.
        raw_facts: What raw.npz tells of the run, beside the video's facts.
        shown: See ``write_overlay``.

    Returns:
        The paths written.

    Raises:
        InputError: A file cannot be written.
    """
    facts = video_facts(result, source, selection)
    with writing_tracks(folder, result, facts, embeddings=embeddings, replaces=(*OVERLAYS, RAW)) as (stage, written):
        if result.raw is not None:
            written.append(folder / RAW)
            save_video(stage / RAW, result.raw.video, (raw_facts or {}) | {"video": facts})
        if overlay:
            written.append(overlay_path(folder, source))
            path = overlay_path(stage, source)
            write_overlay(path, result, source, selection, show_progress=show_progress, shown=shown)
    return written


@contextmanager
def writing_tracks(
    folder: Path,
    result: VideoResult,
    video: dict[str, Any],
    *,
    embeddings: bool,
    replaces: Collection[str] = OVERLAYS,
) -> Iterator[tuple[Path, list[Path]]]:
    """Write tracks.json, and with it what the block writes, all or none; see ``writing_together``.

    Yields:
        The temporary folder to write to; and the paths written, to which the block adds its own.
    """
    tracks = folder / "tracks.json"
    with writing_together(folder, tracks.name, replaces=replaces) as stage:
        with atomic_path(stage / tracks.name) as path, path.open("w", encoding="utf-8") as file:
            write_tracks(file, result, video, embeddings=embeddings)
        yield stage, [tracks]


def video_facts(result: VideoResult, source: FrameSource, selection: FrameSelection) -> dict[str, Any]:
    """Tell of a video what tracks.json does; call it when its frames have been read.

    Of a video file, it has ``frame_times_s`` (seconds since its first frame), and ``skipped_frames`` (their numbers) if
    selected ones could not be decoded.
    """
    video = {
        "id": 1,
        "name": os.fsencode(source.name).decode("utf-8", "replace"),  # not all names of files are text
        "height": result.height,
        "width": result.width,
        "length": result.num_frames,
        "fps": source.fps,
        "frame_numbers": frame_numbers(source, selection, result.num_frames),
    }
    if source.frame_times_s:
        video["frame_times_s"] = list(source.frame_times_s.values())
    if source.skipped_frames:
        video["skipped_frames"] = list(source.skipped_frames)
    return video


def write_overlay(
    path: Path,
    result: VideoResult,
    source: FrameSource,
    selection: FrameSelection,
    *,
    show_progress: bool,
    times_s: Sequence[float] | None = None,
    shown: Collection[str] | None = None,
) -> None:
    """Draw the tracks on the frames, which are decoded once more: a video, or an image for an image.

    An instance is drawn once, under its best class.

    Args:
        path: Where to.
        result: The tracks.
        source: Where the frames are from.
        selection: Which of them were used.
        show_progress: Show a progress bar.
        times_s: When each frame is shown, in seconds; by default, what the source knows once it was read.
        shown: Classes of which instances are drawn; None: all.

    Raises:
        InputError: The file cannot be written, or the source has other frames now.
    """
    result = result.best()
    if shown is not None:
        result = dataclasses.replace(result, tracks=[track for track in result.tracks if track.class_name in shown])
    frames = _frames_of(result, source)
    if source.kind == "image":
        with atomic_path(path) as temporary:
            result.plot(0, next(frames)).save(temporary)
        return
    fps = max((source.fps or FOLDER_FPS) / selection.every, _MIN_FPS)
    times_s = times_s or list(source.frame_times_s.values())
    shape = result.height, result.width
    with VideoWriter(path, *shape, fps, times_s=times_s, pixel_aspect=source.pixel_aspect) as writer:
        bar = tqdm(frames, total=result.num_frames, desc="writing overlay", unit="frame", disable=not show_progress)
        for index, frame in enumerate(bar):
            writer.write(np.asarray(result.plot(index, frame)))


def _frames_of(result: VideoResult, source: FrameSource) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield the frames of a result.

    Raises:
        InputError: The source has more or fewer, or of another size.
    """
    count = 0
    for count, (_, frame) in enumerate(source, start=1):
        if count > result.num_frames or frame.shape[:2] != (result.height, result.width):
            raise _changed(source.name)
        yield frame
    if count < result.num_frames:
        raise _changed(source.name)


def _changed(source: str) -> InputError:
    return InputError(f"{source}: has changed since it was segmented, so nothing can be drawn on it; segment it again")


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What raw.npz tells of the run that wrote it: its settings, ``source_state``, and ``video_facts``."""

    model: str
    dtype: Literal["float32", "bfloat16"]
    text_digest: str
    source: str
    source_state: str
    selection: FrameSelection
    on_error: Literal["stop", "skip"]
    max_pixels: Annotated[int, msgspec.Meta(ge=1)]
    video: dict[str, Any]

    def open_source(self) -> FrameSource:
        """Open the source once more.

        Raises:
            InputError: It is not there, or not what it was.
        """
        path = Path(self.source)
        if not path.exists():
            raise InputError(f"{path}: is not there any more, so nothing can be drawn on it; use --no-overlay")
        if source_state(path) != self.source_state:
            raise _changed(self.source)
        return open_frames(path, self.selection, on_error=self.on_error, max_pixels=self.max_pixels)


def read_raw(path: Path) -> tuple[RawVideo, RunFacts]:
    """Read raw.npz: what the network predicted, and of what.

    Raises:
        InputError: The file is missing, damaged or was not written by ``clipvis predict``.
    """
    raw, facts = load_video(path)
    if "source" not in facts:
        raise InputError(f"{path}: was not written by 'clipvis predict --save-raw'; give one that was")
    try:
        run = msgspec.convert(facts, RunFacts)
        video = msgspec.convert(run.video, VideoFacts)
        size = [raw.num_frames, *raw.mask_sizes[3].tolist()]
        if [video.length, video.height, video.width] != size or video.frame_numbers is None:
            raise ValueError("the video's facts are of another video")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run the command that wrote it again") from error
    return raw, run


def print_summary(result: VideoResult, numbers: Sequence[int]) -> None:
    """Print a table of the results: track, class, score, frames in which it is seen, mean size.

    A track that may be of several classes is listed under each. Frames are numbered by ``numbers``.
    """
    instances = len({track.track_id for track in result.tracks})
    title = ", ".join(
        f"{count} {noun}{'' if count == 1 else 's'}"
        for count, noun in ((len(result.tracks), "result"), (instances, "instance"), (result.num_frames, "frame"))
    )
    if not result.tracks:
        none = f", fewer background names ({len(result.background)} now) may" if result.background else ""
        print_lines(f"{title}; a lower --min-score shows more{none}")
        return
    if result.background:
        title += f", {len(result.background)} background names"
    rows = []
    for track in result.tracks:
        # One by one: pycocotools takes lists of no more than 255 masks.
        pixels = np.array([coco_mask.area(mask) for mask in track.segmentations])
        area = pixels / (result.height * result.width)
        present = np.flatnonzero(area)
        first_last = [str(numbers[index]) for index in (*present[:1], *present[-1:])]
        seen = str(len(present)), "-".join(first_last) or "-", f"{area[present].mean():.1%}" if len(present) else "-"
        rows.append((str(track.track_id), track.class_name, f"{track.score:.3f}", *seen))
    print_table(title, ["track", "class", "score", "frames", "first-last", "mean area"], rows, left=["class"])


def print_written(paths: Sequence[Path]) -> None:
    """Print the paths written; of raw predictions, which may be large, the size."""
    named = [f"{path} ({path.stat().st_size / 1e6:.1f} MB)" if path.suffix == ".npz" else str(path) for path in paths]
    print_lines("wrote " + " and ".join(named))


def frame_numbers(source: FrameSource, selection: FrameSelection, length: int) -> list[int]:
    """Say which numbers the frames of a result have in its source; frames that had to be skipped have none."""
    return list(source.frame_times_s) or [selection.start + index * selection.every for index in range(length)]
