"""Videos that are written: read again, played by browsers, and whole or not there."""

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_frames import BLUE, GREEN, RED, WHITE, corners, number_of, numbered, one_frame, quadrants

from clipvis_jax.errors import InputError
from clipvis_jax.media.video_reader import open_frames
from clipvis_jax.media.video_writer import VideoWriter


def write(path: Path, frames: list[np.ndarray], fps: float = 25.0) -> Path:
    with VideoWriter(path, *frames[0].shape[:2], fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize("fps", [25.0, 30000 / 1001, 12.5, 0.5])
def test_written_videos_can_be_read(tmp_path: Path, fps: float) -> None:
    source = open_frames(write(tmp_path / "out.mp4", numbered(12), fps))
    assert source.fps == fps
    assert [number_of(frame) for _, frame in source] == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_written_videos_play_in_browsers(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", [quadrants()] * 3)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "playing can only begin when all is loaded"


def test_colors_survive(tmp_path: Path) -> None:
    for color in [(200, 30, 60), (30, 200, 60), (30, 60, 200), (255, 255, 255), (0, 0, 0)]:
        frame = np.full((32, 32, 3), color, np.uint8)
        read = one_frame(write(tmp_path / "out.mp4", [frame]))
        assert np.abs(read.astype(int) - frame).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 5), (33, 64)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path, size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), (60, 120, 180), np.uint8)
    read = one_frame(write(tmp_path / "out.mp4", [frame]))
    assert read.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(read.astype(int) - (60, 120, 180)).max() <= 4


def test_views_can_be_written(tmp_path: Path) -> None:
    frame = quadrants()[:, ::-1]
    assert corners(one_frame(write(tmp_path / "out.mp4", [frame]))) == [GREEN, RED, WHITE, BLUE]


def open_files_in(folder: Path) -> list[str]:
    # The descriptor that lists the folder is gone again, so it is no link any more.
    links = [link for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()]
    return [str(link.readlink()) for link in links if str(folder) in str(link.readlink())]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_video_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("old")
    writer = VideoWriter(path, 48, 64, 25.0)
    with pytest.raises(failure), writer:  # noqa: PT012
        for frame in numbered(60):
            writer.write(frame)
        assert open_files_in(tmp_path) != [], "the encoder has written nothing yet"
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert open_files_in(tmp_path) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 5000.0])
def test_impossible_frame_rates(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError, match=r"must be from 0\.01 to 1000"):
        VideoWriter(tmp_path / "out.mp4", 48, 64, fps)


def test_videos_that_cannot_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "out.mp4"
    with pytest.raises(InputError, match=r"missing/out.mp4: cannot be written .* create its folder first"):
        write(missing, [quadrants()])
    with pytest.raises(InputError, match=r"H\.264 cannot encode 20000 x 2 pixels"):
        write(tmp_path / "out.mp4", [np.zeros((2, 20000, 3), np.uint8)])
    with (
        pytest.raises(ValueError, match="no frame was written"),
        VideoWriter(tmp_path / "out.mp4", 8, 8, 25.0),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"frame of shape \(8, 9, 3\)"),
        VideoWriter(tmp_path / "out.mp4", 8, 8, 25.0) as writer,
    ):
        writer.write(np.zeros((8, 9, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [20, 20_000])
def test_a_disk_that_fills_up(tmp_path: Path, limit: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = numbered(60, 128, 128)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(InputError, match=r"out\.mp4: cannot be written"):
            write(tmp_path / "out.mp4", frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    times_s = [7.0, 7.04, 7.08, 10.4, 10.44, 10.44]
    with VideoWriter(path, 48, 64, 25.0, times_s=times_s) as writer:
        for frame in numbered(6):
            writer.write(frame)
    assert times_of(path) == pytest.approx([0, 0.04, 0.08, 3.4, 3.44, 3.44], abs=1e-4)
    assert [number_of(frame) for _, frame in open_frames(path)] == list(range(6))


def test_times_near_an_even_pace_are_written_evenly(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 48, 64, 30000 / 1001, times_s=[0.0, 0.033, 0.067, 0.1, 0.133]) as writer:
        for frame in numbered(5):
            writer.write(frame)
    assert times_of(path) == pytest.approx([i * 1001 / 30000 for i in range(5)])
    assert open_frames(path).fps == 30000 / 1001


@pytest.mark.parametrize("aspect", [Fraction(32, 27), Fraction(8, 9), Fraction(1)])
def test_pixels_keep_their_shape(tmp_path: Path, aspect: Fraction) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 96, 144, 25.0, pixel_aspect=aspect) as writer:
        writer.write(quadrants(96, 144))
    with av.open(str(path)) as container:
        assert Fraction(container.streams.video[0].sample_aspect_ratio) == aspect
    assert open_frames(path).pixel_aspect == aspect
