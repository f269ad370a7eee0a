"""What ``clipvis predict`` writes and prints, of results that are made up here."""

import dataclasses
import errno
import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.commands import predict_outputs
from clipvis_jax.commands.predict import Predict
from clipvis_jax.commands.predict_outputs import output_folder, overlay_path, print_summary, write_results
from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.media.video_reader import FrameSelection, FrameSource, open_frames
from clipvis_jax.media.video_writer import VideoWriter
from clipvis_jax.media.visualize import track_color

HEIGHT, WIDTH, FPS = 47, 63, 25.0
GREY = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
CLASSES = ("dog, puppy", "[red]kettle[/]", "coffee cup")


def make_masks(num_frames: int) -> np.ndarray:
    """Masks of three tracks: the first moves, the second is absent in frame 0, the third never seen."""
    masks = np.zeros((3, num_frames, HEIGHT, WIDTH), bool)
    for frame in range(num_frames):
        masks[0, frame, 20:40, 2 + frame % 20 : 22 + frame % 20] = True
    masks[1, 1:, 10:30, 45:60] = True
    return masks


def store(masks: np.ndarray) -> TrackMasks:
    return TrackMasks(masks.shape[1:], [encode_rle(mask)["counts"] for mask in masks])


def make_result(num_frames: int) -> VideoResult:
    """Four results; track 0 is listed under two classes."""
    masks = make_masks(num_frames)
    tracks = [
        Track(track, index, CLASSES[index], score, store(masks[track]))
        for track, index, score in [(0, 0, 0.9), (1, 1, 0.8), (0, 2, 0.4), (2, 2, 0.25)]
    ]
    return VideoResult(tracks, CLASSES, HEIGHT, WIDTH, num_frames)


def make_source(folder: Path, kind: str, selection: FrameSelection, num_frames: int = 12) -> FrameSource:
    if kind == "video":
        path = folder / "clip.mp4"
        with VideoWriter(path, HEIGHT + 1, WIDTH + 1, FPS) as writer:  # H.264 has even sizes
            for _ in range(num_frames):
                writer.write(np.pad(GREY, ((0, 1), (0, 1), (0, 0)), mode="edge"))
    elif kind == "folder":
        path = folder / "frames"
        path.mkdir()
        for index in range(num_frames):
            Image.fromarray(GREY).save(path / f"{index}.png")
    else:
        path = folder / "image.png"
        Image.fromarray(GREY).save(path)
    return open_frames(path, selection)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def summary(result: VideoResult, numbers: Sequence[int] | None = None) -> str:
    with redirect_stdout(io.StringIO()) as text, patch.dict("os.environ", COLUMNS="100"):
        print_summary(result, numbers or range(result.num_frames))
    return text.getvalue()


# --- tracks


def test_tracks_are_youtube_vis_results(tmp_path: Path) -> None:
    selection = FrameSelection(2, 10, 3)
    result = make_result(3)
    source = make_source(tmp_path, "folder", selection)
    (path,) = write_results(tmp_path, result, source, selection, overlay=False, show_progress=False)
    content = json.loads(path.read_text())
    assert content["video"] == {
        "id": 1,
        "name": "frames",
        "height": HEIGHT,
        "width": WIDTH,
        "length": 3,
        "fps": None,
        "frame_numbers": [2, 5, 8],
    }
    assert content["categories"] == [
        {"id": 1, "name": "dog, puppy", "synonyms": ["dog", "puppy"]},
        {"id": 2, "name": "[red]kettle[/]", "synonyms": ["[red]kettle[/]"]},
        {"id": 3, "name": "coffee cup", "synonyms": ["coffee cup"]},
    ]
    found = [(r["track_id"], r["category_id"], r["category_name"], r["score"]) for r in content["results"]]
    assert found == [
        (0, 1, "dog, puppy", 0.9),
        (1, 2, "[red]kettle[/]", 0.8),
        (0, 3, "coffee cup", 0.4),
        (2, 3, "coffee cup", 0.25),
    ]
    masks = make_masks(3)
    for record in content["results"]:
        assert record["video_id"] == 1
        decoded = np.stack([coco_mask.decode(rle) for rle in record["segmentations"]]).astype(bool)
        np.testing.assert_array_equal(decoded, masks[record["track_id"]])


def test_embeddings_are_written_when_asked_for(tmp_path: Path) -> None:
    result, source = make_result(1), make_source(tmp_path, "image", FrameSelection())
    vectors = np.eye(4, dtype=np.float32)
    result = dataclasses.replace(
        result, tracks=[dataclasses.replace(t, embedding=vectors[t.track_id]) for t in result.tracks]
    )
    for wanted in (True, False):
        (path,) = write_results(
            tmp_path, result, source, FrameSelection(), overlay=False, show_progress=False, embeddings=wanted
        )
        records = json.loads(path.read_text())["results"]
        expected = [vectors[track.track_id].tolist() if wanted else None for track in result.tracks]
        assert [record.get("embedding") for record in records] == expected


def test_facts_of_a_video(tmp_path: Path) -> None:
    source = make_source(tmp_path, "video", FrameSelection())
    (path,) = write_results(tmp_path, make_result(12), source, FrameSelection(), overlay=False, show_progress=False)
    video = json.loads(path.read_text())["video"]
    assert (video["name"], video["fps"], video["frame_numbers"]) == ("clip.mp4", FPS, list(range(12)))


CASES = Path(__file__).parents[1] / "cases" / "media"


def write_case(name: str, out: Path, selection: FrameSelection, **options: object) -> dict:
    """Write the results of a source that was read, as after a prediction; return what is told of the video."""
    source = open_frames(CASES / name, selection, **options)
    result = VideoResult([], CLASSES, source.height, source.width, len(list(source)))
    written = write_results(out, result, source, selection, overlay=True, show_progress=False)
    assert written == [out / "tracks.json", out / "overlay.mp4"]
    return json.loads(written[0].read_text())["video"]


def test_frames_are_shown_when_they_were(tmp_path: Path) -> None:
    video = write_case("vfr.mkv", tmp_path, FrameSelection())
    assert video["frame_times_s"][10:12] == [0.4, 3.44]
    assert video["frame_times_s"][-1] == 3.76
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(video["frame_times_s"])


def test_skipped_frames_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="missing: 8"):
        video = write_case("corrupt.avi", tmp_path, FrameSelection(6, None, 2), on_error="skip")
    assert video["frame_numbers"] == [6, 10, 12, 14, 16, 18]
    assert video["skipped_frames"] == [8]
    assert video["frame_times_s"] == [0.24, 0.4, 0.48, 0.56, 0.64, 0.72]
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx([0, 0.16, 0.24, 0.32, 0.4, 0.48])


def test_pixels_keep_their_shape_on_the_screen(tmp_path: Path) -> None:
    write_case("sar.mp4", tmp_path, FrameSelection())
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert Fraction(container.streams.video[0].sample_aspect_ratio) == Fraction(32, 27)


def test_an_animation_gives_a_video(tmp_path: Path) -> None:
    video = write_case("anim.webp", tmp_path, FrameSelection())
    assert (video["length"], video["fps"], video["frame_times_s"]) == (5, 10.0, [0.0, 0.1, 0.2, 0.3, 0.4])


# --- overlay


@pytest.mark.parametrize(("kind", "fps"), [("video", FPS), ("folder", predict_outputs.FOLDER_FPS)])
@pytest.mark.parametrize("every", [1, 5])
def test_overlay_is_a_video_that_browsers_play(kind: str, fps: float, every: int, tmp_path: Path) -> None:
    selection = FrameSelection(1, None, every)
    source = make_source(tmp_path, kind, selection)
    frames = len(selection.numbers(12))
    result = make_result(frames)
    if kind == "video":
        result = VideoResult([], CLASSES, source.height, source.width, frames)
    out = tmp_path / "out"
    out.mkdir()
    written = write_results(out, result, source, selection, overlay=True, show_progress=False)
    assert written == [out / "tracks.json", out / "overlay.mp4"]
    assert set(contents(out)) == {"tracks.json", "overlay.mp4"}
    with av.open(str(out / "overlay.mp4")) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(fps / every)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == frames
    assert decoded[0].shape == (HEIGHT + 1, WIDTH + 1, 3)  # even


def test_overlay_shows_the_masks_and_they_move(tmp_path: Path) -> None:
    source = make_source(tmp_path, "folder", FrameSelection())
    write_results(tmp_path, make_result(12), source, FrameSelection(), overlay=True, show_progress=False)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24")[:HEIGHT, :WIDTH] for frame in container.decode(video=0)]
    changed = [np.abs(frame.astype(int) - GREY).max(axis=2) > 40 for frame in decoded]
    for frame in (0, 11):
        inside = make_masks(12)[0, frame]
        assert changed[frame][inside].mean() > 0.9
        assert not changed[frame][42:].any()
    assert changed[0][32:39, 4].all()
    assert not changed[11][32:39, 4].any()
    # The second track begins in frame 1.
    assert not changed[0][22:29, 46:58].any()
    assert changed[1][22:29, 46:58].any()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is drawn on each frame: for every track whether it is seen, its label and its colour."""
    calls = []

    def record(frame, masks, labels, colors):
        seen = masks.any(axis=(1, 2)).tolist()
        calls.append([(*track[:2], tuple(track[2])) for track in zip(seen, labels, colors.tolist(), strict=True)])
        return frame

    monkeypatch.setattr("clipvis_jax.inference.results.draw_tracks", record)
    return calls


def test_an_instance_is_drawn_once_under_its_best_class(drawn: list, tmp_path: Path) -> None:
    source = make_source(tmp_path, "image", FrameSelection())
    write_results(tmp_path, make_result(1), source, FrameSelection(), overlay=True, show_progress=False)
    # What does not show in the frame is not drawn.
    assert drawn == [[(True, "dog 0.90", track_color(0))]]


def test_some_classes_alone_are_drawn(drawn: list, tmp_path: Path) -> None:
    """Of an instance the best class counts; tracks.json has them all."""
    source = make_source(tmp_path, "folder", FrameSelection(), num_frames=2)
    for names, expected in ((("dog",), ["dog 0.90"]), (("[red]kettle[/]", "coffee cup"), ["[red]kettle[/] 0.80"])):
        drawn.clear()
        shown = Predict(source=(), model=Path("m"), show=names).read_shown(CLASSES)
        options = {"overlay": True, "show_progress": False, "shown": shown}
        tracks, _ = write_results(tmp_path, make_result(2), source, FrameSelection(), **options)
        assert [label for _, label, _ in drawn[-1]] == expected
        assert len(json.loads(tracks.read_text())["results"]) == 4
    assert Predict(source=(), model=Path("m")).read_shown(CLASSES) is None


def test_names_of_two_lines_are_drawn_in_one(drawn: list, tmp_path: Path) -> None:
    source = make_source(tmp_path, "image", FrameSelection())
    mask = store(np.ones((1, HEIGHT, WIDTH), bool))
    result = VideoResult([Track(0, 0, "two\nlines", 0.5, mask)], ("two\nlines",), HEIGHT, WIDTH, 1)
    write_results(tmp_path, result, source, FrameSelection(), overlay=True, show_progress=False)
    assert drawn == [[(True, "two lines 0.50", track_color(0))]]


def test_classes_that_share_a_synonym_are_told_apart(drawn: list) -> None:
    mask, names = store(np.ones((1, HEIGHT, WIDTH), bool)), ("crane, bird", "crane, machine")
    VideoResult([Track(0, 1, names[1], 0.5, mask)], names, HEIGHT, WIDTH, 1).plot(0)
    assert drawn == [[(True, "crane, machine 0.50", track_color(0))]]


def test_overlay_of_an_image_is_an_image(tmp_path: Path) -> None:
    source = make_source(tmp_path, "image", FrameSelection())
    written = write_results(tmp_path, make_result(1), source, FrameSelection(), overlay=True, show_progress=False)
    assert written[1] == overlay_path(tmp_path, source) == tmp_path / "overlay.png"
    with Image.open(written[1]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (WIDTH, HEIGHT))
        assert np.any(np.asarray(image) != GREY)


def test_a_large_distance_between_frames_is_not_too_slow_for_a_video(tmp_path: Path) -> None:
    selection = FrameSelection(0, None, 100_000)
    source = make_source(tmp_path, "folder", selection, num_frames=2)
    write_results(tmp_path, make_result(1), source, selection, overlay=True, show_progress=False)
    assert (tmp_path / "overlay.mp4").is_file()


# --- both or none


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("step", ["write_tracks", "draw_tracks", "VideoWriter.write", "VideoWriter._finish"])
def test_old_results_stay_when_writing_fails(
    step: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path, "folder", FrameSelection())
    out = tmp_path / "out"
    out.mkdir()
    for file in ("tracks.json", "overlay.mp4"):
        (out / file).write_text(f"old {file}")
    before = contents(out)

    def fail(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        room = "inference.results" if step == "draw_tracks" else "commands.predict_outputs"
        patch.setattr(f"clipvis_jax.{room}.{step}", fail)
        expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else InputError
        with pytest.raises(expected) as caught:
            write_results(out, make_result(12), source, FrameSelection(), overlay=True, show_progress=False)
    if expected is InputError:
        assert "cannot be written (No space left on device); free some space" in str(caught.value)
    assert contents(out) == before


def test_new_results_never_stand_beside_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the process is killed: where tracks.json is, the overlay is of the same run."""
    source = make_source(tmp_path, "folder", FrameSelection())
    out = tmp_path / "out"
    out.mkdir()
    for file in ("tracks.json", "overlay.mp4"):
        (out / file).write_text("old")
    seen = []
    replace = Path.replace

    def look(path: Path, target: Path) -> Path:
        seen.append({name: b"old" in data for name, data in contents_of_files(out).items()})
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    write_results(out, make_result(12), source, FrameSelection(), overlay=True, show_progress=False)
    old, new = {"tracks.json": True, "overlay.mp4": True}, {"overlay.mp4": False}
    assert seen == [old] * (len(seen) - 2) + [{"overlay.mp4": True}, new]
    assert sorted(contents(out)) == ["overlay.mp4", "tracks.json"]


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_new_folder_goes_when_the_work_fails(tmp_path: Path) -> None:
    for keep in (False, True):
        (tmp_path / "old").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "old" / "a" / "b") as folder:  # noqa: PT012
            assert folder.is_dir()
            if keep:
                (folder.parent / "notes.txt").write_text("mine")
            raise KeyboardInterrupt
        assert (tmp_path / "old").is_dir()
        assert [path.name for path in tmp_path.rglob("*")] == (["old", "a", "notes.txt"] if keep else ["old"])
    with output_folder(tmp_path / "new") as folder:
        assert folder.is_dir()
    assert folder.is_dir()


@pytest.mark.parametrize("place", ["file", "file/out", "a/b/" + "n" * 300, "/proc/out"])
def test_a_folder_that_cannot_be(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError) as caught, output_folder(tmp_path / place):
        pytest.fail("the block was entered")
    assert str(caught.value).startswith(f"{tmp_path / place}: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


# --- summary


def test_summary_lists_every_result() -> None:
    lines = summary(make_result(4), range(10, 30, 5)).splitlines()
    assert lines[0].strip() == "4 results, 3 instances, 4 frames"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    area = f"{20 * 20 / (HEIGHT * WIDTH):.1%}"
    assert rows == [
        ["0", "dog, puppy", "0.900", "4", "10-25", area],
        ["1", "[red]kettle[/]", "0.800", "3", "15-25", f"{20 * 15 / (HEIGHT * WIDTH):.1%}"],
        ["0", "coffee cup", "0.400", "4", "10-25", area],
        ["2", "coffee cup", "0.250", "0", "-", "-"],
    ]


def test_a_name_in_the_summary_cannot_control_the_terminal() -> None:
    result = make_result(1)
    result = dataclasses.replace(result, tracks=[dataclasses.replace(result.tracks[0], class_name="a\x1b[2J\nb")])
    assert r"a\x1b[2J\nb" in summary(result)


def test_summary_of_a_long_video() -> None:
    """Pycocotools measures at most 255 masks at a time."""
    assert "│    300 │      0-299 │" in summary(make_result(300))


def test_summary_of_nothing_says_what_to_do() -> None:
    result = VideoResult([], CLASSES, HEIGHT, WIDTH, 1)
    assert summary(result) == "0 results, 0 instances, 1 frame; a lower --min-score shows more\n"
