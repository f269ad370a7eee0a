"""Read live sources: cameras, network streams, standard input, and files at their own pace.

A thread reads and decodes, and keeps the newest frame only: whoever takes frames more slowly than they come misses
some, and never falls behind.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int32, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.media.images import MAX_PIXELS, check_pixels
from clipvis_jax.media.video_decoder import (
    CONTAINERS,
    FPS_WITHOUT_CLOCK,
    OPEN_OPTIONS,
    apply_display_matrix,
    display_matrix_of,
    rgb_from_frame,
)

_TIMEOUT_S = 10.0
"""Without anything from the network for so long, the connection is lost."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_MOST_UNDECODABLE = 300
"""Packets in a row: what begins between two key frames has some."""
_PROTOCOLS = {
    "file": "file",
    "input": "pipe,fd,file",
    "camera": "file",
    "http": "http,https,httpproxy,tcp,tls",
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls",
}


class LiveFrame(NamedTuple):
    """A frame of a live source.

    Attributes:
        number: Its number in the source, from 0, those counted that were not taken.
        time_s: When it came, in seconds since 1970.
        arrived_s: The same on the clock of ``time.monotonic``.
        image: RGB.
    """

    number: int
    time_s: float
    arrived_s: float
    image: UInt8[np.ndarray, "h w 3"]


class _Decoded(NamedTuple):
    number: int
    time_s: float
    arrived_s: float
    frame: Any
    display_matrix: Int32[np.ndarray, "3 3"]


class LiveFrames:
    """The newest frame of a source, read in a thread. A context manager: the thread begins and ends with the block.

    Cameras and network streams whose connection is lost are opened again, after 1, 2, 4 and at most 30 seconds; one
    that gave no frame at all is an error.

    Attributes:
        name: The source as it may be shown: without user name, password and query.
        dropped: Frames that a newer one replaced before they were taken.
        ended: Whether no frame comes any more; the last may still be there.
        error: Why the source ended too early; None if it did not.

    Args:
        source: The number of a camera, a device (/dev/video0), an address (rtsp://, rtsps://, http://, https://), a
            video file, or "-", a video on standard input.
        fps: Frames per second at most; None: all that come.
        max_pixels: A larger frame is refused.
        waits: Whether a file or a pipe stays at its first frame until ``go_on``.
        arrived: Set whenever there is a new frame, and at the end; several sources may share one.
        tell: Takes a line about a lost connection.

    Raises:
        InputError: The source is none of these.
    """

    def __init__(
        self,
        source: str,
        *,
        fps: float | None = None,
        max_pixels: int = MAX_PIXELS,
        waits: bool = False,
        arrived: Event | None = None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._kind, self._address, self.name = _parse(source)
        self._period_s = 1 / fps if fps else 0.0
        self._max_pixels, self._tell = max_pixels, tell
        self._arrived = arrived or Event()
        self._stop, self._going, self._lock = Event(), Event(), Lock()
        if not waits:
            self._going.set()
        self._newest: _Decoded | None = None
        self._due_s: float | None = None
        self._count = self._failures = 0
        self._reformatter = VideoReformatter()
        self.dropped = 0
        self.ended = False
        self.error: InputError | None = None

    def __enter__(self) -> "LiveFrames":
        # A daemon, as a camera may never give its next frame.
        self._thread = Thread(target=self._run, name=f"frames of {self.name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._going.set()
        self._thread.join(timeout=0.5)

    def go_on(self, first: LiveFrame) -> LiveFrame:
        """Let what waits go on from its first frame.

        Returns:
            The newest frame; where there is no other, the first, as if it came now.
        """
        newest = self.take()
        if newest is not None:
            with self._lock:
                self.dropped += 1
        self._going.set()
        return newest or first._replace(arrived_s=time.monotonic())

    def take(self) -> LiveFrame | None:
        """Return the newest frame, once; None if there is no new one."""
        with self._lock:
            newest, self._newest = self._newest, None
        if newest is None:
            return None
        image_u8 = apply_display_matrix(rgb_from_frame(newest.frame, self._reformatter), newest.display_matrix)
        return LiveFrame(newest.number, newest.time_s, newest.arrived_s, image_u8)

    def _run(self) -> None:
        try:
            self._read()
        except InputError as error:
            self.error = error
        except Exception as error:  # nobody would see it in this thread
            self.error = InputError(f"{self.name}: cannot be read ({type(error).__name__}: {error})")
        finally:
            self.ended = True
            self._arrived.set()

    def _read(self) -> None:
        """Read to the end; of what may come back, for ever."""
        comes_back = self._kind in ("camera", "http", "rtsp")
        while not self._stop.is_set():
            reason = "it ended"
            try:
                with av.open(self._address, **self._open_options()) as container:
                    display_matrix = None
                    for frame in self._frames(container):
                        if display_matrix is None:  # later frames need not repeat it
                            display_matrix = display_matrix_of(frame)
                        self._put(frame, display_matrix)
                    is_whole = not comes_back or bool(container.duration)  # a file, on whatever server
                if self._count == 0 and not self._stop.is_set():
                    raise InputError(f"{self.name}: has no frame that can be decoded; give a video")
                if is_whole:
                    return
            except MemoryError:
                raise
            except av.FFmpegError as error:
                reason = "it does not answer" if isinstance(error, av.error.ExitError) else error.strerror
                if self._count == 0 or not comes_back:
                    when = "cannot be opened as a video" if self._count == 0 else f"ends at frame {self._count}"
                    raise InputError(f"{self.name}: {when} ({reason}); check the source") from error
            wait_s = min(_FIRST_WAIT_S * 2.0 ** min(self._failures, 10), _LONGEST_WAIT_S)
            self._failures += 1
            if not self._stop.is_set():
                self._tell(f"{self.name}: connection lost ({reason}); trying again in {wait_s:.0f} s")
            self._stop.wait(wait_s)

    def _open_options(self) -> dict[str, Any]:
        options = {"protocol_whitelist": _PROTOCOLS[self._kind], "format_whitelist": CONTAINERS}
        if self._kind == "camera":
            return {"format": "v4l2", "container_options": options | {"format_whitelist": "video4linux2,v4l2"}}
        if self._kind == "rtsp":
            # UDP loses packets, which shows as smeared pictures.
            options |= {"format_whitelist": "rtsp,rtp,sdp,mpegts", "rtsp_transport": "tcp"}
        if self._kind != "file":
            # FFmpeg would listen for 5 seconds before it gives the first frame.
            options["analyzeduration"] = "1000000"
        timeout = {"timeout": _TIMEOUT_S} if self._kind in ("http", "rtsp") else {}
        return {"container_options": options, **timeout, **OPEN_OPTIONS}

    def _frames(self, container: Any) -> Iterator[Any]:
        """Give the frames of a source, those of a file when they are due; packets that cannot be decoded are passed."""
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise InputError(f"{self.name}: has no video that can be decoded; give another source")
        check_pixels(stream.codec_context.width, stream.codec_context.height, self.name, self._max_pixels)
        stream.thread_type = "SLICE"  # threads for whole frames would hold back as many
        start_s, count, undecodable = time.monotonic(), 0, 0
        first_s: float | None = None
        for packet in container.demux(stream):
            if self._stop.is_set():
                return
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError:
                undecodable += 1
                if undecodable > _MOST_UNDECODABLE:
                    raise
                continue
            for frame in frames:
                undecodable = 0
                check_pixels(frame.width, frame.height, self.name, self._max_pixels)
                if self._kind in ("file", "input") and count == 1 and not self._going.is_set():
                    self._going.wait()
                    start_s = time.monotonic()
                if self._kind == "file":
                    time_s = count / FPS_WITHOUT_CLOCK if frame.time is None else float(frame.time)
                    first_s = time_s if first_s is None else first_s
                    if self._stop.wait(max(start_s + time_s - first_s - time.monotonic(), 0)):
                        return
                count += 1
                yield frame

    def _put(self, frame: Any, display_matrix: Int32[np.ndarray, "3 3"]) -> None:
        self._failures = 0
        now_s = time.monotonic()
        number = self._count
        self._count += 1
        due_s = self._due_s or now_s
        # A little early is in time, and after a late one the next may come sooner, lest jitter lower the rate.
        if now_s < due_s - self._period_s / 4:
            return
        self._due_s = max(due_s + self._period_s, now_s + self._period_s / 2)
        with self._lock:
            self.dropped += self._newest is not None
            self._newest = _Decoded(number, time.time(), now_s, frame, display_matrix)
        self._arrived.set()


_Kind = Literal["file", "input", "camera", "http", "rtsp"]


def _parse(source: str) -> tuple[_Kind, str, str]:
    """Tell what kind of source it is, what FFmpeg calls it, and how it may be shown."""
    if source == "-":
        try:
            return "input", f"pipe:{sys.stdin.fileno()}", "standard input"
        except (OSError, ValueError, AttributeError) as error:
            raise InputError("-: there is no standard input; give a file or an address") from error
    if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
        return _parse_address(source)
    if source.isascii() and source.isdigit():
        source = f"/dev/video{source}"
    path = Path(source)
    if re.fullmatch(r"/dev/video\d+", source):
        if not path.exists():
            raise InputError(f"{source}: there is no such camera; 'ls /dev/video*' lists those of this machine")
        return "camera", source, source
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{source}: cannot be opened ({error.strerror}); check the path") from error
    if path.is_fifo():
        return "input", str(path.absolute()), source
    if not path.is_file():
        raise InputError(f"{source}: is no file; give a video file, a camera or an address")
    if size == 0:
        raise InputError(f"{source}: is empty (0 bytes); copy or download it again")
    return "file", str(path.absolute()), source


def _parse_address(source: str) -> tuple[_Kind, str, str]:
    scheme = source.partition("://")[0].lower()
    if scheme not in ("rtsp", "rtsps", "http", "https"):
        raise InputError(f"{scheme}://: no kind of stream that is read here; give rtsp:// or http(s)://")
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise InputError(f"{scheme}://...: is no valid address ({error}); check it") from error
    if not host:
        raise InputError(f"{scheme}://...: names no host; give the whole address")
    shown = f"{scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"
    return ("rtsp" if scheme.startswith("rtsp") else "http"), source, shown
