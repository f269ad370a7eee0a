"""Write videos that browsers play."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path, output_error

_TICKS_PER_S = Fraction(90_000)  # as in broadcasting: 24, 25, 30 and their NTSC rates divide it
_FRAGMENT_S = 2.0


class VideoWriter:
    """Write frames to an H.264 mp4 that browsers play.

    A context manager: the file appears under its name when the block ends well, and not at all otherwise. Odd
    sizes grow by a repeated row or column, because players expect 4:2:0 chroma, which needs even sizes.

    Args:
        path: where the video goes.
        height: frame height in pixels.
        width: frame width in pixels.
        fps: frames per second, 0.01 to 1000; a rounded NTSC rate such as 29.97003 becomes 30000/1001 again.
        times_s: when each frame is shown, in seconds, rising. Where all are within half a frame of an even pace,
            frames are written at that pace; None: so they are.
        pixel_aspect: width of a pixel on the screen over its height.
        live: for recordings without a known end: the file grows under its name, in fragments of two seconds that
            are whole whatever happens later, and `write` is told when each frame is shown. An older file is refused.

    Raises:
        InputError: `fps` is out of its range, or the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        fps: float,
        *,
        times_s: Sequence[float] | None = None,
        pixel_aspect: Fraction = Fraction(1),
        live: bool = False,
    ) -> None:
        # An mp4 counts its length in milliseconds.
        if not 0.01 <= fps <= 1000:
            raise InputError(f"frame rate {fps}: must be from 0.01 to 1000 frames per second")
        self._path = Path(path)
        self._size = (height, width)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._pixel_aspect = pixel_aspect
        since_first_s = [time_s - times_s[0] for time_s in times_s] if times_s else []
        is_even = all(abs(time_s - i / fps) <= 0.5 / fps for i, time_s in enumerate(since_first_s))
        self._times_s = None if is_even else since_first_s
        self._live = live
        self._fragment_s = self._first_s = 0.0
        self._last_tick = -1
        self._frames = 0
        self._reformatter = VideoReformatter()

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as stack:
            path = stack.enter_context(_new_file(self._path) if self._live else atomic_path(self._path))
            flags = {"movflags": "+faststart"}
            codec = {"preset": "veryfast", "crf": "20"}
            if self._live:
                flags = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
                codec["tune"] = "zerolatency"  # else it holds frames back
            self._container = av.open(str(path), "w", format="mp4", options=flags)
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=codec)
            height, width = self._size
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
            if self._live or self._times_s is not None:
                self._stream.codec_context.time_base = 1 / _TICKS_PER_S
            # Untagged colours are shown as BT.601 by some players and as BT.709 by others.
            context = self._stream.codec_context
            context.sample_aspect_ratio = self._pixel_aspect
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            stack.push(self._finish)
            self._on_exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._on_exit.__exit__(kind, error, traceback)

    def write(self, frame_u8: UInt8[np.ndarray, "h w 3"], time_s: float | None = None) -> None:
        """Append a frame of the size given at the start; of a live recording, shown at a time on any clock."""
        height, width = self._size
        if frame_u8.shape != (height, width, 3):
            raise ValueError(f"frame of shape {frame_u8.shape} in a video of {height} x {width} pixels")
        if height % 2 or width % 2:
            frame_u8 = np.pad(frame_u8, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(frame_u8, format="rgb24")
        frame = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        if time_s is None and self._times_s is not None:
            time_s = self._times_s[self._frames]
        if time_s is None:
            frame.pts, frame.time_base = self._frames, 1 / self._rate
        else:
            if self._frames == 0:
                self._first_s = self._fragment_s = time_s
            if self._live and (self._frames == 0 or time_s - self._fragment_s >= _FRAGMENT_S):
                self._fragment_s = time_s
                frame.pict_type = PictureType.I
            # The encoder takes rising times only.
            self._last_tick = max(round((time_s - self._first_s) * _TICKS_PER_S), self._last_tick + 1)
            frame.pts, frame.time_base = self._last_tick, 1 / _TICKS_PER_S
        self._encode(frame)
        self._frames += 1

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, MemoryError):
            raise  # atomic_path and _new_file say what is wrong with the file
        except av.FFmpegError as error:
            raise InputError(
                f"{self._path}: H.264 cannot encode {self._stream.width} x {self._stream.height} pixels at "
                f"{self._rate} frames per second ({error.strerror}); make the frames smaller"
            ) from error

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._frames == 0:
                raise ValueError(f"{self._path}: no frame was written")
            # A recording ends well however it ends.
            if kind is None or (self._live and not issubclass(kind, OSError)):
                self._encode(None)
                self._container.close()
        finally:
            # Left open, the removed file would still take up space on the disk.
            with suppress(av.FFmpegError):
                self._container.close()


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Make an empty file at a path where there is none, and say what is wrong if it cannot be written."""
    target = path.resolve()
    try:
        target.touch(exist_ok=False)
        yield target
    except FileExistsError as error:
        raise InputError(f"{path}: exists already; choose another name, or remove it") from error
    except OSError as error:
        raise output_error(path, error) from error
