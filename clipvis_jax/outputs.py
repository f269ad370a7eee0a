"""What ``clipvis predict`` writes and prints: tracks, overlay, summary."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from clipvis_jax.files import atomic_path
from clipvis_jax.results import Track, VideoResult
from clipvis_jax.text import parse_synonyms
from clipvis_jax.version import __version__
from clipvis_jax.video import FrameSelection, FrameSource
from clipvis_jax.video_writer import VideoWriter
from clipvis_jax.visualize import draw_tracks, track_color

FOLDER_FPS = 10.0
"""Speed of the overlay where the source has none, in frames per second."""


def write_tracks(path: Path, result: VideoResult, source: FrameSource, selection: FrameSelection) -> Path:
    """Write the tracks as JSON.

    ``results`` is a list of YouTube-VIS results with ``category_name`` and ``track_id`` added; ``categories`` and
    ``video`` say what their ids and frames are.

    Raises:
        InputError: The file cannot be written.
    """
    video = {
        "id": 1,
        "name": source.name,
        "height": result.height,
        "width": result.width,
        "length": result.num_frames,
        "fps": source.fps,
        "frame_numbers": [selection.start + index * selection.every for index in range(result.num_frames)],
    }
    categories = [
        {"id": index + 1, "name": name, "synonyms": list(parse_synonyms(name))}
        for index, name in enumerate(result.class_names)
    ]
    results = [
        record | {"category_name": track.class_name, "track_id": track.track_id}
        for record, track in zip(result.to_ytvis(video_id=1), result.tracks, strict=True)
    ]
    content = {
        "info": {"creator": f"clipvis_jax {__version__}", "format": "YouTube-VIS results"},
        "video": video,
        "categories": categories,
        "results": results,
    }
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file)
    return path


def write_overlay(
    folder: Path, result: VideoResult, source: FrameSource, selection: FrameSelection, *, show_progress: bool
) -> Path:
    """Draw the tracks on the frames, which are decoded once more: overlay.mp4, or overlay.png for an image.

    An instance is drawn once, under its best class.

    Raises:
        InputError: The file cannot be written.
    """
    best: dict[int, Track] = {}
    for track in result.tracks:
        best.setdefault(track.track_id, track)
    # The best on top.
    tracks = list(best.values())[::-1]
    if source.kind == "image":
        path = folder / "overlay.png"
        _, frame = next(iter(source))
        with atomic_path(path) as temporary:
            Image.fromarray(_draw(frame, tracks, 0)).save(temporary)
        return path
    path = folder / "overlay.mp4"
    fps = (source.fps or FOLDER_FPS) / selection.every
    with VideoWriter(path, result.height, result.width, fps) as writer:
        frames = tqdm(source, total=result.num_frames, desc="writing overlay", unit="frame", disable=not show_progress)
        for index, (_, frame) in enumerate(frames):
            writer.write(_draw(frame, tracks, index))
    return path


def _draw(frame: UInt8[np.ndarray, "h w 3"], tracks: list[Track], index: int) -> UInt8[np.ndarray, "h w 3"]:
    if not tracks:
        return frame
    return draw_tracks(
        frame,
        np.stack([track.mask(index) for track in tracks]),
        [f"{parse_synonyms(track.class_name)[0]} {track.score:.2f}" for track in tracks],
        np.array([track_color(track.track_id) for track in tracks], np.uint8),
    )


def print_summary(result: VideoResult, console: Console | None = None) -> None:
    """Print a table of the tracks: instance, classes, score, frames in which it is seen, mean size."""
    console = console or Console()
    table = Table(title=f"{len(result.tracks)} tracks in {result.num_frames} frames", title_justify="left")
    for heading in ("track", "class", "score", "frames", "first-last", "mean area"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for track in result.tracks:
        area = coco_mask.area(track.segmentations) / (result.height * result.width)
        present = np.flatnonzero(area)
        table.add_row(
            str(track.track_id),
            track.class_name,
            f"{track.score:.3f}",
            str(len(present)),
            f"{present[0]}-{present[-1]}" if len(present) else "-",
            f"{area[present].mean():.1%}" if len(present) else "-",
        )
    console.print(table)
