"""Read frames from videos, folders of images and images.

Frames are 8-bit RGB in numpy. Only a few decoded frames exist at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Int32, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.media.images import IMAGE_SUFFIXES, blend_with_black, list_images, read_image

# These containers state their exact length up front; others guess it, or find it by looking at what is there.
_EXACT_LENGTH_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
_MAX_FPS = 1000
# PyAV before 19 decodes metadata while opening, and fails at what is not UTF-8; later it decodes what is asked for.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# FFmpeg's default is faster, but makes frames darker by 1 of 255, and 10-bit ones by 2.
_ROUND_EXACTLY = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a source are used: `start`, `start + every`, ... below `end`.

    Attributes:
        start: first frame number, from 0.
        end: first frame number that is left out; None: the source's end.
        every: distance between frames, from 1.
    """

    start: int = 0
    end: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0:
            raise InputError(f"start {self.start}: frame numbers begin at 0; use 0 or more")
        if self.end is not None and self.end <= self.start:
            raise InputError(f"end {self.end}: leaves no frame; use more than start, which is {self.start}")
        if self.every < 1:
            raise InputError(f"every {self.every}: must be 1 (each frame) or more")

    def numbers(self, frames: int) -> range:
        """Frame numbers selected from a source of `frames` frames."""
        return range(self.start, frames if self.end is None else min(self.end, frames), self.every)


@runtime_checkable  # needed by the type checks in tests
class FrameSource(Protocol):
    """Frames of one video, folder or image; each iteration reads them anew.

    Iteration gives (frame number in the source, frame) and raises InputError at the first unusable frame.

    Attributes:
        name: file or folder name, without its path.
        kind: what the frames come from.
        height: frame height in pixels, as displayed (rotation applied).
        width: frame width in pixels, as displayed.
        fps: frames per second of the source, before `every`; None for folders and images, and if not known.
        expected_frames: number of selected frames; exact for folders and images, by the header for
            videos, which may be a little wrong; None if the header does not say.
    """

    name: str
    kind: Literal["video", "folder", "image"]
    height: int
    width: int
    fps: float | None
    expected_frames: int | None

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]: ...


def open_frames(path: str | Path, selection: FrameSelection | None = None) -> FrameSource:
    """Open a video file, a folder of images or an image.

    The first frame is decoded to find the size, so most unusable inputs fail here.

    * Videos: whatever FFmpeg decodes. Frame number = index of the decoded frame.
    * Folders: their images in natural order (2.jpg before 10.jpg); hidden files, other files and subfolders
      are ignored. Frame number = position in that order.
    * Rotation and mirroring (a phone video's display matrix, an image's EXIF orientation) are applied.
    * Transparent pixels are blended with black: what hides below them may be anything.

    Raises:
        InputError: the input cannot be used; one line that names the file and says what to do.
    """
    path = Path(path)
    selection = selection or FrameSelection()
    try:
        size = path.stat().st_size
        if path.is_dir():
            return _ImageSource("folder", path.resolve().name, list_images(path), selection)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder; give a video, an image or a folder of images")
    if size == 0:
        raise InputError(f"{path}: is empty (0 bytes); copy or download it again")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _ImageSource("image", path.name, [path], selection)
    return _VideoSource(path, selection)


class _ImageSource:
    """Images that are already listed; see FrameSource."""

    def __init__(self, kind: Literal["folder", "image"], name: str, paths: list[Path], selection: FrameSelection):
        numbers = selection.numbers(len(paths))
        if not numbers:
            raise InputError(
                f"{paths[0] if kind == 'image' else paths[0].parent}: has only {len(paths)} frame(s), "
                f"start {selection.start} is beyond its end; use a smaller start"
            )
        self.kind: Literal["video", "folder", "image"] = kind
        self.name = name
        self.height, self.width = read_image(paths[numbers[0]]).shape[:2]
        self.fps: float | None = None
        self.expected_frames: int | None = len(numbers)
        self._paths = paths
        self._numbers = numbers

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in self._numbers:
            frame_u8 = read_image(self._paths[number])
            height, width = frame_u8.shape[:2]
            if (height, width) != (self.height, self.width):
                raise InputError(
                    f"{self._paths[number]}: frame {number} is {width} x {height} pixels, but the first one "
                    f"is {self.width} x {self.height}; give all frames one size or move this file away"
                )
            yield number, frame_u8


class _VideoSource:
    """A video file; see FrameSource."""

    def __init__(self, path: Path, selection: FrameSelection) -> None:
        self.kind: Literal["video", "folder", "image"] = "video"
        self.name = path.name
        self._path = path
        self._selection = selection
        with _open_video(path) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            if stream.duration is not None:
                length_s = stream.duration * stream.time_base
            else:
                length_s = Fraction(container.duration or 0, av.time_base)
            # Not the header's frame count: an mp4 may hold more frames than it wants shown.
            frames = round(length_s * (rate or 0))
        # Files without a frame rate may report the resolution of their clock.
        self.fps = float(rate) if rate and rate <= _MAX_FPS else None
        self.expected_frames = len(selection.numbers(frames)) if frames else None
        _, first_u8 = next(self._read(FrameSelection()))
        self.height, self.width = first_u8.shape[:2]

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        return self._read(self._selection)

    def _read(self, selection: FrameSelection) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        # Frames to skip are decoded too: seeking to an exact frame works in some formats only.
        reformatter = VideoReformatter()
        count = 0
        try:
            with _open_video(self._path) as (container, stream):
                for number, frame in enumerate(self._decode(container, stream)):
                    size = frame.width, frame.height
                    if number == 0:
                        # Holds for all frames, as in FFmpeg's player: later ones need not repeat the matrix.
                        first_size, display_matrix = size, _display_matrix(frame)
                    if size != first_size:
                        raise InputError(
                            f"{self._path}: frame {number} is {size[0]} x {size[1]} pixels, but the first "
                            f"one is {first_size[0]} x {first_size[1]}; use end {number} or convert the "
                            "video to one size"
                        )
                    count = number + 1
                    if number in selection.numbers(count):
                        yield (
                            number,
                            _apply_display_matrix(_rgb_from_frame(frame, reformatter), display_matrix),
                        )
                    if count == selection.end:
                        return
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise InputError(
                f"{self._path}: is damaged or cut off: {count} frames can be decoded, then comes "
                f"'{error.strerror}'; copy it again or use end {count}"
            ) from error
        if count <= selection.start:
            raise InputError(
                f"{self._path}: has only {count} frame(s), start {selection.start} is beyond its end; "
                "use a smaller start"
            )

    def _decode(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """Give all frames; complain if the file ends clearly before the length that its header states.

        FFmpeg reports a cut file in some formats only. The measure is the time that the packets of any stream
        reach (sound may go on after the pictures, and frames may come at uneven distances). A file counts as
        cut if more than 1.5 frames (half a one for rounding) and more than 2 % of the length are missing.
        """
        count = 0
        reached_s = Fraction(0)
        for packet in container.demux():
            timestamp = packet.dts if packet.pts is None else packet.pts
            if timestamp is not None:
                reached_s = max(reached_s, (timestamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream is not stream:
                continue
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if count > 0:
                    raise
                continue  # A recording may begin between two key frames.
            for frame in frames:
                yield frame
                count += 1
        if count == 0:
            raise InputError(f"{self._path}: no frame can be decoded, so it is damaged or cut off; copy it again")
        if container.format.name not in _EXACT_LENGTH_FORMATS or not stream.average_rate:
            return
        length_s = Fraction(container.duration or 0, av.time_base)
        if container.format.name == "avi":
            # FFmpeg shortens the duration of a cut AVI file to what is there, but not the frame count.
            length_s = max(length_s, stream.frames / stream.average_rate)
        # Some files count their length from 0 even if they start later: only an early start is allowed for.
        start_s = min(Fraction(container.start_time or 0, av.time_base), Fraction(0))
        missing_s = length_s - (reached_s - start_s)
        if missing_s > max(Fraction(3, 2) / stream.average_rate, length_s / 50):
            raise InputError(
                f"{self._path}: is cut off: it ends after frame {count - 1} ({float(reached_s):.2f} s), but "
                f"its header states {float(length_s):.2f} s; copy it again or use end {count}"
            )


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video file's container and its first video stream."""
    try:
        # FFmpeg takes "12:30.mp4" for an address, but not a path that begins with a slash.
        container = av.open(str(path.absolute()), **_OPEN_OPTIONS)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise InputError(
            f"{path}: cannot be opened as a video ({error.strerror}); "
            "give a complete video file, an image or a folder of images"
        ) from error
    with container:
        # A song's cover picture is a video stream to FFmpeg.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise InputError(f"{path}: has no video stream; give a file with moving pictures")
        if streams[0].codec_context is None:
            raise InputError(f"{path}: has a video codec that FFmpeg does not know; convert it to H.264")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _rgb_from_frame(frame: av.VideoFrame, reformatter: VideoReformatter) -> UInt8[np.ndarray, "h w 3"]:
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    rgb = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24", interpolation=_ROUND_EXACTLY)
    return blend_with_black(rgb.to_ndarray()) if has_alpha else rgb.to_ndarray()


def _display_matrix(frame: av.VideoFrame) -> Int32[np.ndarray, "3 3"]:
    """Say how a frame is turned and mirrored for display, in 16.16 fixed point."""
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return np.eye(3, dtype=np.int32) << 16
    return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)


def _apply_display_matrix(
    frame_u8: UInt8[np.ndarray, "h1 w1 3"], matrix: Int32[np.ndarray, "3 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Turn and mirror a frame, to the nearest quarter turn.

    The matrix [[a, b, u], [c, d, v], [s, t, w]] shows pixel (x, y) at (a x + c y, b x + d y); y points down.
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(b) > abs(a):
        frame_u8 = frame_u8.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(frame_u8[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
