"""Decode video files through FFmpeg: the stream that is the film, its frames and their times, or what is wrong."""

import errno
import heapq
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Int32, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.media.images import MAX_PIXELS, blend_with_black, check_pixels

# Named, because FFmpeg otherwise opens lists of other files (ffconcat, HLS) and whatever else a text may be.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,asf_o,ogg,mxf,gxf,rm,wtv,nut,dv,"
    "ivf,obu,h261,h263,h264,hevc,vvc,m4v,vc1,vc1test,dirac,cavsvideo,mjpeg,mpjpeg,yuv4mpegpipe,swf,amv,mtv,nsv,nuv"
)
# These containers state their exact length up front; others guess it, or find it by looking at what is there.
_EXACT_LENGTH_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# FFmpeg's own decoders of these leave the alpha channel out.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# PyAV before 19 decodes metadata while opening, and fails at what is not UTF-8; later it decodes what is asked for.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# FFmpeg's default is faster, but makes frames darker by 1 of 255, and 10-bit ones by 2.
_ROUND_EXACTLY = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_PACKETS_COMPARED = 1000
_MAX_FPS = 1000
FPS_WITHOUT_CLOCK = 25.0  # as FFmpeg assumes
_SEGMENT, _CLUSTER, _BLOCK_GROUP, _SIMPLE_BLOCK = 0x18538067, 0x1F43B675, 0xA0, 0xA3  # Matroska's elements


def _name_side_data(cls: Any, value: int) -> Any:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return cls._value2member_map_.setdefault(value, member)


if "_missing_" not in vars(SideDataType):  # PyAV before 19 fails at side data that it has no name for.
    setattr(SideDataType, "_missing_", classmethod(_name_side_data))  # noqa: B010 (mypy)


class VideoDecoder:
    """Decodes a video file's film: the stream that is no cover picture or preview.

    Attributes:
        path: the file.
        fps: frames per second by the header; None if not known.
        length: number of frames by the header, which may be a little wrong; None if it does not say.
        height, width: size of a frame in pixels, as displayed (rotation applied).
        pixel_aspect: width of a displayed pixel over its height.
        skipped: numbers of the wanted frames that could not be decoded, in the latest reading.
        count: number of frames that the latest reading passed, those that could not be decoded included.

    Args:
        path: the file.
        on_error: what happens at a packet that cannot be decoded or a file that is cut off: the reading ends with an
            InputError ("stop"), or goes on after it, with a warning that names the missing frames ("skip").
        max_pixels: a larger frame is refused.

    Raises:
        InputError: the file is no video that can be read, or its first frame cannot be decoded.
    """

    def __init__(self, path: Path, on_error: Literal["stop", "skip"] = "stop", max_pixels: int = MAX_PIXELS) -> None:
        self.path = path
        self.skipped: list[int] = []
        self.count = 0
        self._skips = on_error == "skip"
        with _opened(path) as container:
            stream = _film(container, path)
            check_pixels(stream.codec_context.width, stream.codec_context.height, str(path), max_pixels)
            self._stream_index = stream.index
            rate = stream.average_rate or stream.guessed_rate
            if stream.duration is not None:
                length_s = stream.duration * stream.time_base
            else:
                length_s = Fraction(container.duration or 0, av.time_base)
            self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        # Files without a frame rate may report the resolution of their clock.
        self.fps = float(rate) if rate and rate <= _MAX_FPS else None
        # Not the header's frame count: an mp4 may hold more frames than it wants shown.
        self.length = round(length_s * (rate or 0)) or None
        _, _, first_u8 = next(self.read(range(1 << 62)))
        self.height, self.width = first_u8.shape[:2]
        if self._is_on_its_side:
            self.pixel_aspect = 1 / self.pixel_aspect

    def read(self, numbers: range) -> Iterator[tuple[int, float, UInt8[np.ndarray, "h w 3"]]]:
        """Give the frames of some numbers: number, seconds since the first frame, RGB.

        A frame that could not be decoded keeps its number, and is left out.

        Raises:
            InputError: a frame cannot be decoded, the file is cut off, or the size changes.
        """
        # Frames that are not wanted are decoded too: seeking to an exact frame works in some formats only.
        reformatter = VideoReformatter()
        self.skipped, self._failed = [], list[float]()
        self.count = 0
        number, start_s = -1, 0.0
        try:
            with _opened(self.path) as container:
                stream = container.streams[self._stream_index]
                for frame in self._decode(container, stream):
                    number = self._pass_failed(number, frame.pts) + 1
                    size = frame.width, frame.height
                    if self.count == 0:
                        # Holds for all frames, as in FFmpeg's player: later ones need not repeat the matrix.
                        first_size, display_matrix = size, display_matrix_of(frame)
                        self._is_on_its_side = bool(abs(display_matrix[0, 1]) > abs(display_matrix[0, 0]))
                    if size != first_size:
                        raise InputError(
                            f"{self.path}: frame {number} is {size[0]} x {size[1]} pixels, but the first one is "
                            f"{first_size[0]} x {first_size[1]}; end the selection at frame {number} or convert the "
                            "video to one size"
                        )
                    time_s = number / (self.fps or FPS_WITHOUT_CLOCK) if frame.time is None else float(frame.time)
                    start_s = time_s if self.count == 0 else start_s
                    self.count += 1
                    if number in numbers:
                        frame_u8 = apply_display_matrix(rgb_from_frame(frame, reformatter), display_matrix)
                        yield number, round(time_s - start_s, 6), frame_u8
                    if number + 1 >= numbers.stop:
                        break
        except av.FFmpegError as error:
            raise self._damaged(self.count, f"then comes '{error.strerror}'") from error
        self.count = self._pass_failed(number, None) + 1
        self.skipped = [failed for failed in self.skipped if failed in numbers]
        if self.skipped:
            named = ", ".join(str(skipped) for skipped in self.skipped[:20])
            more = f" and {len(self.skipped) - 20} more" if len(self.skipped) > 20 else ""
            warnings.warn(
                f"{self.path}: {len(self.skipped)} frame(s) cannot be decoded and are missing: {named}{more}",
                stacklevel=2,
            )

    def _damaged(self, count: int, what: str) -> InputError:
        if count == 0:
            return InputError(f"{self.path}: no frame can be decoded, so it is damaged or cut off; copy it again")
        return InputError(
            f"{self.path}: is damaged or cut off: {count} frames can be decoded, {what}; copy it again, end the "
            f"selection at frame {count}, or skip what cannot be decoded (on-error skip)"
        )

    def _pass_failed(self, number: int, timestamp: int | None) -> int:
        """Number the failed frames that come before a frame, or all; return the last number given."""
        while self._failed and (timestamp is None or self._failed[0] < timestamp):
            heapq.heappop(self._failed)
            number += 1
            self.skipped.append(number)
        return number

    def _decode(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """Give all frames; complain if the file ends in the middle of a packet.

        FFmpeg reports a cut file in some formats only. A header that states more than is there is worth a warning.
        """
        decoder = _decoder(stream)
        # Several frames at once are quicker, but their errors come late, with another packet.
        decoder.thread_type = "SLICE" if self._skips else "AUTO"
        is_exact = container.format.name in _EXACT_LENGTH_FORMATS
        count = 0
        is_cut = False
        reached_s = Fraction(0)
        for packet in self._packets(container, stream):
            timestamp = packet.dts if packet.pts is None else packet.pts
            if timestamp is not None:
                reached_s = max(reached_s, (timestamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream is not stream:
                continue
            if packet.is_corrupt and is_exact:  # The file ends within it.
                is_cut = True
                continue
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                if count == 0 and not (is_exact and packet.is_keyframe):
                    continue  # A recording may begin between two key frames.
                if not self._skips or isinstance(error, MemoryError):
                    raise
                heapq.heappush(self._failed, float("-inf") if timestamp is None else timestamp)
                continue
            for frame in frames:
                yield frame
                count += 1
        if count == 0:
            raise self._damaged(0, "")
        if is_cut or (container.format.name == "matroska,webm" and _is_cut_matroska(self.path)):
            if not self._skips:
                raise self._damaged(count, f"then it ends in the middle of one, at {float(reached_s):.2f} s")
            warnings.warn(f"{self.path}: is cut off after {count} frames, at {float(reached_s):.2f} s", stacklevel=3)
        elif is_exact and stream.average_rate:
            self._compare_length(container, stream, count, reached_s)

    def _compare_length(self, container: Any, stream: Any, count: int, reached_s: Fraction) -> None:
        """Warn if more than 1.5 frames (half a one for rounding) and more than 2 % of the stated length are missing.

        What is there is the time that the packets of any stream reach: sound may go on after the pictures, and frames
        may come at uneven distances.
        """
        length_s = Fraction(container.duration or 0, av.time_base)
        if container.format.name == "avi":
            # FFmpeg shortens the duration of a cut AVI file to what is there, but not the frame count.
            length_s = max(length_s, stream.frames / stream.average_rate)
        # Some files count their length from 0 even if they start later: only an early start is allowed for.
        start_s = min(Fraction(container.start_time or 0, av.time_base), Fraction(0))
        missing_s = length_s - (reached_s - start_s)
        if missing_s > max(Fraction(3, 2) / stream.average_rate, length_s / 50):
            warnings.warn(
                f"{self.path}: its header states {float(length_s):.2f} s, but its {count} frames end at "
                f"{float(reached_s):.2f} s; if it should go on, copy it again",
                stacklevel=4,
            )

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Give the packets of all streams; one that empties the decoder where reading fails and that may be skipped."""
        try:
            yield from container.demux()
        except av.FFmpegError as error:
            if not self._skips or isinstance(error, MemoryError):
                raise
            warnings.warn(f"{self.path}: cannot be read to its end ({error.strerror})", stacklevel=4)
            flush = av.Packet()
            flush.stream = stream
            yield flush


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a video file's container."""
    try:
        # FFmpeg takes "12:30.mp4" for an address, but not a path that begins with a slash.
        container = av.open(
            str(path.absolute()),
            container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
            **OPEN_OPTIONS,
        )
    except av.FFmpegError as error:  # also where a damaged header asks for more memory than there is
        reason = "it is of no video format that is read here" if error.errno == errno.EINVAL else error.strerror
        raise InputError(
            f"{path}: cannot be opened as a video ({reason}); "
            "give a complete video file, an image or a folder of images"
        ) from error
    with container:
        yield container


def _film(container: Any, path: Path) -> Any:
    """Choose the video stream that is the film: no picture, no preview; of similar ones the container's default."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails  # A song's cover is a video stream to FFmpeg.
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise InputError(f"{path}: has no video stream; give a file with moving pictures")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise InputError(f"{path}: has a video codec that FFmpeg does not know; convert it to H.264")
    if len(streams) == 1:
        return streams[0]
    packets = dict.fromkeys((stream.index for stream in streams), 0)
    with suppress(av.FFmpegError):
        for packet in islice(container.demux(*streams), _PACKETS_COMPARED):
            packets[packet.stream.index] += packet.size > 0
    moving = [stream for stream in streams if packets[stream.index] > 1] or streams
    pixels = {
        stream.index: packets[stream.index] * stream.codec_context.width * stream.codec_context.height
        for stream in moving
    }
    large = [stream for stream in moving if 2 * pixels[stream.index] >= max(pixels.values())]
    return max(large, key=lambda stream: (bool(stream.disposition & Disposition.default), pixels[stream.index]))


def _decoder(stream: Any) -> Any:
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is not None and ("alpha_mode", "1") in ((key.lower(), value) for key, value in stream.metadata.items()):
        return av.CodecContext.create(name, "r")
    return stream.codec_context


def _is_cut_matroska(path: Path) -> bool:
    """Say whether a Matroska or WebM file ends within a block: its elements are walked by hand, as FFmpeg is silent."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while (element := _element_id(file)) and (length := _element_length(file)) is not None:
            end = file.tell() + length
            if element in (_SEGMENT, _CLUSTER) and end > size:
                continue  # Which of its parts is cut, or is its length unknown (written live)?
            if end > size:
                return element in (_SIMPLE_BLOCK, _BLOCK_GROUP)
            file.seek(end)
    return False


def _element_id(file: BinaryIO) -> int:
    first = file.read(1)
    # The number of leading zero bits tells how many bytes follow.
    return int.from_bytes(first + file.read(8 - first[0].bit_length())) if first and first[0] >= 16 else 0


def _element_length(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    bits = first[0].bit_length() - 1
    return int.from_bytes(bytes([first[0] & ((1 << bits) - 1)]) + file.read(7 - bits))


def rgb_from_frame(frame: av.VideoFrame, reformatter: VideoReformatter) -> UInt8[np.ndarray, "h w 3"]:
    """Convert a frame to RGB; what is transparent is blended with black."""
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    rgb = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24", interpolation=_ROUND_EXACTLY)
    return blend_with_black(rgb.to_ndarray()) if has_alpha else rgb.to_ndarray()


def display_matrix_of(frame: av.VideoFrame) -> Int32[np.ndarray, "3 3"]:
    """Say how a frame is turned and mirrored for display, in 16.16 fixed point."""
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return np.eye(3, dtype=np.int32) << 16
    return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)


def apply_display_matrix(
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
