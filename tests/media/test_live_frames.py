"""Live sources on the loopback, on standard input and from files: the newest frame, and what is wrong with others."""

import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from clipvis_jax.errors import InputError
from clipvis_jax.media.live_frames import LiveFrames
from clipvis_jax.media.video_writer import VideoWriter

HEIGHT, WIDTH = 48, 64


def picture(number):
    return np.full((HEIGHT, WIDTH, 3), 10 * number % 250, np.uint8)


def jpeg(number):
    buffer = BytesIO()
    Image.fromarray(picture(number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@contextmanager
def serving(answer):
    """Serve on the loopback; ``answer(request)`` writes what a GET gets. Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def mjpeg(request, numbers, pause_s=0.02):
    """Answer as a network camera does."""
    request.send_response(200)
    request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    request.end_headers()
    try:
        for number in numbers:
            data = jpeg(number)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            request.wfile.write(head + data + b"\r\n")
            request.wfile.flush()
            time.sleep(pause_s)
    except OSError:
        pass  # the reader has gone


def clip(path, frames=12, fps=25.0):
    with VideoWriter(path, HEIGHT, WIDTH, fps) as writer:
        for number in range(frames):
            writer.write(picture(number))
    return path


def read(source, most=100, seconds=10.0, **options):
    """Take frames until the source ends."""
    taken, end_s = [], time.monotonic() + seconds
    arrived = threading.Event()
    with LiveFrames(str(source), arrived=arrived, **options) as frames:
        while time.monotonic() < end_s and len(taken) < most:
            ended = frames.ended
            if (frame := frames.take()) is not None:
                taken.append(frame)
            elif ended:
                break
            else:
                arrived.wait(0.1)
                arrived.clear()
    return taken, frames


def wait_until(is_true, seconds=30):
    end_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.fixture
def _clock(monkeypatch):
    """Time passes only where a source waits, so that a busy machine changes no number."""
    now = SimpleNamespace(s=0.0)

    class Waits(threading.Event):
        def wait(self, timeout=None):
            now.s += timeout
            return self.is_set()

    stopped = SimpleNamespace(monotonic=lambda: now.s, time=time.time)
    monkeypatch.setattr("clipvis_jax.media.live_frames.time", stopped)
    monkeypatch.setattr("clipvis_jax.media.live_frames.Event", Waits)


@pytest.mark.usefixtures("_clock")
def test_a_file_is_played_at_its_pace(tmp_path):
    begun_s = time.time()
    taken, frames = read(clip(tmp_path / "12:30.mp4"))
    assert (frames.error, taken[-1].number, taken[-1].image.shape) == (None, 11, (HEIGHT, WIDTH, 3))
    assert len(taken) + frames.dropped == 12
    assert taken[-1].arrived_s == pytest.approx(11 / 25)
    assert abs(int(taken[-1].image.mean()) - 110) <= 2
    assert begun_s <= taken[-1].time_s <= time.time()


def test_only_the_newest_frame_is_kept(tmp_path):
    with LiveFrames(str(clip(tmp_path / "clip.mp4", fps=100.0))) as frames:
        wait_until(lambda: frames.ended)
        assert (frames.take().number, frames.dropped) == (11, 11)
        assert frames.take() is None


@pytest.mark.usefixtures("_clock")
def test_frames_per_second_are_limited(tmp_path):
    taken, frames = read(clip(tmp_path / "clip.mp4", frames=16, fps=30.0), fps=10.0)
    assert len(taken) + frames.dropped == 6


def test_a_pipe_waits_at_its_first_frame(tmp_path, monkeypatch):
    arrived = threading.Event()
    with clip(tmp_path / "clip.mp4").open("rb") as file:
        monkeypatch.setattr("sys.stdin", file)
        with LiveFrames("-", waits=True, arrived=arrived) as frames:
            assert arrived.wait(30)
            first = frames.take()
            time.sleep(0.05)  # it would have ended by now
            assert frames.go_on(first).number == first.number == 0
            wait_until(lambda: frames.ended)
            assert (frames.take().number, frames.dropped) == (11, 10)


def test_what_comes_before_it_goes_on_is_dropped(tmp_path):
    arrived = threading.Event()
    with LiveFrames(str(clip(tmp_path / "clip.mp4", fps=100.0)), arrived=arrived) as frames:
        assert arrived.wait(30)
        first = frames.take()
        wait_until(lambda: frames.ended)
        assert (frames.go_on(first).number, frames.dropped) == (11, 11)


@pytest.mark.parametrize("name", ["stdin", "fifo"])
def test_standard_input_is_read_as_it_comes(name, tmp_path, monkeypatch):

    path = clip(tmp_path / "clip.mp4")
    if name == "stdin":
        with path.open("rb") as file:
            monkeypatch.setattr("sys.stdin", file)
            taken, frames = read("-")
    else:
        os.mkfifo(tmp_path / "pipe")
        video = BytesIO()

        with av.open(video, "w", format="matroska") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            for number in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
            container.mux(stream.encode(None))
        thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(video.getvalue()))
        thread.start()
        taken, frames = read(tmp_path / "pipe")
        thread.join()
    assert frames.error is None
    assert taken[-1].number == 11
    assert len(taken) + frames.dropped == 12


def test_a_network_camera_is_read_and_comes_back(monkeypatch):
    monkeypatch.setattr("clipvis_jax.media.live_frames._FIRST_WAIT_S", 0.05)
    told, visits = [], []

    def camera(request):
        visits.append(request.path)
        mjpeg(request, range(8) if len(visits) == 1 else range(8, 400))

    with serving(camera) as address:
        secret = address.replace("://", "://me:secret@") + "/live?token=secret"
        taken, frames = read(secret, most=20, tell=told.append)
    assert len(taken) == 20
    assert frames.name == f"{address}/live"
    assert len(told) == 1
    assert told[0].startswith(f"{address}/live: connection lost (")
    assert visits == ["/live?token=secret"] * 2
    assert abs(int(taken[-1].image.mean()) - 10 * taken[-1].number % 250) <= 5


def test_a_video_file_on_a_server_ends(tmp_path):
    path = clip(tmp_path / "clip.mp4")

    def file(request):
        request.send_response(200)
        request.send_header("Content-Length", str(path.stat().st_size))
        request.end_headers()
        request.wfile.write(path.read_bytes())

    with serving(file) as address:
        taken, frames = read(address)
    assert frames.error is None
    assert taken[-1].number == 11


def page(request):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"<html>no video</html>" * 100)


def playlist(request):
    request.send_response(200)
    request.send_header("Content-Type", "application/vnd.apple.mpegurl")
    request.end_headers()
    request.wfile.write(b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")


def broken(request):
    mjpeg_head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 4\r\n\r\nnope\r\n"
    request.send_response(200)
    request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    request.end_headers()
    request.wfile.write(mjpeg_head * 20)


@pytest.mark.parametrize("answer", [page, playlist, broken, lambda request: request.send_error(404)])
def test_servers_that_give_no_video(answer):
    with serving(answer) as address:
        taken, frames = read(address)
    assert not taken
    assert str(frames.error).startswith(f"{address}: ")
    assert "\n" not in str(frames.error)


def test_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("clipvis_jax.media.live_frames._TIMEOUT_S", 0.2)
    with serving(lambda request: request.rfile.read(1)) as address:  # until the reader has gone
        taken, frames = read(address)
    assert not taken
    assert str(frames.error).startswith(f"{address}: cannot be opened as a video (it does not answer)")


@pytest.mark.parametrize("content", [b"", b"no video", b"ffconcat version 1.0\nfile /etc/passwd\n"])
def test_files_that_are_no_videos(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    try:
        error = read(tmp_path / "file")[1].error
    except InputError as refused:
        error = refused
    assert str(error).startswith(f"{tmp_path / 'file'}: ")


def test_a_damaged_file_goes_on_after_its_damage():
    taken, frames = read(Path(__file__).parents[1] / "cases" / "media" / "corrupt.avi")
    assert frames.error is None
    assert len(taken) > 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("999", "/dev/video999: there is no such camera"),
        ("nowhere.mp4", "nowhere.mp4: cannot be opened (No such file or directory)"),
        (".", ".: is no file"),
        ("ftp://host/clip.mp4", "ftp://: no kind of stream that is read here"),
        ("concat://a|b", "concat://: no kind of stream that is read here"),
        ("http:///clip", "http://...: names no host"),
        ("http://host:port/", "http://...: is no valid address"),
    ],
)
def test_what_is_no_source(source, message):
    with pytest.raises(InputError) as caught:
        LiveFrames(source)
    assert str(caught.value).startswith(message)


def test_frames_that_are_too_large_are_refused(tmp_path):
    _, frames = read(clip(tmp_path / "clip.mp4"), max_pixels=HEIGHT * WIDTH - 1)
    assert "more than" in str(frames.error)
