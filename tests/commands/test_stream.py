"""``clipvis stream`` with a tiny model: lines, recordings, and what stops it."""

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import golden
from PIL import Image
from tiny import tiny_model_folder

from clipvis_jax.cli import main
from clipvis_jax.errors import InputError
from clipvis_jax.inference.loading import load
from clipvis_jax.inference.results import seen
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.media.video_reader import open_frames
from clipvis_jax.media.video_writer import VideoWriter

CLASSES = ["dog", "cat"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and ``clip.mp4``, 12 frames of 96 x 150 at 10 per second."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model_folder(folder / "model", "rn")
    frames = golden("tiny_inputs")["frames_u8"]
    with VideoWriter(folder / "clip.mp4", *frames.shape[1:3], 10.0) as writer:
        for frame in frames:
            writer.write(frame)
    return folder


@pytest.fixture(scope="module")
def opened(home):
    segmenter = load(home / "model", config=InferenceConfig(size=64))
    segmenter.start(CLASSES, background="auto", keep_frames=False)
    segmenter.warmup(96, 150)
    return segmenter


@pytest.fixture(autouse=True)
def quick(home, opened, monkeypatch):
    """Open the model once, so that the network is compiled once."""
    monkeypatch.setenv("CLIPVIS_CACHE", str(home / "cache"))

    def open_again(folder, *, dtype, config):
        opened.config = config
        return opened

    monkeypatch.setattr("clipvis_jax.inference.loading.load", open_again)


def stream(home, *options, classes=CLASSES):
    """Run the command on a model, with a low score, so that there are tracks."""
    given = ["--model", home / "model", "--classes", *classes, "--min-score", 0.01, "--size", 64]
    return main(["stream", *map(str, options), *map(str, given)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(error):
    """Return how many frames were segmented, and dropped."""
    return tuple(map(int, re.search(r"(\d+) frames, .* (\d+) dropped", error).groups()))


def without_times(line):
    return {key: value for key, value in line.items() if key != "time"}


def expected(home, opened, numbers):
    """What the streaming API gives of some frames of the clip."""
    frames = dict(open_frames(home / "clip.mp4"))
    opened.config = InferenceConfig(size=64, scores=ScoreConfig(over="visible", window=30))
    state, wanted = opened.start(CLASSES, background="auto", keep_frames=False), []
    for number in numbers:
        state, tracks = opened.step(state, frames[number], min_score=0.01)
        named = [{"id": t.track_id, "name": t.class_name, "score": t.score, "box": list(t.box)} for t in seen(tracks)]
        wanted.append({"source": 0, "frame": number, "tracks": named})
    return wanted


def test_lines_are_what_the_streaming_api_gives(home, opened, tmp_path, capsys):
    code = stream(home, home / "clip.mp4", "--jsonl", tmp_path / "tracks.jsonl", "--record", tmp_path / "out.mp4")
    assert code == 0
    written = lines(tmp_path / "tracks.jsonl")
    assert any(line["tracks"] for line in written)
    assert all(abs(line["time"] - time.time()) < 60 for line in written)
    numbers = [line["frame"] for line in written]
    assert (numbers[0], numbers[-1]) == (0, 11)
    assert list(map(without_times, written)) == expected(home, opened, numbers)
    assert counts(capsys.readouterr().err) == (len(written), 12 - len(written))
    with av.open(str(tmp_path / "out.mp4")) as container:
        recorded = list(container.decode(video=0))
    assert len(recorded) == len(written)
    times_s = np.array([line["time"] for line in written])
    assert np.allclose(np.diff([frame.time for frame in recorded])[1:], np.diff(times_s)[1:], atol=0.02)


def test_standard_input_to_standard_output(home, capsys, monkeypatch):
    with (home / "clip.mp4").open("rb") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert stream(home, "-", "--jsonl", "-") == 0
    printed = capsys.readouterr()
    numbers = [json.loads(line)["frame"] for line in printed.out.splitlines()]
    assert (numbers[0], numbers[-1]) == (0, 11)
    assert counts(printed.err) == (len(numbers), 12 - len(numbers))


def test_several_sources_share_the_model(home, tmp_path, capsys):
    both = home / "clip.mp4", tmp_path / "broken.mp4"
    both[1].write_bytes(b"no video")
    options = "--jsonl", tmp_path / "tracks.jsonl", "--record", tmp_path / "out.mp4", "--max-frames", 4
    assert stream(home, both[0], both[0], *options) == 0
    assert {line["source"] for line in lines(tmp_path / "tracks.jsonl")} == {0, 1}
    assert len(list(tmp_path.glob("out-?.mp4"))) == 2
    warning = f"clipvis: warning: {both[1]}: cannot be opened as a video"
    for options in (), ("--max-frames", 1):
        capsys.readouterr()
        assert stream(home, *both, "--jsonl", "-", *options) == 0
        assert capsys.readouterr().err.count(warning) == 1


def test_a_page_and_alerts_show_what_is_found(home, opened, tmp_path, capsys):
    found = expected(home, opened, [0])[0]["tracks"][0]
    options = "--http", 0, "--alert", f"{found['name']}:{found['score'] * 0.9}", "--max-frames", 2
    assert stream(home, home / "clip.mp4", *options) == 0
    error = capsys.readouterr().err
    assert "clipvis: live page at http://127.0.0.1:" in error
    assert f"clipvis: alert: {found['name']} (track " in error


def test_a_stream_goes_on_after_a_restart(home, opened, tmp_path, capsys):
    """Its tracks are those of a stream that was never stopped."""
    path, frames = tmp_path / "state.npz", golden("tiny_inputs")["frames_u8"]
    opened.config = InferenceConfig(size=64, scores=ScoreConfig(over="visible", window=3))
    state = opened.start(CLASSES, keep_frames=False)
    for frame in frames[:4]:
        state, _ = opened.step(state, frame)
    opened.save_state(state, path)
    again = opened.load_state(path, CLASSES)
    assert again.num_frames == 4
    for frame in frames[4:6]:
        (state, tracks), (again, tracks_again) = opened.step(state, frame), opened.step(again, frame)
    for one, other in zip(tracks, tracks_again, strict=True):
        assert (one.track_id, one.class_index, one.score) == (other.track_id, other.class_index, other.score)
        assert np.array_equal(one.mask, other.mask)
    with pytest.raises(InputError, match="is of a stream with other classes"):
        opened.load_state(path, [*CLASSES, "bird"])
    with pytest.raises(InputError, match="is of a stream with other scores"):
        opened.load_state(path, CLASSES, score_window=5)
    config, opened.config = opened.config, dataclasses.replace(opened.config, size=96)
    with pytest.raises(InputError, match="is of a stream with other size"):
        opened.load_state(path, CLASSES)
    opened.config = config
    whole = path.read_bytes()
    for broken in (b"", b"no state", whole[:1000], whole[:-30], whole.replace(b"history", b"mystery")):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="damaged"):
            opened.load_state(path, CLASSES)
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)
    changed = [{name: array[..., :1]} for name, array in arrays.items() if array.ndim]
    changed += [{"mask_area": arrays["mask_area"] * np.nan}, {"class_sum": np.array(["x"])}, {"facts": np.array("[]")}]
    for change in changed:
        np.savez(path, **arrays | change)
        if arrays.keys() & {name for name in change if not np.array_equal(change[name], arrays[name])}:
            with pytest.raises(InputError, match="damaged"):
                opened.load_state(path, CLASSES)


def test_the_command_keeps_its_state(home, opened, tmp_path, capsys):
    options = home / "clip.mp4", "--jsonl", tmp_path / "out.jsonl", "--max-frames", 2, "--state", tmp_path / "state.npz"
    assert [stream(home, *options) for _ in range(2)] == [0, 0]
    state = opened.load_state(tmp_path / "state.npz", CLASSES, background="auto")
    assert (state.num_frames, len(lines(tmp_path / "out.jsonl"))) == (4, 4)
    (tmp_path / "state.npz").write_bytes(b"no state")
    capsys.readouterr()
    assert stream(home, *options) == 2
    assert capsys.readouterr().err.startswith(f"clipvis: error: {tmp_path / 'state.npz'}: damaged (")


def test_a_source_that_changes_its_frame_size_begins_anew(home, tmp_path, capsys):
    source, state = tmp_path / "source.mjpeg", tmp_path / "state.npz"
    with source.open("wb") as file:
        for width in (150, 150, 148, 148):
            Image.new("RGB", (width, 96), "teal").save(file, "JPEG")
    options = source, "--jsonl", tmp_path / "out.jsonl", "--state", state
    assert stream(home, *options, "--record", tmp_path / "out.mp4") == 0
    told = f"clipvis: {source}: frames are 148x96 pixels now, and were 150x96; its tracks begin anew\n"
    assert capsys.readouterr().err.count(told) == 1
    with av.open(str(tmp_path / "out.mp4")) as container:
        shapes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert shapes == [(150, 96)] * len(lines(tmp_path / "out.jsonl"))
    assert stream(home, *options) == 0  # the state is of the second size
    assert "frames are 150x96 pixels now, and were 148x96" in capsys.readouterr().err


def test_the_state_does_not_grow(home, opened):
    opened.config = InferenceConfig(size=64, scores=ScoreConfig(over="visible", window=3))
    state = opened.start(CLASSES, keep_frames=False)
    frames = golden("tiny_inputs")["frames_u8"]
    sizes = []
    for number in range(24):
        state, _ = opened.step(state, frames[number % 12])
        tracker = state.tracker
        arrays = [*tracker.history, *(part for frame in tracker.sums.newest for part in frame)]
        sizes.append(sum(array.nbytes for array in arrays))
    assert sizes[-1] == sizes[9]
    assert state.store is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.mp4", "--jsonl", "-"], "nowhere.mp4: cannot be opened"),
        (["clip.mp4"], "nothing is asked for"),
        (["--jsonl", "-"], "no source given"),
        (["clip.mp4", "--jsonl", "no/such/folder.jsonl"], "no/such/folder.jsonl: its folder does not exist"),
        (["clip.mp4", "--record", "clip.mp4"], "clip.mp4: exists already"),
        (["clip.mp4", "--record", "out.avi"], "--record out.avi: an MP4 is written"),
        (["clip.mp4", "--http", "70000"], "--http 70000: must be between 0 and 65535"),
        (["clip.mp4", "--alert", "bird:0.5"], "--alert bird:0.5: no class is named so"),
        (["clip.mp4", "--jsonl", "-", "--webhook", "http://host"], "--webhook: there is nothing to send"),
        (["clip.mp4", "--jsonl", "-", "--fps", "0"], "--fps 0.0: must be more than 0"),
        (["clip.mp4", "--jsonl", "-", "--score-window", "0"], "--score-window 0: must be more than 0"),
        (["clip.mp4", "--jsonl", "-", "--seconds", "nan"], "--seconds nan: must be more than 0"),
        (["clip.mp4", "--jsonl", "model"], "model: cannot be written"),
        (["model/config.json", "--jsonl", "-"], "model/config.json: cannot be opened as a video"),
    ],
)
def test_what_cannot_be_used(options, message, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    before = sorted(home.iterdir())
    assert stream(home, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {message}")
    assert error.count("\n") == 1
    assert sorted(set(home.iterdir()) - {home / "cache"}) == sorted(set(before) - {home / "cache"})


RECORDER = """
import sys, time
import numpy as np
from clipvis_jax.media.video_writer import VideoWriter
with VideoWriter(sys.argv[1], 48, 64, 25.0, live=True) as writer:
    for number in range(10**6):
        writer.write(np.full((48, 64, 3), number % 250, np.uint8), number / 10)
        if number == 60:
            print("far enough", flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_recording_is_whole_whatever_ends_it(ending, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", RECORDER, tmp_path / "out.mp4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout.readline() == "far enough\n"
        process.send_signal(ending)
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mp4"]
    with av.open(str(tmp_path / "out.mp4")) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    # Of 6 seconds, 2 may be lost with a killed process.
    assert len(times_s) == 61 if ending == signal.SIGINT else 41 <= len(times_s) <= 61
    assert np.allclose(np.diff(times_s), 0.1, atol=0.001)
