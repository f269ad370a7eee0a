"""``clipvis app``: jobs, and the page by gradio's own client where gradio is installed."""

import asyncio
import dataclasses
import gc
import io
import json
import os
import shutil
import socket
import sys
import threading
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SIZE, clip_frames, tiny_tokenizer, wordy_state_dict

from clipvis_jax.cli import main
from clipvis_jax.commands import app_job
from clipvis_jax.commands.app_job import Limits
from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import VideoResult
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.media.video_writer import VideoWriter
from clipvis_jax.models.clipvis import ClipVis
from clipvis_jax.weights.convert import from_state_dict

LIMITS = Limits(megabytes=1, frames=8, pixels=10_000)
NAMES = ["dog, puppy", "<b>cat</b>"]


@pytest.fixture(scope="module")
def segmenter():
    config, *variables = from_state_dict(wordy_state_dict("rn"), source="rn", text_heads=4)
    settings = InferenceConfig(size=SIZE)
    return Segmenter(ClipVis(config), *variables, tokenizer=tiny_tokenizer(), config=settings, background=())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos of three frames and a zip of a folder."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [frame[:64, :80] for frame in clip_frames()]
    for name, chosen in {"first.mp4": frames[:3], "second.mp4": frames[:3][::-1]}.items():
        with VideoWriter(folder / name, 64, 80, 10.0) as writer:
            for frame in chosen:
                writer.write(frame)
    write_zip(folder / "frames.zip", {f"frames/{index}.png": png(frame) for index, frame in enumerate(frames[:3])})
    return folder


@pytest.fixture
def job(segmenter, clips, tmp_path):
    return app_job.segment(segmenter, clips / "first.mp4", NAMES, (), scratch=tmp_path, limits=LIMITS)


def png(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def expected(segmenter, path, names=NAMES, min_score=0.2) -> VideoResult:
    return segmenter.predict(path, names, min_score=min_score).best()


def as_shown(result: VideoResult):
    return [
        (track.track_id, track.class_name, pytest.approx(track.score), track.segmentations) for track in result.tracks
    ]


def test_a_job_is_what_predict_gives(segmenter, clips, job, tmp_path):
    for min_score in (0.05, 0.3):
        assert as_shown(job.shown(min_score)) == as_shown(expected(segmenter, clips / "first.mp4", min_score=min_score))
    names = ["cat", "dog"]
    renamed = app_job.rename(segmenter, job, names, ())
    assert as_shown(renamed.shown(0.05)) == as_shown(expected(segmenter, clips / "first.mp4", names, 0.05))
    unpacked = app_job.segment(segmenter, clips / "frames.zip", NAMES, (), scratch=tmp_path, limits=LIMITS)
    assert unpacked.facts["name"] == "frames"
    assert unpacked.facts["length"] == 3


def test_files_are_those_of_the_commands(job, tmp_path):
    shown = job.shown(0.05)
    tmp_path = tmp_path / "made"
    tmp_path.mkdir()
    written = app_job.write_files(job, shown, list(app_job.FILES), tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    names = " ".join(path.name for path in written)
    assert names == "tracks.json overlay.mp4 tracks.csv png.zip crops.zip coco.json labelstudio.zip mot.zip mots.zip"
    assert as_shown(VideoResult.load(tmp_path / "tracks.json")) == as_shown(shown)
    assert json.loads((tmp_path / "tracks.json").read_text())["video"]["name"] == "first.mp4"
    with zipfile.ZipFile(tmp_path / "png.zip") as archive:
        assert {"labels.csv", "labels/frame_000002.png"} <= set(archive.namelist())


def test_a_hidden_object_does_not_come_back_under_another_name(job):
    first, *others = job.shown(0.05).tracks
    index = 1 - first.class_index
    second = dataclasses.replace(first, class_index=index, class_name=NAMES[index], score=first.score / 2)
    twice = dataclasses.replace(job, result=dataclasses.replace(job.result, tracks=[first, *others, second]))
    left = [track.track_id for track in others if track.class_name != first.class_name]
    assert [track.track_id for track in twice.shown(0, [first.class_name]).tracks] == left
    alone = dataclasses.replace(job, result=dataclasses.replace(job.result, tracks=[first, second]))
    assert [name for _, name in alone.found()] == [first.class_name]


def test_what_is_shown_of_a_track(job):
    shown = job.shown(0.05)
    first = shown.tracks[0]
    pictures = app_job.cut_outs(job, shown, first.track_id)
    areas = [np.count_nonzero(np.asarray(picture)[..., 3]) for picture, _ in pictures]
    assert areas == [area for index in range(3) if (area := np.count_nonzero(first.mask(index)))]
    markup = app_job.timeline(shown)
    assert "<b>" not in markup
    assert "&lt;b&gt;cat" in markup
    assert app_job.table(shown)[0][2:] == [f"{first.score:.3f}", len(areas)]
    with pytest.raises(InputError, match="track 999: is not shown"):
        app_job.cut_outs(job, shown, 999)


def test_folders_go_with_their_jobs(segmenter, clips, tmp_path):
    job = app_job.segment(segmenter, clips / "first.mp4", NAMES, (), scratch=tmp_path, limits=LIMITS)
    renamed = app_job.rename(segmenter, job, ["cat"], ())
    (folder,) = tmp_path.iterdir()
    del job
    gc.collect()
    assert folder.is_dir()
    del renamed
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_space_is_limited(segmenter, clips, tmp_path, monkeypatch):
    def segment():
        app_job.segment(segmenter, clips / "first.mp4", NAMES, (), scratch=tmp_path, limits=LIMITS)

    with (tmp_path / "others").open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(InputError, match="no space for more files now"):
        segment()
    (tmp_path / "others").unlink()
    full = shutil.disk_usage(tmp_path)._replace(free=4_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="no space for more files now"):
        segment()
    assert not list(tmp_path.iterdir())


def lzma_zip():
    buffer = io.BytesIO()
    write_zip(buffer, {"1.png": bytes(100)}, zipfile.ZIP_LZMA)
    return buffer.getvalue().replace(b"]\0\0", b"]\xff\xff")  # a damaged header


FRAME = png(np.zeros((64, 80, 3), np.uint8))
REFUSED = {
    "notes.txt": (b"hello", "cannot be opened as a video"),
    "empty.mp4": (b"", "is empty"),
    "large.png": (bytes(1_000_001), "larger than 1 MB"),
    "wide.png": (png(np.zeros((10, 1001, 3), np.uint8)), "pixels"),
    "broken.zip": (b"PK\x03\x04 no zip", "no zip that can be read"),
    "nothing.zip": ({"notes.txt": b""}, "holds no picture"),
    "out.zip": ({"../../a.png": FRAME}, "leads out of the zip"),
    "root.zip": ({"/a.png": FRAME}, "leads out of the zip"),
    "drive.zip": ({"C:\\a.png": FRAME}, "leads out of the zip"),
    "folders.zip": ({"a/1.png": FRAME, "b/1.png": FRAME}, "several folders"),
    "lzma.zip": (lzma_zip(), "compressed in an unusual way"),
    "bomb.zip": ({"1.png": bytes(2_000_000)}, "unpacks to more than 1 MB"),
    "many.zip": ({f"{index}.png": FRAME for index in range(9)}, "holds 9 pictures; give at most 8"),
    "listing.zip": ({f"{index}.txt": b"" for index in range(81)}, "holds 81 files"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_uploads_that_cannot_be_used(name, segmenter, tmp_path):
    content, message = REFUSED[name]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if isinstance(content, dict):
        write_zip(tmp_path / name, content)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        app_job.segment(segmenter, tmp_path / name, NAMES, (), scratch=scratch, limits=LIMITS)
    told = app_job.without_paths(str(raised.value), scratch)
    assert str(tmp_path) not in told
    assert "\n" not in told
    del raised
    assert {path.name for path in tmp_path.iterdir()} == {name, "scratch"}


def test_long_videos_and_lists_are_refused(segmenter, clips, tmp_path):
    with pytest.raises(InputError, match=r"first.mp4: has more than 2 frames of 80x64 pixels"):
        app_job.segment(segmenter, clips / "first.mp4", NAMES, (), scratch=tmp_path, limits=Limits(frames=2))
    for separator, number in (("\n", 501), (",", 2001)):
        with pytest.raises(InputError, match=f"{number} with synonyms: give at most 500, and 2000 with synonyms"):
            app_job.read_words(separator.join(f"name {index}" for index in range(number)))


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "clipvis_jax.commands.app_page", raising=False)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "shared")
    assert main(["app"]) == 2
    assert "pip install 'clipvis-jax[app]'" in capsys.readouterr().err
    # gradio reads it when it is imported.
    assert os.environ["GRADIO_TEMP_DIR"] != "shared"


@pytest.mark.filterwarnings("ignore")  # of gradio and what it imports
def test_addresses_that_cannot_be_had(monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, message in {
            ("--host", "192.0.2.1"): "--host 192.0.2.1: cannot be listened on (",
            ("--host", "no..name"): "--host no..name: cannot be listened on (",
            ("--port", port): f"--port {port}: cannot be listened on (Address already in use); choose another",
        }.items():
            assert main(["app", *options]) == 2
            assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def address(segmenter, scratch):
    pytest.importorskip("gradio")
    from clipvis_jax.commands.app_page import free_port, launch, make_page  # noqa: PLC0415 (without gradio: none)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(scratch / "files"))
        monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with _unclosed_is_fine():
            page = make_page(segmenter, scratch=scratch, limits=LIMITS)
            address = launch(page, "127.0.0.1", free_port("127.0.0.1", None), scratch=scratch, limits=LIMITS)
        yield address
        with _unclosed_is_fine():
            page.close(verbose=False)
            del page


@contextmanager
def _unclosed_is_fine():
    """Let go of the event loops that gradio makes and never closes, lest a later test be blamed for them."""
    with warnings.catch_warnings(action="ignore"):
        yield
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.mark.filterwarnings("ignore")  # of gradio and what it imports
def test_page(address, segmenter, clips):
    client_module = pytest.importorskip("gradio_client")
    Client, handle_file = client_module.Client, client_module.handle_file  # noqa: N806
    AppError = client_module.exceptions.AppError  # noqa: N806
    told = {}

    def whole_job(name):
        client = Client(address, verbose=False, download_files=clips / name.partition(".")[0])
        client.predict(handle_file(clips / name), "\n".join(NAMES), False, api_name="/segment")
        first = client.predict(kinds=["tracks.json"], api_name="/download")
        client.predict("cat\ndog", False, api_name="/rename")
        told[name] = first[0], client.predict(kinds=["tracks.json", "CSV"], api_name="/download")[0]

    workers = [threading.Thread(target=whole_job, args=(name,)) for name in ("first.mp4", "second.mp4")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name, (first, renamed) in told.items():
        assert as_shown(VideoResult.load(first)) == as_shown(expected(segmenter, clips / name))
        assert as_shown(VideoResult.load(renamed)) == as_shown(expected(segmenter, clips / name, ["cat", "dog"]))
    assert len(told) == 2

    recipes = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
    script = recipes.partition("```py\n")[2].partition("```")[0]
    script = script.replace("http://127.0.0.1:7860", address).replace("clip.mp4", str(clips / "first.mp4"))
    made = {}
    exec(script, made)
    assert VideoResult.load(made["tracks"]).class_names == ("dog, puppy", "kettle")
    assert Path(made["overlay"]).name == "overlay.mp4"

    stranger = Client(address, verbose=False)
    with pytest.raises(AppError, match="nothing is segmented yet"):
        stranger.predict(api_name="/download")
    with pytest.raises(AppError, match=r"&lt;img src=x&gt;.*is given twice"):
        stranger.predict(handle_file(clips / "first.mp4"), "<img src=x>\n<img src=x>", False, api_name="/segment")
    elsewhere = {"path": "https://example.com/clip.mp4", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="give a file, not an address"):
        stranger.predict(elsewhere, "cat", False, api_name="/segment")


@pytest.mark.filterwarnings("ignore")
def test_what_is_closed(address, clips, scratch):
    httpx = pytest.importorskip("httpx")
    for path in (
        "file=https://example.com/", "file%3Dhttps://example.com/", "file/https://example.com/", "proxy=https://a.hf.space",
        "deep_link", "run-history/buckets", "component_server", "../monitoring",
    ):  # fmt: skip
        assert httpx.get(f"{address}gradio_api/{path}").status_code == 403, path
    call = {"data": [None, None, 0.5, [], ["tracks.json"]]}
    for path in ("run/download", "api/download", "process_recording"):
        assert httpx.post(f"{address}gradio_api/{path}", json=call).status_code == 403, path
    several = [("files", bytes(700_000)) for _ in range(3)]
    assert httpx.post(f"{address}gradio_api/upload", files=several).status_code == 413
    with (scratch / "others").open("wb") as file:
        file.truncate(50_000_001)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": bytes(900_000)})
    (scratch / "others").unlink()
    assert (answer.status_code, answer.text) == (
        507,
        "this machine has no space for more files now; come again in an hour",
    )
    answer = httpx.get(address)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert str(clips.parent) not in answer.text


@pytest.mark.filterwarnings("ignore")
def test_crops_follow_the_table(tmp_path):
    """Also where the chosen track's number stays the same, which the page does not take for a change."""
    pytest.importorskip("gradio")
    from clipvis_jax.commands.app_page import make_page  # noqa: PLC0415

    page = make_page(None, scratch=tmp_path, limits=LIMITS)
    assert not page.api_open  # what is not queued would have no limits
    events = page.config["dependencies"]
    (crops,) = {tuple(event["outputs"]) for event in events if event["api_name"] == "track"}
    tables = [event for event in events if event["api_name"].startswith("tracks")]
    assert len(tables) == 4
    for table in tables:
        assert crops in [tuple(event["outputs"]) for event in events if event["trigger_after"] == table["id"]]
