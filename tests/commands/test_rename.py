"""``clipvis rename``: what it makes of the files of a run; the results themselves are tested in test_cli.py."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from clipvis_jax.cli import main
from clipvis_jax.commands.predict_outputs import write_results
from clipvis_jax.commands.sources import source_state
from clipvis_jax.inference.raw_video import RawVideo, load_video, save_video
from clipvis_jax.inference.results import Raw, Track, TrackMasks, VideoResult
from clipvis_jax.masks.resize import encode_rle, pack_mask_logits
from clipvis_jax.media.images import MAX_PIXELS
from clipvis_jax.media.video_reader import FrameSelection, open_frames

CASES = Path(__file__).parents[1] / "cases" / "media"


def segment(source: Path, out: Path, selection: FrameSelection | None = None, on_error: str = "stop") -> VideoResult:
    """Write what ``clipvis predict --save-raw`` would of a network that finds one instance in every frame."""
    selection = selection or FrameSelection()
    frames = open_frames(source, selection, on_error=on_error)
    count, size = len(list(frames)), (frames.height, frames.width)
    packed = pack_mask_logits(np.ones((count, 8, 8), np.float32))
    column = np.ones((count, 1), np.float32)
    raw = RawVideo(
        object_logits=np.ones((count, 1, 2), np.float32),
        iou=column,
        query_embed=column[..., None],
        visual_embed=column[..., None],
        mask_area=column,
        mask_prob_sum=column,
        masks=np.frombuffer(b"".join(packed), np.uint8),
        mask_ends=np.cumsum([len(mask) for mask in packed]).reshape(count, 1),
        mask_sizes=np.array([(8, 8), (32, 32), (32, 32), size]),
    )
    masks = TrackMasks(size, [encode_rle(np.ones(size, bool))["counts"]] * count)
    result = VideoResult([Track(0, 0, "dog", 0.9, masks)], ("dog",), *size, count, raw=Raw(raw, None))
    facts = {
        "model": str(source.resolve().parent),
        "dtype": "float32",
        "text_digest": "digest",
        "source": str(source),
        "source_state": source_state(source),
        "selection": dataclasses.asdict(selection),
        "on_error": on_error,
        "max_pixels": MAX_PIXELS,
    }
    out.mkdir()
    write_results(out, result, frames, selection, overlay=True, show_progress=False, raw_facts=facts)
    return result


def rename(raw: Path, result: VideoResult, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    segmenter = SimpleNamespace(text_digest=lambda: "digest", rename=lambda *_, **__: result)
    monkeypatch.setattr("clipvis_jax.inference.loading.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("clipvis_jax.inference.loading.enable_compilation_cache", lambda: None)
    return main(["rename", str(raw), "--classes", "dog", "--out", str(out), *options])


def shown_at(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize(
    ("name", "selection", "on_error"),
    [("vfr.mkv", FrameSelection(8, 13), "stop"), ("corrupt.avi", FrameSelection(6, 13, 2), "skip")],
)
def test_frames_are_shown_when_they_were(name, selection, on_error, tmp_path, monkeypatch):
    result = segment(CASES / name, tmp_path / "first", selection, on_error)
    assert rename(tmp_path / "first", result, tmp_path / "out", monkeypatch) == 0
    times_s = shown_at(tmp_path / "out" / "overlay.mp4")
    assert times_s == shown_at(tmp_path / "first" / "overlay.mp4")
    assert max(np.diff(times_s)) > 1.5 * min(np.diff(times_s))
    first, second = ((tmp_path / folder / "tracks.json").read_text() for folder in ("first", "out"))
    assert first == second


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 32)).save(frames / f"{number}.png")
    return frames


@pytest.mark.parametrize("change", ["one more", "one less", "another size", "other pixels"])
def test_a_changed_source_is_not_drawn_on(change, folder, tmp_path, monkeypatch, capsys):
    result = segment(folder, tmp_path / "first")
    if change == "one less":
        (folder / "2.png").unlink()
    else:
        size = (20, 16) if change == "another size" else (40, 32)
        Image.new("RGB", size, "red").save(folder / ("3.png" if change == "one more" else "1.png"))
    before = sorted(tmp_path.rglob("*"))
    assert rename(tmp_path / "first", result, tmp_path / "out", monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {folder}: has changed since it was segmented")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert rename(tmp_path / "first", result, tmp_path / "out", monkeypatch, "--no-overlay") == 0
    # Unnoticed, it is seen by the number and size of the frames alone.
    raw, facts = load_video(tmp_path / "first" / "raw.npz")
    save_video(tmp_path / "raw.npz", raw, facts | {"source_state": source_state(folder)})
    code = rename(tmp_path / "raw.npz", result, tmp_path / "late", monkeypatch)
    assert code == (0 if change == "other pixels" else 2)


@pytest.mark.parametrize("model", ["hf://someone/x", "model.zip", "../model"])
def test_a_file_does_not_choose_what_is_fetched(model, folder, tmp_path, monkeypatch, capsys):
    result = segment(folder, tmp_path / "first")
    raw, facts = load_video(tmp_path / "first" / "raw.npz")
    save_video(tmp_path / "raw.npz", raw, facts | {"model": model})
    assert rename(tmp_path / "raw.npz", result, tmp_path / "out", monkeypatch, "--no-overlay") == 2
    assert f"was predicted by {model}, which is no folder here; give --model" in capsys.readouterr().err
    options = "--no-overlay", "--model", str(folder)
    assert rename(tmp_path / "raw.npz", result, tmp_path / "out", monkeypatch, *options) == 0


def test_names_that_are_no_text(folder, tmp_path, monkeypatch, capsys):
    source = tmp_path / os.fsdecode(b"caf\xe9")
    folder.rename(source)
    result = segment(source, tmp_path / "first")
    assert json.loads((tmp_path / "first" / "tracks.json").read_text())["video"]["name"] == "caf\ufffd"
    assert VideoResult.load(tmp_path / "first" / "tracks.json").num_frames == 3
    assert rename(tmp_path / "first", result, tmp_path / "out", monkeypatch) == 0


DAMAGED = {
    "iou": lambda array: array[:2],
    "visual_embed": lambda array: array[..., 0],
    "query_embed": lambda array: array.astype("U1"),
    "masks": lambda array: array[:-1],
    "mask_ends": lambda array: array[::-1],
    "mask_sizes": lambda array: array + 1,
    "selection": lambda _: None,
    "dtype": lambda _: "float16",
    "video": lambda video: video | {"height": 1},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_hold_something_else(name, folder, tmp_path, monkeypatch, capsys):
    result = segment(folder, tmp_path / "first")
    path = tmp_path / "first" / "raw.npz"
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(arrays["facts"].item())
    (arrays if name in arrays else facts)[name] = DAMAGED[name]((arrays | facts)[name])
    np.savez(path, **arrays | {"facts": np.array(json.dumps(facts))})
    assert rename(path, result, tmp_path / "out", monkeypatch, "--no-overlay") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {path}: damaged (")
    assert error.count("\n") == 1
