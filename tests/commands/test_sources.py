"""Several sources of ``clipvis predict``: what is meant, where each is written, and what is left to do."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipvis_jax.cli import main
from clipvis_jax.commands.predict import Predict
from clipvis_jax.commands.sources import find_sources, folder_names
from clipvis_jax.errors import InputError


@pytest.fixture
def footage(tmp_path):
    """A folder as people have it: videos, frames, pictures in a folder, and other things."""
    folder = tmp_path / "footage"
    for name in (
        "10.mp4",
        "2.MOV",
        "notes.txt",
        ".hidden.mp4",
        "frames/1.png",
        "frames/2.png",
        "empty/a.txt",
        "**/3.mp4",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
        else:
            path.write_bytes(b"x")
    return folder


def test_what_is_meant(footage, monkeypatch):
    def found(*given):
        return [
            path.relative_to(footage).as_posix()
            for path in find_sources([footage / name for name in given], footage / "out")
        ]

    assert found(".") == ["2.MOV", "10.mp4", "frames"]
    assert found("frames") == ["frames"]
    assert found("frames/2.png", "10.mp4", "10.mp4") == ["frames/2.png", "10.mp4"]
    assert found("*.mp4", "frames/*") == ["10.mp4", "frames/1.png", "frames/2.png"]
    # What exists is no pattern; what is not there, or holds nothing, is for the reader to say.
    assert found("**") == ["**/3.mp4"]
    assert found("nothing.mp4", "empty", "notes.txt") == ["nothing.mp4", "empty", "notes.txt"]
    assert found("f*") == ["frames"]
    (footage / "out" / "10").mkdir(parents=True)
    (footage / "out" / "10" / "overlay.mp4").touch()
    assert found("*.mp4", "out/10/overlay.mp4") == ["10.mp4", "out/10/overlay.mp4"]
    assert found("*/**/*.mp4") == ["**/3.mp4"]  # a second run finds what the first one wrote
    for pattern in ("*.avi", "out/*/*.mp4", "emp*"):
        with pytest.raises(InputError, match=r": matches no video or image; check the pattern$"):
            found(pattern)
    monkeypatch.chdir(footage)
    assert find_sources([Path("*.mp4")], Path("out")) == [Path("10.mp4")]


def test_images_beside_videos_are_told(footage):
    (footage / "thumb.jpg").touch()
    with pytest.raises(InputError, match=r"footage: holds 1 image\(s\) and 2 video\(s\); name the videos, or put"):
        find_sources([footage], footage / "out")
    (footage / "frames" / "made.mp4").touch()
    with pytest.warns(UserWarning, match=r"frames: holds 2 image\(s\) and 1 video\(s\); the images are taken"):
        assert find_sources([footage / "frames"], footage / "out") == [footage / "frames"]


def test_each_has_a_folder_of_its_own(footage):
    (footage / "frames.mp4").touch()
    (footage / "2.mp4").touch()
    sources = find_sources([footage], footage / "out")
    assert folder_names(sources) == ["2.MOV", "2.mp4", "10", "frames", "frames.mp4"]
    assert folder_names([footage / "...mp4", footage / "..mp4", footage / "B.mp4", footage / "b.mov"]) == [
        "...mp4",
        "..mp4",
        "B.mp4",
        "b.mov",
    ]
    for one, other in (("10.mp4", "x/10.mp4"), ("caf\u00e9.mp4", "x/cafe\u0301.MP4")):
        with pytest.raises(InputError, match=rf"{one} and .*/{other} would both be written to the folder {one}; run"):
            folder_names([footage / one, footage / other])


@pytest.fixture
def run(footage, tmp_path, monkeypatch):
    """Runs the command with a segmenter that fails on one video, and returns the sources that it was given."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    segmented = []

    def segment(self, segmenter, model, path, source, folder, **_):  # noqa: PLR0917
        segmented.append(path.name)
        if path.name == "2.MOV":
            raise InputError(f"{path}: is cut off")
        folder.mkdir(exist_ok=True)
        (folder / "tracks.json").write_text("{}")

    monkeypatch.setattr("clipvis_jax.inference.loading.load", lambda *_, **__: None)
    monkeypatch.setattr(Predict, "_open", lambda self, path, out: path)
    monkeypatch.setattr(Predict, "_segment", segment)

    def run_command(*options):
        segmented.clear()
        options = [
            str(footage),
            "--model",
            str(model),
            "--out",
            str(tmp_path / "out"),
            *(options or ("--classes", "dog")),
        ]
        return main(["predict", *options]), list(segmented)

    return run_command


def test_what_is_finished_is_not_done_again(run, footage, tmp_path, capsys):
    assert run() == (2, ["2.MOV", "10.mp4", "frames"])
    error = capsys.readouterr().err
    assert f"clipvis: error: {footage}/2.MOV: is cut off\n" in error
    assert error.endswith("clipvis: error: 1 of 3 sources could not be segmented, see above\n")
    assert run() == (2, ["2.MOV"])
    assert f"{footage}/10.mp4 (2 of 3): finished already, see {tmp_path}/out/10\n" in capsys.readouterr().out
    (footage / "10.mp4").write_bytes(b"another video")
    (tmp_path / "out" / "frames" / "tracks.json").unlink()
    assert run() == (2, ["2.MOV", "10.mp4", "frames"])
    (footage / "frames" / "1.png").write_bytes(b"extracted anew, and longer")
    (tmp_path / "out" / "10" / "tracks.json").write_text("by another run")
    assert run() == (2, ["2.MOV", "10.mp4", "frames"])
    assert run() == (2, ["2.MOV"])


def test_results_of_other_settings_are_not_mixed(run, tmp_path, capsys):
    run()
    assert run("--classes", "cat") == (2, [])
    assert "out: holds results of other settings or another model; choose another --out" in capsys.readouterr().err
    (tmp_path / "model" / "config.json").write_text('{"another": "model"}')
    assert run() == (2, [])
    path = tmp_path / "out" / "finished.json"
    for content in ("", "[]", json.dumps({"settings": 1}), json.dumps({"settings": "", "sources": 5})):
        path.write_text(content)
        assert run() == (2, [])
        assert f"error: {path}: damaged; delete it, and all is segmented again\n" in capsys.readouterr().err
