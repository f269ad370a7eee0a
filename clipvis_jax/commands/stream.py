"""``clipvis stream``."""

import dataclasses
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.commands.naming import ClassOptions
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from clipvis_jax.commands.alerts import Alerts
    from clipvis_jax.commands.live_page import LivePage
    from clipvis_jax.inference.results import LiveTrack
    from clipvis_jax.inference.segmenter import Segmenter
    from clipvis_jax.inference.video_state import VideoState
    from clipvis_jax.loop.stop_signal import StopSignal
    from clipvis_jax.media.live_frames import LiveFrame, LiveFrames
    from clipvis_jax.media.video_writer import VideoWriter

_SAVE_EVERY_S = 30.0
_RECORDED_FPS = 25.0
"""What a recording says of its rate; every frame has its own time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream(ClassOptions):
    """Segment, track and name what a camera or a stream shows, while it goes on.

    Frames that come while the network is busy are dropped, so that it never falls behind. Ctrl-C ends it. Memory
    stays flat however long it runs. Connections that are lost are made again, but for those that never gave a frame.

    For example:
      clipvis stream 0 --model model --classes person dog --jsonl tracks.jsonl
      clipvis stream rtsp://camera/live --model model --classes person --fps 10 --http 8080 --record out.mp4
      ffmpeg -re -i input -f matroska - | clipvis stream - --model model --classes person --jsonl -
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional, arg(metavar="SOURCE [SOURCE ...]")]
    """Number of a camera, a device (/dev/video0), an address (rtsp://, http://, https://), a video file, which is
    played at its own pace, or -, a video on standard input, which is read as fast as it comes. Several share the
    model."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert', an archive of 'clipvis pack', or hf://org/name."""
    scores: Literal["all", "visible"] = "visible"
    """Frames that a track's score is averaged over: those in which it is visible, or all, as the method does."""
    score_window: Annotated[int, arg(metavar="N")] = 30
    """Of the newest so many frames."""
    jsonl: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write a line of JSON for every frame: its time, and the tracks that show in it; - is standard output. Lines are
    added to a file that is there."""
    record: Annotated[Path | None, arg(metavar="FILE.mp4", help_behavior_hint="")] = None
    """Record the frames with masks and names. The file is whole but for its last two seconds at any moment. Of several
    sources, each gets a number: FILE-0.mp4."""
    state: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="")] = None
    """Keep the tracks there, every 30 seconds and at the end, and go on with those that are there, with their numbers.
    Of several sources, each gets a number: FILE-0.npz."""
    http: Annotated[int | None, arg(metavar="PORT", help_behavior_hint="")] = None
    """Show the stream on a page, http://127.0.0.1:PORT, over up to 64 connections, one per viewer and source; 0: at a
    free port."""
    host: Annotated[str, arg(metavar="HOST")] = "127.0.0.1"
    """Where the page is served. 0.0.0.0 lets everybody in the network look; there is no password."""
    alert: Annotated[tuple[str, ...], arg(metavar="NAME:SCORE [NAME:SCORE ...]", help_behavior_hint="")] = ()
    """Say so once for every track of a class that reaches a score: "person:0.5"."""
    webhook: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None
    """Send every alert there as well: a POST of JSON, with a picture of what was found (JPEG, base64)."""
    fps: Annotated[float | None, arg(metavar="N", help_behavior_hint="(default: all that come)")] = None
    """Take at most so many frames per second of each source."""
    max_frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """End after so many frames."""
    seconds: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """End so many seconds after the first frame."""
    size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or 480)")] = None
    """Shorter side that frames are resized to for the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""

    def check(self) -> None:
        """Make sure that the options can be used.

        Raises:
            InputError: One is out of range, or one that is needed is missing.
        """
        super().check()
        for name in ("fps", "max_frames", "seconds", "score_window"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be more than 0")
        if not self.source:
            raise InputError("no source given; give a camera, an address, a video file, or -")
        if self.http is not None and not 0 <= self.http <= 65535:
            raise InputError(f"--http {self.http}: must be between 0 and 65535")
        if self.webhook is not None and not self.alert:
            raise InputError("--webhook: there is nothing to send; give --alert, too")
        if self.jsonl is None and self.record is None and self.http is None and not self.alert:
            raise InputError("nothing is asked for; give --jsonl, --record, --http or --alert")

    def run(self) -> None:
        """Run ``clipvis stream``.

        Raises:
            InputError: An option, the model or a source cannot be used, or nothing can be written.
        """
        self.check()
        with stopping_at_once():
            from clipvis_jax.commands.alerts import Alerts
            from clipvis_jax.commands.live_page import LivePage
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.loop.stop_signal import StopSignal
            from clipvis_jax.media.live_frames import LiveFrames

            classes, background = self.classes_for(self.model), self.read_background()
            arrived, status = Event(), _Status()
            sources = [
                LiveFrames(source, fps=self.fps, waits=True, arrived=arrived, tell=status.tell)
                for source in self.source
            ]
            page = None if self.http is None else LivePage(self.host, self.http, classes, len(sources))
            alerts = Alerts(self.alert, classes, webhook=self.webhook, forget_after=self.score_window, tell=status.tell)
            outputs = [_Outputs(self, number, page, alerts) for number in range(len(sources))]
            enable_compilation_cache()
            scores = ScoreConfig(over=self.scores, window=self.score_window)
            segmenter = load(self.model, dtype=self.dtype, config=InferenceConfig(size=self.size, scores=scores))
            start = segmenter.start(classes, background=background, keep_frames=False)
            states = [
                start
                if output.state is None or not output.state.exists()
                else segmenter.load_state(output.state, classes, background=background)
                for output in outputs
            ]
        with ExitStack() as stack, StopSignal() as stop:
            stack.callback(status.end)
            stack.enter_context(alerts)
            if page is not None:
                stack.enter_context(page)
                status.tell(f"live page at {page.address}")
            for output, source in zip(outputs, sources, strict=True):
                stack.enter_context(output)
                stack.enter_context(source)
            live = [
                _Live(self, segmenter, *parts, start=start, tell=status.tell)
                for parts in zip(states, sources, outputs, strict=True)
            ]
            for part in live:
                stack.callback(part.save)
            self._follow(live, arrived, stop, status)
        errors = [source.error for source in sources if source.error]
        if len(errors) == len(sources):
            raise InputError("; ".join(map(str, errors)))
        for part in live:
            part.tell_error()

    def _follow(self, live: "list[_Live]", arrived: Event, stop: "StopSignal", status: "_Status") -> None:
        """Take the sources' frames until all have ended, or it is enough; say at once when one ends too early."""
        while not stop.is_set:
            arrived.wait(0.2)
            arrived.clear()
            # Asked before the frames are taken, as the last one may come with the end.
            running = [part for part in live if not part.frames.ended]
            for part in live:
                if running and part not in running:
                    part.tell_error()
                if (frame := part.frames.take()) is not None:
                    arrived_s = part.step(frame)
                    status.add(arrived_s, sum(part.frames.dropped for part in live))
                if status.count == self.max_frames or stop.is_set:
                    return
            if not running or (self.seconds is not None and status.duration_s >= self.seconds):
                return


class _Live:
    """A source, its tracks so far, and where they go.

    Args:
        options: What is asked for.
        segmenter: The model.
        state: The state to go on with.
        frames: The source.
        outputs: Where its tracks go.
        start: The state without frames, to begin anew.
        tell: Takes a line.
    """

    def __init__(
        self,
        options: Stream,
        segmenter: "Segmenter",
        state: "VideoState",
        frames: "LiveFrames",
        outputs: "_Outputs",
        *,
        start: "VideoState",
        tell: Callable[[str], object],
    ) -> None:
        self.frames = frames
        self._min_score = options.lowest_score(options.model, state.class_names, state.background)
        self._options, self._segmenter, self._start, self._tell = options, segmenter, start, tell
        self._state, self._outputs = state, outputs
        self._is_warm, self._is_error_told, self._saved_s = False, False, time.monotonic()

    def tell_error(self) -> None:
        """Say once why the source ended too early, if it did."""
        if self.frames.error is not None and not self._is_error_told:
            self._is_error_told = True
            self._tell(f"warning: {self.frames.error}")

    def step(self, frame: "LiveFrame") -> float:
        """Take a frame, the first time the newest after all is compiled; returns when that came."""
        from clipvis_jax.inference.results import seen
        from clipvis_jax.inference.segmenter import VIDEO_TOP_K

        top_k = VIDEO_TOP_K if self._options.top_k is None else self._options.top_k
        if not self._is_warm:
            self._is_warm = True
            self._segmenter.warmup(*frame.image.shape[:2])
            # That may take a minute; the stream begins now.
            frame = self.frames.go_on(frame)
        sizes, (height, width) = self._state.sizes, frame.image.shape[:2]
        if sizes is not None and sizes.original_size != (height, width):
            old_height, old_width = sizes.original_size
            self._tell(
                f"{self.frames.name}: frames are {width}x{height} pixels now, and were {old_width}x{old_height}; its "
                "tracks begin anew"
            )
            self._state = self._start
        self._state, tracks = self._segmenter.step(self._state, frame.image, top_k=top_k, min_score=self._min_score)
        self._outputs.write(frame, seen(tracks), self._state.class_names)
        if time.monotonic() - self._saved_s >= _SAVE_EVERY_S:
            self._saved_s = time.monotonic()
            self.save()
        return frame.arrived_s

    def save(self) -> None:
        """Save the tracks, if that is asked for."""
        if self._outputs.state is not None:
            self._segmenter.save_state(self._state, self._outputs.state)


def _numbered(path: Path, number: int, count: int) -> Path:
    """Name the file of one of several sources."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{number}")


class _Outputs:
    """What is written and shown of a source. A context manager."""

    def __init__(self, options: Stream, number: int, page: "LivePage | None", alerts: "Alerts") -> None:
        """Make sure that nothing is in the way.

        Raises:
            InputError: The recording exists already, or cannot be written.
        """
        self._number, self._jsonl = number, options.jsonl
        self._page, self._alerts = page, alerts
        self._record: Path | None = options.record
        if self._record is not None:
            if self._record.suffix.lower() != ".mp4":
                raise InputError(f"--record {self._record}: an MP4 is written; give a name that ends with .mp4")
            self._record = _numbered(self._record, number, len(options.source))
            if self._record.exists():
                raise InputError(f"{self._record}: exists already; choose another name, or remove it")
        self.state = None if options.state is None else _numbered(options.state, number, len(options.source))
        for path in (self._jsonl, self._record, self.state):
            if path is not None and not path.parent.is_dir():
                raise InputError(f"{path}: its folder does not exist; make it first")
        self._writer: VideoWriter | None = None
        self._recorded_size = 0, 0
        self._stack = ExitStack()
        self._descriptor: int | None = None

    def __enter__(self) -> "_Outputs":
        from clipvis_jax.io.files import output_error

        if self._jsonl is not None and str(self._jsonl) != "-":
            try:
                self._descriptor = os.open(self._jsonl, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            except OSError as error:
                raise output_error(self._jsonl, error) from error
            self._stack.callback(os.close, self._descriptor)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, frame: "LiveFrame", tracks: "list[LiveTrack]", class_names: tuple[str, ...]) -> None:
        """Write a frame and the tracks that show in it, best first."""
        from clipvis_jax.inference.results import draw_live

        record = {
            "time": round(frame.time_s, 3),
            "source": self._number,
            "frame": frame.number,
            "tracks": [
                {"id": track.track_id, "name": track.class_name, "score": track.score, "box": track.box}
                for track in tracks
            ],
        }
        line = json.dumps(record, ensure_ascii=False)
        if self._jsonl is not None:
            self._write_line(line)
        is_watched = self._page is not None and self._page.is_watched(self._number)
        picture = draw_live(frame.image, tracks, class_names) if is_watched or self._record is not None else None
        if self._record is not None and picture is not None:
            self._write_picture(self._record, picture, frame.arrived_s)
        if self._page is not None:
            self._page.show(self._number, picture, line)
        self._alerts.check(self._number, frame, tracks)

    def _write_picture(self, path: Path, picture_u8: "UInt8[np.ndarray, 'h w 3']", time_s: float) -> None:
        """Write a picture to the recording, which has the size of the first."""
        import numpy as np
        from PIL import Image

        from clipvis_jax.media.video_writer import VideoWriter

        if self._writer is None:
            self._recorded_size = height, width = picture_u8.shape[:2]
            self._writer = self._stack.enter_context(VideoWriter(path, height, width, _RECORDED_FPS, live=True))
        if picture_u8.shape[:2] != self._recorded_size:
            height, width = self._recorded_size
            picture_u8 = np.asarray(Image.fromarray(picture_u8).resize((width, height)))
        self._writer.write(picture_u8, time_s)

    def _write_line(self, line: str) -> None:
        """Write a line at once: what a killed process wrote is whole lines."""
        from clipvis_jax.io.files import output_error

        if self._descriptor is None:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            return
        assert self._jsonl is not None
        data = f"{line}\n".encode(errors="replace")
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):  # a full disk; the next write says so, after the half line is gone
                if (length := os.fstat(self._descriptor).st_size) >= written:
                    os.ftruncate(self._descriptor, length - written)
                os.write(self._descriptor, data)
        except OSError as error:
            raise output_error(self._jsonl, error) from error


class _Status:
    """How it goes: a line on a terminal that changes, and one at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._begun_s: float | None = None
        self._dropped = 0
        self._latencies_s: deque[float] = deque(maxlen=1000)
        self._ends_s: deque[float] = deque(maxlen=50)
        self._shown_s, self._width = 0.0, 0

    @property
    def duration_s(self) -> float:
        """Seconds since the first frame was finished; 0 before."""
        return 0.0 if self._begun_s is None else time.monotonic() - self._begun_s

    def add(self, arrived_s: float, dropped: int) -> None:
        """Count a frame that is finished, and all that were dropped so far."""
        now_s = time.monotonic()
        self.count, self._dropped = self.count + 1, dropped
        self._begun_s = self._begun_s or now_s
        self._latencies_s.append(now_s - arrived_s)
        self._ends_s.append(now_s)
        if now_s - self._shown_s >= 0.5 and sys.stderr.isatty():
            self._shown_s = now_s
            self._show(self._text(self._ends_s[0], len(self._ends_s)))

    def tell(self, line: str) -> None:
        """Print a line of its own."""
        self._show("")
        print_lines(f"clipvis: {line}", file=sys.stderr)

    def end(self) -> None:
        """Sum up."""
        if self._begun_s is not None:
            self.tell(f"{self.count} frame{'' if self.count == 1 else 's'}, {self._text(self._begun_s, self.count)}")

    def _text(self, since_s: float, count: int) -> str:
        duration_s = time.monotonic() - since_s
        rate = f"{(count - 1) / duration_s:.1f}" if count > 1 and duration_s > 0 else "-"
        latencies = sorted(self._latencies_s)
        median, late = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.95))
        return f"{rate} per second, {self._dropped} dropped, latency {median:.0f} ms (95%: {late:.0f} ms)"

    def _show(self, text: str) -> None:
        """Replace the line that changes."""
        if self._width or text:
            sys.stderr.write(f"\r{text.ljust(self._width)}\r")
            sys.stderr.flush()
        self._width = len(text)
