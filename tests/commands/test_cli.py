"""The command line: help, options, bad input, and whole runs on tiny models."""

import ast
import dataclasses
import functools
import importlib
import io
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import golden
from PIL import Image
from safetensors.numpy import save_file
from tiny import tiny_model_folder, tiny_tokenizer, wordy_state_dict

import clipvis_jax
from clipvis_jax.cli import COMMANDS, main
from clipvis_jax.commands.options import name_option
from clipvis_jax.commands.predict import Predict
from clipvis_jax.inference.loading import load
from clipvis_jax.inference.raw_video import load_video, save_video
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.io.terminal import safe_printing
from clipvis_jax.media.video_reader import FrameSelection, open_frames
from clipvis_jax.media.video_writer import VideoWriter
from clipvis_jax.version import __version__

CLI = [sys.executable, "-m", "clipvis_jax.cli"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every run needs: ``model``, ``clip.mp4`` (12 frames of 96 x 150) and a cache."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model_folder(folder / "model", "rn")
    write_video(folder / "clip.mp4", golden("tiny_inputs")["frames_u8"])
    return folder


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPVIS_CACHE", str(home / "cache"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open every model folder once, so that the network is compiled once per size."""
    monkeypatch.setattr(
        "clipvis_jax.inference.loading.load", lambda folder, *, dtype, config: opened(folder, dtype, config)
    )


@functools.cache
def segmenter_of(folder: Path, dtype: str) -> Segmenter:
    return load(folder, dtype=dtype)


def opened(folder: Path, dtype: str, config: InferenceConfig) -> Segmenter:
    segmenter = segmenter_of(folder, dtype)
    segmenter.config = config
    return segmenter


def write_video(path: Path, frames: np.ndarray, fps: float = 25.0) -> Path:
    with VideoWriter(path, *frames.shape[1:3], fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def picture(height: int, width: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, *shape), dtype)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit code, stdout and stderr."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:  # of the parser
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command on bad input: one line on stderr, after progress if any, nothing on stdout, code 2."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), err
    *progress, last = err.removesuffix("\n").split("\n")
    assert all(re.fullmatch(r"\rsegmenting: .*frame(/s)?\]", line) for line in progress), err
    assert last.startswith("clipvis: error: ")
    return last.removeprefix("clipvis: error: ")


def predict_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object) -> str:
    """``clipvis predict`` on bad input, which leaves no trace in the folder."""
    before = sorted(tmp_path.rglob("*"))
    error = error_of(capsys, "predict", *arguments, "--out", tmp_path / "new" / "out")
    assert sorted(tmp_path.rglob("*")) == before
    return error


# --- help


def blocking(*modules: str) -> str:
    """The beginning of a script in which some modules cannot be imported, as if they were not installed."""
    return f"""
import sys
import warnings
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in {modules!r} else find(name, *more)
from clipvis_jax.cli import main
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_is_quick(arguments: list[str]) -> None:
    """It needs no library, and the modules of no command, which take seconds to import."""
    modules = tuple(f"clipvis_jax.commands.{command.module}" for command in COMMANDS.values())
    script = blocking("jax", "numpy", "av", "PIL", "orbax", "flax", "transformers", "torch", "tyro", *modules)
    script += f"sys.exit(main({arguments!r}))"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert completed.returncode == (0 if arguments else 2), completed.stderr
    assert (completed.stdout if arguments else completed.stderr).strip()


@pytest.mark.parametrize("command", ["predict", "demo", "eval", "ablate"])
def test_help_of_a_command_needs_no_network(command: str) -> None:
    script = blocking("jax", "numpy", "av", "PIL", "flax", "rich") + f"main([{command!r}, '--help'])"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert f"usage: clipvis {command}" in completed.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"clipvis {__version__}\n", "")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "clipvis COMMAND --help" in out
    named = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert [words[0] for words in named] == list(COMMANDS)


def test_the_table_of_commands_says_what_the_modules_say() -> None:
    for command in COMMANDS.values():
        class_ = getattr(importlib.import_module(f"clipvis_jax.commands.{command.module}"), command.name)
        assert dataclasses.is_dataclass(class_)
        assert callable(class_.run)
        assert class_.__doc__.splitlines()[0] == command.summary
    folder = Path(clipvis_jax.__file__).parent / "commands"
    runnable = {path.stem for path in folder.glob("*.py") if "    def run(self)" in path.read_text()}
    assert runnable == {command.module for command in COMMANDS.values()}


def test_the_library_speaks_of_fields_not_of_options() -> None:
    """Its errors are also read in notebooks."""
    rooms = Path(clipvis_jax.__file__).parent
    for path in rooms.rglob("*.py"):
        if path.relative_to(rooms).parts[0] not in ("cli.py", "commands", "configs"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
                    assert not re.search(r"(?<![\w-])--[a-z]", ast.unparse(node)), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("message", "arguments", "expected"),
    [
        ("size 5: must be more", "--size 5", "--size 5: must be more"),
        ("min_score 2.0: must be less", "--min-score=2", "--min-score 2.0: must be less"),
        ("data.image_size (6, 6): give more", "--data.image-size 6 6", "--data.image-size (6, 6): give more"),
        ("loop.keep_last 0: must be 1", "--loop.keep-last 0", "--loop.keep-last 0: must be 1"),
        ("size 5: must be more", "--data.image-size 5 --model m", "size 5: must be more"),
        ("size 5: must be more", "--a.size 5 --b.size 5", "size 5: must be more"),
        ("model m: no such folder", "--out m", "model m: no such folder"),
        ("out of memory", "--out m", "out of memory"),
    ],
)
def test_errors_name_the_option_of_a_field(message: str, arguments: str, expected: str) -> None:
    assert name_option(message, arguments.split()) == expected


def test_a_file_is_no_field_whatever_its_name() -> None:
    message = "model 2/tokenizer: is missing"
    assert name_option(message, ["--model", "model 2", "--classes", "dog"]) == message


PREDICT_OPTIONS = (
    "--classes NAME [NAME ...]|--classes-file FILE|--background auto|none|FILE.txt|NAME [NAME ...]|--top-k N"
    "|--min-score SCORE|--out DIR|--scores {all,visible}|--no-overlay|--show CLASS [CLASS ...]|--embeddings|--model DIR"
    "|--start N|--end N|--every N|--on-error {stop,skip}|--max-pixels N|--size PIXELS|--save-raw"
    "|--dtype {float32,bfloat16}|--window N"
)
CONVERT_OPTIONS = (
    "--out DIR|--checkpoint FILE|--clip FILE|--tokenizer NAME|--activation {quick_gelu,gelu}|--text-heads N"
    "|--iou-head {sigmoid,relu}|--seed N|--overwrite"
)


@pytest.mark.parametrize(("command", "options"), [("predict", PREDICT_OPTIONS), ("convert", CONVERT_OPTIONS)])
def test_help_lists_every_option(command: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    lines = [line.strip("│| ") for line in out.splitlines()]
    assert "|".join(line.split("  ")[0] for line in lines if re.match("--[a-z]", line)) == options
    assert out.count(f"  clipvis {command} ") >= 2, "examples"
    assert "None" not in out


def test_help_of_a_configuration_names_weights_of_losses_but_no_functions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "lvis_r50", "--help")
    assert code == 0
    assert "--step.losses.terms.mask.weight" in out
    assert "function" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "clipvis COMMAND"),
        (["predict"], "--model"),
        (["convert"], "--out"),
        (["predict", "clip.mp4", "--model", "m", "--size", "big"], "--size"),
        (["predict", "clip.mp4", "--model", "m", "--end", "None"], "--end"),
        (["predict", "clip.mp4", "--model", "m", "--dtype", "float16"], "float16"),
        (["predict", "clip.mp4", "--model", "m", "--colour", "red"], "--colour"),
    ],
)
def test_what_cannot_be_parsed(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_no_such_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "segment") == f"segment: is no command; give one of {', '.join(COMMANDS)}"


# --- bad options and classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size 0: must be between 32 and 1333 pixels"),
        (["--size", "5000"], "--size 5000: must be"),
        (["--every", "0"], "--every 0: must be 1"),
        (["--start", "-1"], "--start -1: frame numbers begin at 0"),
        (["--start", "5", "--end", "5"], "--end 5: leaves no frame"),
        (["--top-k", "0"], "--top-k 0: must be 1 or more"),
        (["--min-score", "2"], "--min-score 2.0: must be between 0 and 1"),
        (["--min-score", "nan"], "--min-score nan: must be"),
        (["--window", "0"], "--window 0: must be 1 frame or more"),
    ],
)
def test_options_out_of_range(
    options: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = predict_error(capsys, tmp_path, home / "clip.mp4", "--model", home / "model", "--classes", "dog", *options)
    assert error.startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no class given; name them with --classes or --classes-file"),
        (["--classes"], "no class given"),
        (["--classes", "dog", "cat", "dog"], "class 'dog' is given twice: as number 1 and 3"),
        (["--classes", "dog, puppy", "dog,puppy"], "class 'dog,puppy' is given twice"),
        (["--classes", "dog", "x" * 20_000], "class '" + "x" * 40 + "'...: has 20000 characters; give at most"),
        (["--classes", "dog", ""], "class '': a name or synonym is empty"),
        (["--classes", "dog,, puppy"], "class 'dog,, puppy': a name or synonym is empty"),
        (["--classes", "caf\udce9"], "--classes: a name is not UTF-8 text"),
        (["--classes", "dog", "--background", "caf\udce9"], "--background: a name is not UTF-8 text"),
        (["--classes", "dog", "--background", "sky", "sky"], "--background: class 'sky' is given twice"),
        (
            ["--classes", "dog", "--background", "s" * 300 + ".txt"],
            "s" * 300 + ".txt: cannot be read (File name too long)",
        ),
        (["--classes", "dog", "--background", "missing.txt"], "missing.txt: cannot be read"),
        (["--classes", "dog, puppy", "--show", "puppy"], "--show puppy: is none of the classes; give names"),
        (["--classes", "dog", "--classes-file", "names.txt"], "--classes and --classes-file exclude each other"),
    ],
)
def test_bad_classes(
    options: list[str], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = predict_error(capsys, tmp_path, home / "clip.mp4", "--model", home / "model", *options)
    assert error.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give a text file with one class per line"),
        (b"", "holds no class; write one class per line"),
        (b"\n  \n", "holds no class"),
        ("café".encode("latin-1"), "cannot be read (it is not UTF-8 text)"),
        ("café".encode("utf-16"), "cannot be read (it is not UTF-8 text)"),
        (b"dog\ncat\ndog\n", "class 'dog' is given twice"),
        (b"dog, \n", "class 'dog,': a name or synonym is empty"),
    ],
)
def test_bad_classes_files(
    content: bytes | None, message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    error = predict_error(capsys, tmp_path, home / "clip.mp4", "--model", home / "model", "--classes-file", file)
    assert error.startswith(f"{file}: {message}")


# --- bad sources, models and folders


def cut(home: Path, path: Path) -> Path:
    data = (home / "clip.mp4").read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


def sizes_that_change(folder: Path) -> Path:
    for number in range(3):
        save(folder / f"{number}.png", picture(96, 150 - number // 2, 3))
    return folder


def text_file(path: Path) -> Path:
    path.write_text("not a video " * 100, encoding="utf-8")
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD_SOURCES: dict[str, tuple[Callable[[Path, Path], Path], list[str], str]] = {
    "missing": (lambda _, p: p / "clip.mp4", [], "cannot be opened (No such file or directory); check the path"),
    "empty": (lambda _, p: empty(p / "clip.mp4"), [], "is empty (0 bytes)"),
    "text": (lambda _, p: text_file(p / "clip.mp4"), [], "cannot be opened as a video"),
    "text as an image": (lambda _, p: text_file(p / "clip.png"), [], "is not an image that can be read"),
    "device": (lambda *_: Path("/dev/null"), [], "is neither a file nor a folder"),
    "cut": (lambda home, p: cut(home, p / "clip.mp4"), [], "cut off"),
    "empty folder": (lambda _, p: empty_folder(p / "frames"), [], "folder is empty"),
    "no frame left": (lambda home, _: home / "clip.mp4", ["--start", "12"], "has only 12 frame(s)"),
    "no image left": (lambda _, p: save(p / "a.png", picture(40, 40, 3)), ["--start", "1"], "has only 1 frame(s)"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
@pytest.mark.usefixtures("quick")
def test_bad_sources(case: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, options, message = BAD_SOURCES[case]
    source = make(home, tmp_path)
    error = predict_error(
        capsys, tmp_path, source, "--model", home / "model", "--classes", "dog", "--size", "64", *options
    )
    assert error.startswith(f"{source}: ")
    assert message in error


@pytest.mark.usefixtures("quick")
def test_a_frame_of_another_size_is_named(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sizes_that_change(tmp_path / "frames")
    error = predict_error(capsys, tmp_path, folder, "--model", home / "model", "--classes", "dog", "--size", "64")
    assert error.startswith(f"{folder / '2.png'}: frame 2 is 149 x 96 pixels, but the first one is 150 x 96")


@pytest.mark.parametrize("model", ["missing", "clip.mp4", "cache"])
def test_models_that_are_none(model: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "cache").mkdir(exist_ok=True)
    error = predict_error(capsys, tmp_path, home / "clip.mp4", "--model", home / model, "--classes", "dog")
    assert error.startswith(f"{home / model}: ")
    assert error.endswith("; make a model folder with 'clipvis convert'")


@pytest.mark.parametrize("place", ["file", "file/out", "/proc/out"])
@pytest.mark.usefixtures("quick")
def test_bad_output_folders(place: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place
    error = error_of(capsys, "predict", home / "clip.mp4", "--model", home / "model", "--classes", "dog", "--out", out)
    assert error.startswith(f"{out}: ")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_overlay_does_not_replace_its_source(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "overlay.png", picture(40, 40, 3))
    error = error_of(capsys, "predict", source, "--model", home / "model", "--classes", "dog", "--out", tmp_path)
    assert error == f"{source}: is an overlay in the output folder, which is replaced; choose another --out"


@pytest.mark.usefixtures("quick")
def test_a_full_disk_while_segmenting(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on file sizes stands in for a full disk."""
    arguments = ["predict", home / "clip.mp4", "--model", home / "model", "--classes", "dog", "--size", "64"]
    assert run(capsys, *arguments, "--out", tmp_path / "first")[0] == 0  # compiles, encodes the class
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        code, out, err = run(capsys, *arguments, "--out", tmp_path / "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"clipvis: error: {tmp_path / 'second'}: cannot be written (File too large); raise the file size limit or "
        "write to another disk"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


# --- runs


@pytest.fixture(scope="module")
def results(home: Path) -> dict:
    """A whole run on the clip, its tracks.json as ``json``, its stdout and stderr as ``out`` and ``err``."""
    command = [*CLI, "predict", "clip.mp4", "--model", "model", "--classes", "dog, puppy", "cat", "--out", "out"]
    options = ["--size", "64", "--start", "1", "--every", "2", "--min-score", "0"]
    environment = os.environ | {"CLIPVIS_CACHE": str(home / "cache")}
    completed = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, cwd=home, env=environment
    )
    assert completed.returncode == 0, completed.stderr
    content = json.loads((home / "out" / "tracks.json").read_text())
    return {"json": content, "out": completed.stdout, "err": completed.stderr}


def test_a_run_gives_the_methods_results(results: dict, home: Path) -> None:
    content = results["json"]
    assert len(content["results"]) == 40  # 20 queries under 2 classes are fewer than 50
    assert content["video"]["frame_numbers"] == [1, 3, 5, 7, 9, 11]
    assert [category["name"] for category in content["categories"]] == ["dog, puppy", "cat"]
    assert {record["category_id"] for record in content["results"]} == {1, 2}
    assert sorted(path.name for path in (home / "out").iterdir()) == ["overlay.mp4", "tracks.json"]

    segmenter = opened(home / "model", "float32", InferenceConfig(size=64))
    source = open_frames(home / "clip.mp4", FrameSelection(1, None, 2))
    expected = segmenter.predict(source, ["dog, puppy", "cat"]).to_ytvis()
    for record, other in zip(content["results"], expected, strict=True):
        assert record["score"] == pytest.approx(other["score"])
        assert record["segmentations"] == other["segmentations"]


def test_a_run_prints_the_table_and_shows_progress(results: dict) -> None:
    assert "40 results, 20 instances, 6 frames" in results["out"]
    assert results["out"].splitlines()[-1] == "wrote out/tracks.json and out/overlay.mp4"
    for step in ("segmenting", "drawing masks", "writing overlay"):
        assert f"{step}: 100%" in results["err"]
        assert step not in results["out"]
    assert "clipvis:" not in results["err"]


@pytest.mark.usefixtures("quick")
def test_background_is_noted_and_off_for_the_methods_results(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "image.png", golden("tiny_inputs")["frames_u8"][0])
    (tmp_path / "names.txt").write_text("sea\nsky\n")
    arguments = [
        "--model",
        home / "model",
        "--classes",
        "dog",
        "--size",
        "64",
        "--no-overlay",
        "--out",
        tmp_path / "out",
    ]
    for options, expected in [
        (["--background", "god", "dogs", "tac", "--min-score", "0.0001"], ["god", "tac"]),
        (["--background", tmp_path / "names.txt", "--min-score", "0"], ["sea", "sky"]),
        (["--background", "none", "--min-score", "0.0001"], None),
        (["--background", "god, tac", "--min-score", "0.0001"], ["god", "tac"]),
        (["--min-score", "0"], None),
    ]:
        code, out, _ = run(capsys, "predict", image, *arguments, *options)
        assert code == 0
        content = json.loads((tmp_path / "out" / "tracks.json").read_text())
        assert content.get("background") == expected
        assert {record["category_id"] for record in content["results"]} <= {1}
        assert content["results"]
        assert ("background names" in out) == (expected is not None)


@pytest.mark.usefixtures("quick")
def test_renamed_results_are_those_of_a_new_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", home / "model", "--size", "64", "--end", "4"]
    naming = ["--classes", "god", "cat", "--background", "tac", "--min-score", "0.01", "--scores", "visible"]
    video = write_video(tmp_path / "clip.mp4", golden("tiny_inputs")["frames_u8"])
    code, out, _ = run(
        capsys, "predict", video, *model, "--classes", "dog", "--save-raw", "--no-overlay", "--out", tmp_path / "first"
    )
    assert code == 0
    assert re.search(r"raw\.npz \(\d\.\d MB\)$", out.strip())
    for arguments, folder in (
        (["rename", tmp_path / "first"], "renamed"),
        (["predict", video, *model], "new"),
    ):
        code, _, err = run(capsys, *arguments, *naming, "--embeddings", "--out", tmp_path / folder)
        assert code == 0, err
    renamed, new = (json.loads((tmp_path / folder / "tracks.json").read_text()) for folder in ("renamed", "new"))
    assert {key: renamed[key] for key in renamed if key != "results"} == {k: new[k] for k in new if k != "results"}
    assert renamed["background"] == ["tac"]

    def key(record: dict) -> tuple:
        return record["track_id"], record["category_id"]

    for ours, theirs in zip(sorted(renamed["results"], key=key), sorted(new["results"], key=key), strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
        assert ours["segmentations"] == theirs["segmentations"]
        np.testing.assert_allclose(ours["embedding"], theirs["embedding"], atol=2e-6)
    assert (tmp_path / "renamed" / "overlay.mp4").stat().st_size > 0

    video.unlink()
    raw, facts = load_video(tmp_path / "first" / "raw.npz")
    save_video(tmp_path / "other.npz", raw, facts | {"text_digest": "?"})
    save_video(tmp_path / "bare.npz", raw)
    before = sorted(tmp_path.rglob("*"))
    for options, expected in [
        ([tmp_path / "first", *naming], "clip.mp4: is not there any more, so nothing can be drawn on it; use --no-ov"),
        ([tmp_path / "new" / "tracks.json", *naming], "tracks.json: damaged ("),
        ([tmp_path / "new", *naming], "raw.npz: damaged ("),
        ([tmp_path / "bare.npz", *naming], "bare.npz: was not written by 'clipvis predict --save-raw'"),
        ([tmp_path / "other.npz", *naming, "--no-overlay"], "other.npz: was predicted by another model; give that"),
        ([tmp_path / "first", "--no-overlay"], "no class given"),
    ]:
        assert expected in error_of(capsys, "rename", *options, "--out", tmp_path / "none")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_the_method_gives_50_results_for_a_video_and_100_for_an_image(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "image.png", golden("tiny_inputs")["frames_u8"][0])
    for source, options, expected in [
        (home / "clip.mp4", ["--end", "2"], 50),
        (tmp_path / "image.png", [], 100),
        (home / "clip.mp4", ["--end", "2", "--top-k", "7"], 7),
        (tmp_path / "image.png", ["--top-k", "7"], 7),
        (home / "clip.mp4", ["--end", "2", "--min-score", "1"], 0),
    ]:
        arguments = ["--model", home / "model", "--classes", *"abcdefg", "--size", "64", "--out", tmp_path / "out"]
        code, out, _ = run(capsys, "predict", source, *arguments, "--no-overlay", "--min-score", "0", *options)
        assert code == 0
        assert len(json.loads((tmp_path / "out" / "tracks.json").read_text())["results"]) == expected
        assert out.endswith(f"wrote {tmp_path / 'out' / 'tracks.json'}\n")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["tracks.json"]


PICTURES = {
    "1x1": picture(1, 1, 3),
    "odd": picture(65, 101, 3),
    "grey": picture(64, 101),
    "grey16": picture(64, 101, dtype=np.uint16),
    "alpha": picture(64, 101, 4),
    "grey_alpha": picture(64, 101, 2),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kind", ["image", "folder"])
@pytest.mark.usefixtures("quick")
def test_unusual_pictures_work(
    name: str, kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "frames" / f"{name}.png", PICTURES[name])
    source = path if kind == "image" else path.parent
    arguments = ["--model", home / "model", "--classes", "dog", "--size", "64", "--out", tmp_path / "out"]
    code, _, err = run(capsys, "predict", source, *arguments)
    assert code == 0, err
    content = json.loads((tmp_path / "out" / "tracks.json").read_text())
    assert (content["video"]["height"], content["video"]["width"]) == PICTURES[name].shape[:2]
    assert (tmp_path / "out" / ("overlay.png" if kind == "image" else "overlay.mp4")).stat().st_size > 0


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("default:class names longer")
def test_names_longer_than_the_context_are_cut_with_a_warning(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "an endless list of words " * 5
    arguments = ["--model", home / "model", "--classes", "dog", long, "--size", "64", "--out", tmp_path]
    code, _, err = run(capsys, "predict", home / "clip.mp4", *arguments, "--end", "1")
    assert code == 0
    (warning,) = [line for line in err.splitlines() if line.startswith("clipvis: ")]
    assert warning == f"clipvis: warning: class names longer than CLIP's context were cut: {long.strip()!r}"


@pytest.mark.usefixtures("quick")
def test_a_large_vocabulary_works(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipvis_jax.text.tokenizer.clean_text", str.lower)  # repairing 20,000 sentences takes long
    (tmp_path / "names.txt").write_text("".join(f"thing {number}\n\n" for number in range(1500)))
    arguments = ["--model", home / "model", "--classes-file", tmp_path / "names.txt", "--size", "64"]
    code, _, err = run(capsys, "predict", home / "clip.mp4", *arguments, "--end", "2", "--out", tmp_path / "out")
    assert code == 0, err
    categories = json.loads((tmp_path / "out" / "tracks.json").read_text())["categories"]
    assert [category["id"] for category in categories] == list(range(1, 1501))
    assert categories[-1]["name"] == "thing 1499"


def test_from_weights_to_tracks_without_torch_or_what_other_commands_need(home: Path, tmp_path: Path) -> None:
    save_file(wordy_state_dict("rn"), tmp_path / "weights.safetensors")
    tiny_tokenizer().save(tmp_path / "tokenizer")
    save(tmp_path / "image.png", golden("tiny_inputs")["frames_u8"][0])
    script = blocking("torch", "tensorflow", "tensorflow_datasets", "matplotlib", "grain", "optax")
    script += "sys.exit(main(sys.argv[1:]))"
    convert = "convert --checkpoint weights.safetensors --text-heads 4 --tokenizer tokenizer --out model"
    predict = "predict image.png --model model --classes dog cat --size 64 --min-score 0"
    environment = os.environ | {"CLIPVIS_CACHE": str(home / "cache")}
    for command in (convert, predict):
        completed = subprocess.run(
            [sys.executable, "-c", script, *command.split()],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith("wrote clipvis_out/tracks.json and clipvis_out/overlay.png\n")


# --- Ctrl-C


@pytest.mark.parametrize("moment", ["importing", "segmenting", "writing overlay"])
def test_ctrl_c_leaves_nothing(moment: str, home: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", np.tile(golden("tiny_inputs")["frames_u8"], (20, 1, 1, 1)))
    arguments = [video, "--model", home / "model", "--classes", "dog", "cat", "--size", "64", "--min-score", "0"]
    out = tmp_path / "new" / "out"
    process = subprocess.Popen(
        [*CLI, "predict", *arguments, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CLIPVIS_CACHE": str(home / "cache")},
    )
    shown = ""
    if moment == "importing":
        # JAX is mapped into the process while it is being imported.
        maps = Path(f"/proc/{process.pid}/maps")
        while "jaxlib" not in maps.read_text(encoding="utf-8"):
            assert process.poll() is None
    else:
        while not re.search(rf"{moment}: +[1-9]\d?%", shown):
            character = process.stderr.read(1)
            assert character, shown
            shown += character
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, shown + errors
    assert output == ""
    assert errors.splitlines()[-1] == "clipvis: stopped; nothing was written"
    assert "Traceback" not in shown + errors
    assert list(tmp_path.iterdir()) == [video]


def test_ctrl_c_inside_native_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in C may drop Ctrl-C's exception and raise its own."""

    def interrupted(_: Predict) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise TypeError("got an unexpected keyword argument 'copy'")

    monkeypatch.setattr(Predict, "run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["predict", "clip.mp4", "--model", "model", "--classes", "dog"]) == 130
    assert capsys.readouterr().err == "clipvis: stopped; nothing was written\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_what_libraries_say_of_an_error_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How much their threads say, and when, is chance; the command's own line says it all."""
    arguments = ["predict", str(tmp_path), "--model", str(tmp_path / "none"), "--classes", "dog"]
    with warnings.catch_warnings():
        assert main(arguments) == 2
        warnings.warn("coroutine '_open' was never awaited", RuntimeWarning, stacklevel=1)
    assert not any(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in ("absl", "asyncio"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_errors_of_our_own_are_not_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Predict) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(Predict, "run", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(["predict", "clip.mp4", "--model", "model", "--classes", "dog"])


@pytest.mark.parametrize("encoding", ["iso-8859-1", "cp1252", "ascii"])
def test_printing_cannot_fail_for_the_terminals_encoding(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("clipvis_jax.cli.__version__", "1 — 猫")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["--version"]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().decode(encoding) in ("clipvis 1 \\u2014 \\u732b\n", "clipvis 1 — \\u732b\n")


def test_a_warning_cannot_control_the_terminal(monkeypatch, capsys):
    def warning(_: Predict) -> None:
        warnings.warn("\x1b[2Jclip.mp4:\nis long", stacklevel=1)

    monkeypatch.setattr(Predict, "run", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["predict", "clip.mp4", "--model", "model", "--classes", "dog"]) == 0
    assert capsys.readouterr().err == "clipvis: warning: \\x1b[2Jclip.mp4:\\nis long\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
@pytest.mark.parametrize("stdout", ["full disk", "closed pipe", "none"])
def test_what_cannot_be_printed_fails_nothing(arguments: list[str], stdout: str) -> None:
    shell = {"full disk": '"$@" > /dev/full', "closed pipe": '"$@" | true; exit ${PIPESTATUS[0]}', "none": '"$@" >&-'}
    command = ["bash", "-c", shell[stdout], "bash", sys.executable, "-m", "clipvis_jax.cli", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_that_cannot_be_printed_keeps_its_code() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-m", "clipvis_jax.cli", "dance"], stderr=full, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("stream", [None, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()])
def test_printing_into_a_missing_or_closed_stream(stream, monkeypatch):
    if stream is not None:
        stream.close()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    with safe_printing():
        print("one", flush=True)
        print("two", file=sys.stderr, flush=True)
        assert stream is not None or sys.stderr.name == os.devnull  # nothing gathers in memory
    assert (sys.stdout, sys.stderr) == (stream, stream)


STOPPED_ALONE = """
import signal, sys
from clipvis_jax.commands.interrupt import stopping_at_once
with open(sys.argv[1], "w"), stopping_at_once():
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("shell", ["2>&-", "2> /dev/full", "2> >(true)"])
def test_ctrl_c_that_cannot_be_printed_keeps_its_code(shell: str, tmp_path: Path) -> None:
    """And where stderr was closed, its number may be that of a file, which is not written to."""
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-c", STOPPED_ALONE, tmp_path / "data"]
    assert subprocess.run(command, check=False).returncode == 130
    assert (tmp_path / "data").read_bytes() == b""


@pytest.mark.parametrize(
    "command", [["eval", "--dataset"], ["train"], ["compile-check"], ["prepare", "--source=.", "--out=o"]]
)
def test_a_path_that_the_system_refuses_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [*command, "a" * 4000] + (["--model", "m"] if command[0] == "eval" else [])
    assert main(given) == 2
    assert capsys.readouterr().err == f"clipvis: error: {'a' * 4000}: File name too long; check the path\n"
