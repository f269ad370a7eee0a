"""A page that shows a stream while it goes on: pictures as MJPEG, which every browser plays, and tracks as JSON."""

import html
import io
import re
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from threading import Condition, Lock, Semaphore, Thread
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipvis_jax.errors import InputError

_CONNECTIONS = 64
_REPEAT_S = 5.0
"""After so long without a new picture the last is sent again: only that finds out that a viewer has gone."""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>clipvis stream</title>
<style>:root {{ color-scheme: light dark; font-family: sans-serif }} body {{ margin: 1rem }} img {{ max-width: 100% }}
figure {{ margin: 0 0 1rem }}</style>
{figures}<p>Looking for: {names}</p><p><a href="tracks.json">Tracks of the newest frame</a></p></html>
"""
_FIGURE = '<figure><img src="{n}.mjpg" alt="Source {n}, live"><figcaption>Source {n}</figcaption></figure>\n'
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """A web server with the page, a picture stream and the newest tracks of every source. A context manager.

    Every viewer has a thread of its own and gets the newest picture when it is ready for one, so that a slow one slows
    nobody. Pictures are encoded only when somebody looks. On the loopback it answers no other host name, lest a page of
    elsewhere read it through a name of its own that leads here.

    Attributes:
        address: Of the page, once the block has begun.

    Args:
        host: The address to listen at.
        port: The port; 0: a free one.
        class_names: What the page says is looked for.
        sources: How many there are.

    Raises:
        InputError: The page cannot be served there.
    """

    def __init__(self, host: str, port: int, class_names: Sequence[str], sources: int) -> None:
        if not 0 <= port <= 65535:
            raise InputError(f"port {port}: must be between 0 and 65535")
        self._host, self._port = host, port
        figures = "".join(_FIGURE.format(n=number) for number in range(sources))
        names = ", ".join(html.escape(name) for name in class_names)
        self._page = _PAGE.format(figures=figures, names=names).encode(errors="replace")
        self._channels = [_Channel() for _ in range(sources)]

    def __enter__(self) -> "LivePage":
        page, channels, asked_host = self._page, self._channels, self._host

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(page, channels, asked_host)

        try:
            self._server = _Server(self._host, self._port, Handler)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such host"
            raise InputError(
                f"{self._host}:{self._port}: the page cannot be served there ({reason}); choose another port or host"
            ) from error
        host, port = self._server.server_address[:2]
        shown = str(host) if ":" not in str(host) else f"[{host!s}]"
        self.address = f"http://{shown}:{port}/"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for channel in self._channels:
            channel.close()
        self._thread.join(timeout=1)

    def is_watched(self, source: int) -> bool:
        """Tell whether anybody looks at a source's pictures."""
        return self._channels[source].viewers > 0

    def show(self, source: int, picture_u8: UInt8[np.ndarray, "h w 3"] | None, line: str) -> None:
        """Give a source's newest picture, if anybody looks, and its tracks as JSON. Returns at once."""
        self._channels[source].show(picture_u8, line)


class _Channel:
    """The newest picture and tracks of a source."""

    def __init__(self) -> None:
        self._changed, self._encoding = Condition(), Lock()
        self._number, self._picture_u8 = 0, np.zeros((1, 1, 3), np.uint8)
        self._encoded = -1, b""
        self.line, self.viewers, self.closed = "null", 0, False

    def show(self, picture_u8: np.ndarray | None, line: str) -> None:
        with self._changed:
            self.line = line
            if picture_u8 is not None:
                self._number, self._picture_u8 = self._number + 1, picture_u8
                self._changed.notify_all()

    def count(self, more: int) -> None:
        with self._changed:
            self.viewers += more

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def next(self, after: int) -> tuple[int, bytes] | None:
        """Wait for a picture that is newer than one, for 5 seconds, and return the newest; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.closed, timeout=_REPEAT_S)
            if self.closed:
                return None
            number, picture_u8 = self._number, self._picture_u8
        with self._encoding:  # once for all viewers
            if self._encoded[0] < number:
                buffer = io.BytesIO()
                Image.fromarray(picture_u8).save(buffer, "JPEG", quality=80)
                self._encoded = number, buffer.getvalue()
            return self._encoded


class _Server(ThreadingMixIn, TCPServer):
    """The server, with a bound on connections. Not HTTPServer, which asks for the host's name in the network."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._slots = Semaphore(_CONNECTIONS)
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__(address, handler)  # type: ignore[arg-type]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: viewers come and go."""


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


class _Handler(BaseHTTPRequestHandler):
    timeout = 20  # seconds that a viewer may take for a picture
    error_content_type = "text/plain;charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def answer(self, page: bytes, channels: list[_Channel], asked_host: str) -> None:
        """Answer a GET, on the loopback only if it was sent there by an address, or the name that is served."""
        name = re.sub(r":\d*$", "", self.headers.get("Host", "")).lower()  # a browser leaves out port 80
        is_known = name in ("localhost", asked_host.lower()) or _is_loopback(name.strip("[]"))
        if _is_loopback(self.connection.getsockname()[0]) and not is_known:
            self.send_error(403, "Forbidden host")
            return
        path = self.path.partition("?")[0]
        pictures = {f"/{number}.mjpg": channel for number, channel in enumerate(channels)}
        if path == "/":
            self._send("text/html; charset=utf-8", page)
        elif path == "/tracks.json":
            lines = ",\n".join(channel.line for channel in channels)
            self._send("application/json", f"[{lines}]\n".encode(errors="replace"))
        elif path in pictures:
            self._send_pictures(pictures[path])
        else:
            self.send_error(404, "Not found")

    def _send(self, kind: str, content: bytes | None) -> None:
        self.send_response(200)
        for header, value in {"Content-Type": kind, **_HEADERS}.items():
            self.send_header(header, value)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content or b"")

    def _send_pictures(self, channel: _Channel) -> None:
        channel.count(1)
        try:
            self._send("multipart/x-mixed-replace; boundary=frame", None)
            number = 0
            while (picture := channel.next(number)) is not None:
                number, jpeg = picture
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode("ascii") + jpeg + b"\r\n")
        finally:
            channel.count(-1)

    def version_string(self) -> str:
        """Return the ``Server`` header, without Python's version."""
        return "clipvis"

    def log_message(self, *_: object) -> None:
        """Log nothing."""
