"""The page and the alerts of ``clipvis stream``, without a network that segments."""

import base64
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from clipvis_jax.commands.alerts import Alerts
from clipvis_jax.commands.live_page import LivePage
from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import LiveTrack
from clipvis_jax.media.live_frames import LiveFrame

CLASSES = ["dog, puppy", "<script>alert('cat')</script>"]


def picture(number, side=32):
    return np.full((side, side, 3), 20 * number, np.uint8)


@pytest.fixture
def page():
    with LivePage("127.0.0.1", 0, CLASSES, 2) as page:
        yield page


def get(page, path, **headers):
    with urllib.request.urlopen(urllib.request.Request(page.address + path, headers=headers), timeout=5) as answer:
        return answer.read(), answer.headers


def wait_until(is_true, seconds=30):
    end_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def watch(page, source):
    """Begin to look at a source's pictures; returns a file."""
    answer = urllib.request.urlopen(f"{page.address}{source}.mjpg", timeout=5)
    wait_until(lambda: page.is_watched(source))
    return answer


def next_picture(answer):
    while (line := answer.readline()).lower()[:15] != b"content-length:":
        assert line
    assert answer.readline() == b"\r\n"
    return np.asarray(Image.open(io.BytesIO(answer.read(int(line[15:])))))


def test_the_page_escapes_names_and_tells_nothing_of_the_server(page):
    content, headers = get(page, "")
    assert b"dog, puppy, &lt;script&gt;alert(&#x27;cat&#x27;)&lt;/script&gt;" in content
    assert b"<script" not in content
    assert b'src="0.mjpg"' in content
    assert b'src="1.mjpg"' in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Python" not in str(headers)


@pytest.mark.parametrize("path", ["2.mjpg", "../../etc/passwd", "%2e%2e/", "x" * 1000, "<b>"])
def test_nothing_else_is_served(path, page):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(page, path)
    assert (caught.value.code, caught.value.read()) == (404, b"404 Not found\n")


def test_other_names_of_the_host_are_refused(page):
    for host in ["127.0.0.1", "127.0.0.1:80", "127.0.0.2", "LocalHost", "[::1]", "[::1]:8080"]:
        assert get(page, "tracks.json", Host=host)[0]  # browsers leave out port 80
    for host in ["evil.example:80", "evil.example", "", "10.0.0.1", "127.0.0.1.evil.example", "[::2]:1"]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(page, "tracks.json", Host=host)
        assert caught.value.code == 403
        caught.value.close()


def test_the_newest_tracks_of_all_sources(page):
    page.show(1, None, '{"frame": 3}')
    assert json.loads(get(page, "tracks.json")[0]) == [None, {"frame": 3}]


def test_viewers_get_the_newest_picture_and_a_slow_one_slows_nobody(page):
    assert not page.is_watched(0)
    with watch(page, 0) as one, watch(page, 0) as other, watch(page, 1) as slow:
        page.show(0, picture(1), "null")
        assert abs(int(next_picture(one).mean()) - 20) <= 2
        noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
        begun_s = time.monotonic()
        for _ in range(100):  # far more than a connection buffers
            page.show(1, noise, "null")
            time.sleep(0.001)
        page.show(0, picture(5), "null")
        assert time.monotonic() - begun_s < 15  # a viewer may take 20 seconds
        assert abs(int(next_picture(one).mean()) - 100) <= 2
        assert any(abs(int(next_picture(other).mean()) - 100) <= 2 for _ in range(5))
        assert next_picture(slow).shape == (256, 256, 3)


def test_a_viewer_who_left_is_noticed_while_nothing_new_comes(page, monkeypatch):
    monkeypatch.setattr("clipvis_jax.commands.live_page._REPEAT_S", 0.05)
    with watch(page, 0) as viewer, watch(page, 1) as early:
        page.show(0, picture(3), "null")
        for _ in range(3):
            last = next_picture(viewer)
        assert abs(int(last.mean()) - 60) <= 2
        assert next_picture(early).shape == (1, 1, 3)  # there is none so far
    wait_until(lambda: not page.is_watched(0) and not page.is_watched(1))


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"{port}: the page cannot be served there"):
            LivePage("127.0.0.1", port, CLASSES, 1).__enter__()
    for host in ["no such host", "a" * 100, ".."]:
        with pytest.raises(InputError, match="the page cannot be served there"):
            LivePage(host, 80, CLASSES, 1).__enter__()
    with pytest.raises(InputError, match="port 70000"):
        LivePage("127.0.0.1", 70000, CLASSES, 1)


# --- alerts


def frame(number):
    return LiveFrame(number, 1000.0 + number, float(number), picture(number % 10))


def track(track_id, class_index, score):
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:16] = True
    return LiveTrack(track_id, class_index, CLASSES[class_index], score, mask)


@pytest.fixture
def receiver():
    """An address that notes what it gets, and answers with ``code``."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        code = 200

        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", got, Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_alert_fires_once_per_track(receiver):
    webhook, got, _ = receiver
    told = []
    with Alerts(["dog:0.5"], CLASSES, webhook=webhook, forget_after=3, tell=told.append) as alerts:
        alerts.check(0, frame(0), [track(7, 0, 0.49), track(8, 1, 0.9)])
        assert not told
        for number in range(1, 9):
            alerts.check(0, frame(number), [track(7, 0, 0.6 if number % 2 else 0.3)])
        alerts.check(1, frame(0), [track(7, 0, 0.7)])  # of another source
        for number in range(9, 13):
            alerts.check(0, frame(number), [])
        alerts.check(0, frame(13), [track(7, 0, 0.8)])  # comes back after it was gone
    fired = [(0, 1, 0.6), (1, 0, 0.7), (0, 13, 0.8)]
    assert told == [f"alert: dog, puppy (track 7, source {number}, score {score:.2f})" for number, _, score in fired]
    assert [(alert["source"], alert["frame"], alert["score"]) for alert in got] == fired
    assert got[0]["box"] == [8, 4, 16, 20]
    assert (got[0]["id"], got[0]["name"], got[0]["time"]) == (7, "dog, puppy", 1001.0)
    crop = Image.open(io.BytesIO(base64.b64decode(got[0]["crop"])))
    assert (crop.format, crop.size) == ("JPEG", (8, 16))


@pytest.mark.parametrize("code", [500, 302, None])
def test_a_webhook_that_fails_is_told_in_a_line(code, receiver):
    webhook, got, handler = receiver
    handler.code = code or 200
    told = []
    webhook = webhook if code else "http://127.0.0.1:9/token"
    with Alerts(["dog:0.5"], CLASSES, webhook=webhook, forget_after=3, tell=told.append) as alerts:
        alerts.check(0, frame(0), [track(7, 0, 0.6)])
    assert len(told) == 2
    assert told[1].startswith(f"webhook: an alert could not be sent ({code or ''}")
    assert "token" not in told[1]
    assert len(got) == bool(code)


def test_alerts_that_wait_at_the_end_are_told(monkeypatch):
    monkeypatch.setattr("clipvis_jax.commands.alerts._LAST_WAIT_S", 0.05)
    told = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        webhook = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Alerts(["dog:0.5"], CLASSES, webhook=webhook, forget_after=3, tell=told.append) as alerts:
            alerts.check(0, frame(0), [track(number, 0, 0.6) for number in range(3)])
        assert told[3:] == ["webhook: too slow; alerts that are not sent at the end: 3"]


@pytest.mark.parametrize(
    ("rule", "webhook", "message"),
    [
        ("bird:0.5", None, "--alert bird:0.5: no class is named so"),
        ("dog", None, "--alert dog: give a class name, a colon and a score"),
        ("dog:1.5", None, "--alert dog:1.5: give a class name"),
        ("dog:nan", None, "--alert dog:nan: give a class name"),
        ("dog:0.5", "file:///etc/passwd", "--webhook: give an address"),
        ("dog:0.5", "http://me:secret@host/", "--webhook: give an address"),
        ("dog:0.5", "http://host:port/", "--webhook: give an address"),
    ],
)
def test_rules_and_addresses_that_cannot_be_used(rule, webhook, message):
    with pytest.raises(InputError) as caught:
        Alerts([rule], CLASSES, webhook=webhook, forget_after=3, tell=print)
    assert str(caught.value).startswith(message)
