"""Alerts of a stream: a line, and a call of a web address, when a track of a class is seen."""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from clipvis_jax.errors import InputError
from clipvis_jax.text.vocabulary import short_names

if TYPE_CHECKING:
    from clipvis_jax.inference.results import LiveTrack
    from clipvis_jax.media.live_frames import LiveFrame

_WAITING = 16
"""Alerts that wait for the address, each with its picture; more are dropped."""
_TIMEOUT_S = _LAST_WAIT_S = 10.0
_CROP_SIDE = 512


class Alerts:
    """Fires once for a track of a class that scores high enough. A context manager.

    A track that was not seen for ``forget_after`` frames may fire again: its number stays with the model's query, and
    comes back with another object.

    Args:
        rules: Class names with scores, "person:0.5".
        class_names: The vocabulary; a rule names a class by its first synonym, or in full.
        webhook: The address that gets a POST of JSON; None: there is only the line.
        forget_after: See above.
        tell: Takes the lines: of alerts, and of an address that cannot be reached, which never stops the stream.

    Raises:
        InputError: A rule or the address cannot be used.
    """

    def __init__(
        self,
        rules: Sequence[str],
        class_names: Sequence[str],
        *,
        webhook: str | None,
        forget_after: int,
        tell: Callable[[str], object],
    ) -> None:
        self._least = dict(_parse(rule, tuple(class_names)) for rule in rules)
        self._webhook, self._forget_after, self._tell = webhook, forget_after, tell
        if webhook is not None:
            try:
                parts = urlsplit(webhook)
                is_usable = parts.scheme in ("http", "https") and parts.hostname and not parts.username
                parts.port  # noqa: B018 (raises)
            except ValueError:
                is_usable = False
            if not is_usable:
                raise InputError("--webhook: give an address that begins with http:// or https://, without a user name")
        self._frames: dict[int, int] = {}
        self._fired: dict[tuple[int, int, int], int] = {}
        self._waiting: Queue[dict[str, Any] | None] = Queue(_WAITING)
        self._queued = self._done = 0  # each is counted by one thread
        self._thread = Thread(target=self._send_all, name="webhook", daemon=True)

    def __enter__(self) -> "Alerts":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Full):
            self._waiting.put(None, timeout=1)
            self._thread.join(timeout=_LAST_WAIT_S)
        if unsent := self._queued - self._done:
            self._tell(f"webhook: too slow; alerts that are not sent at the end: {unsent}")

    def check(self, source: int, frame: "LiveFrame", tracks: "Sequence[LiveTrack]") -> None:
        """Look at the tracks that show in a source's newest frame; returns at once."""
        now = self._frames[source] = self._frames.get(source, 0) + 1
        seen = {track.track_id for track in tracks}
        for key, last in list(self._fired.items()):
            if key[0] == source:
                if key[1] in seen:
                    self._fired[key] = now
                elif now - last > self._forget_after:
                    del self._fired[key]
        for track in tracks:
            key = source, track.track_id, track.class_index
            if track.score >= self._least.get(track.class_index, float("inf")) and key not in self._fired:
                self._fired[key] = now
                self._fire(source, frame, track)

    def _fire(self, source: int, frame: "LiveFrame", track: "LiveTrack") -> None:
        self._tell(f"alert: {track.class_name} (track {track.track_id}, source {source}, score {track.score:.2f})")
        if self._webhook is None:
            return
        assert track.box is not None
        left, top, right, bottom = track.box
        crop = Image.fromarray(frame.image[top:bottom, left:right])
        crop.thumbnail((_CROP_SIDE, _CROP_SIDE))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=85)
        alert = {
            "time": round(frame.time_s, 3),
            "source": source,
            "frame": frame.number,
            "id": track.track_id,
            "name": track.class_name,
            "score": track.score,
            "box": track.box,
            "crop": base64.b64encode(buffer.getvalue()).decode("ascii"),
        }
        try:
            self._waiting.put_nowait(alert)
            self._queued += 1
        except Full:
            self._tell("webhook: too slow, so an alert is not sent")

    def _send_all(self) -> None:
        opener = urllib.request.build_opener(_NoRedirects)
        while (alert := self._waiting.get()) is not None:
            try:
                assert self._webhook is not None
                data, headers = json.dumps(alert).encode(), {"Content-Type": "application/json"}
                request = urllib.request.Request(self._webhook, data, headers, method="POST")
                with opener.open(request, timeout=_TIMEOUT_S) as answer:
                    answer.read(1)
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
                code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
                self._tell(f"webhook: an alert could not be sent ({code}{reason})")
            self._done += 1


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: a redirected POST would become a GET without the alert."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _parse(rule: str, class_names: tuple[str, ...]) -> tuple[int, float]:
    """Return a class and the score from which on it fires."""
    name, _, number = rule.rpartition(":")
    try:
        score = float(number)
    except ValueError:
        score = float("nan")
    if not name or not 0 <= score <= 1:
        raise InputError(f"--alert {rule}: give a class name, a colon and a score from 0 to 1, as in person:0.5")
    for names in (class_names, short_names(class_names)):
        if name in names:
            return names.index(name), score
    raise InputError(f"--alert {rule}: no class is named so; name one of --classes")
