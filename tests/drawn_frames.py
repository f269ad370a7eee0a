"""Frames whose colours tell what became of them when they are written and read."""

from pathlib import Path

import numpy as np

from clipvis_jax.media.video_reader import open_frames

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    frame = np.empty((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2], frame[: height // 2, width // 2 :] = RED, GREEN
    frame[height // 2 :, : width // 2], frame[height // 2 :, width // 2 :] = BLUE, WHITE
    return frame


def corners(frame: np.ndarray) -> list[tuple[int, int, int]]:
    """Colours (rounded to full or none) in reading order."""
    height, width = frame.shape[:2]
    places = [(y, x) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return [tuple(int(v) for v in (frame[place] > 127) * 255) for place in places]


def numbered(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that tell their number by their brightness; noise makes the file large enough to cut."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(count):
        frame = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        frame[: height // 2] = i * 4
        frames.append(frame)
    return frames


def number_of(frame: np.ndarray) -> int:
    return round(float(frame[: frame.shape[0] // 4].mean()) / 4)


def one_frame(path: Path) -> np.ndarray:
    ((number, frame),) = open_frames(path)
    assert number == 0
    assert frame.dtype == np.uint8
    assert frame.flags.writeable
    return frame
