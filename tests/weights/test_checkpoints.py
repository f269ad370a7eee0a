"""Model folders: what is written is read again; damage and failures are noticed and leave nothing behind."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from json_edits import DELETE, changed_entries
from orbax.checkpoint import v1 as ocp
from tiny import tiny_model_folder, tiny_tokenizer, wordy_state_dict

import clipvis_jax
from clipvis_jax.cli import main
from clipvis_jax.errors import InputError
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.models.clipvis import ClipVisConfig
from clipvis_jax.text.tokenizer import ClipTokenizer, make_tokenizer
from clipvis_jax.weights import model_folder
from clipvis_jax.weights.convert import from_state_dict
from clipvis_jax.weights.model_folder import (
    FORMAT_VERSION,
    MANIFEST,
    RunDefaults,
    check_target,
    config_from_json,
    config_to_json,
    load_model,
    read_run_defaults,
    save_model,
    set_min_score,
)
from clipvis_jax.weights.published_sizes import BACKBONES, TEXT_TOWERS, infer_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, not to be changed."""
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "model", "convnext")


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A model folder that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def message_of(act: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        act(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def save(folder: Path, **options: object) -> None:
    """Save a few arrays in the place of a model: fast, and enough for all that writing can meet."""
    clip_vars = {"text": {"kernel": np.arange(6.0, dtype=np.float32)}}
    params = {"kernel": jnp.ones((300, 300))}
    config = tiny_config()
    save_model(folder, config, clip_vars, params, tiny_tokenizer(), **{"source": {}} | options)


def tiny_config() -> ClipVisConfig:
    shapes = {key: array.shape for key, array in wordy_state_dict("convnext").items()}
    return infer_config(shapes, source="convnext", text_heads=4)[0]


# --- reading


def test_a_folder_does_not_tell_where_it_was_written(tmp_path: Path) -> None:
    save(tmp_path / "model")
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if str(tmp_path).encode() in file.read_bytes()]


def test_float16_makes_the_folder_smaller_and_is_read_as_float32(made: Path, tmp_path: Path) -> None:
    whole = load_model(made)
    half = tmp_path / "half"
    save_model(half, whole.config, whole.clip_vars, whole.params, whole.tokenizer, source={}, storage="float16")
    read = load_model(half)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), (whole.clip_vars, whole.params))
    assert jax.tree.all(jax.tree.map(np.array_equal, (read.clip_vars, read.params), rounded))
    assert {leaf.dtype for leaf in jax.tree.leaves(read.params)} == {np.dtype("float32")}

    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in (folder / "variables").rglob("*"))

    assert size(half) < 0.8 * size(made)


def test_what_is_written_is_read_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, *variables = from_state_dict(wordy_state_dict("convnext"), source="convnext", text_heads=4)
    monkeypatch.chdir(made.parent)
    for folder in (made, Path(made.name)):
        model = load_model(folder)
        assert model.config == config
        assert jax.tree.all(jax.tree.map(np.array_equal, (model.clip_vars, model.params), tuple(variables)))
        assert model.tokenizer.fingerprint == tiny_tokenizer().fingerprint
        assert model.tokenizer.context_length == config.text.context_length


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"inference": {}, "a": "' + "x" * 2**22 + '"}'], ids=["deep", "large"]
)
def test_no_run_defaults_are_read_from_odd_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert read_run_defaults(tmp_path) == RunDefaults()


def test_a_folder_says_how_it_is_run(made: Path, tmp_path: Path) -> None:
    whole = load_model(made)
    assert whole.run_defaults == RunDefaults(background=())
    parts = whole.config, whole.clip_vars, whole.params, whole.tokenizer
    defaults = RunDefaults(64, 2000, ("sky", "sea"), classes=("dog", "cat"))
    save_model(tmp_path / "new", *parts, source={}, run_defaults=defaults)
    assert load_model(tmp_path / "new").run_defaults == defaults
    set_min_score(tmp_path / "new", 0.43)
    defaults = dataclasses.replace(defaults, min_score=0.43)
    assert load_model(tmp_path / "new").run_defaults == defaults == read_run_defaults(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    segmenter = clipvis_jax.load(tmp_path / "new", config=InferenceConfig(window=2))
    assert segmenter.config == InferenceConfig(size=64, max_size=2000, window=2)
    assert segmenter.start(["dog"], background="auto", keep_frames=False).background == ("sky", "sea")
    # What is asked for comes first.
    assert clipvis_jax.load(tmp_path / "new", config=InferenceConfig(size=96)).config.size == 96
    # Exported and converted again, it says the same; folders of older versions say nothing.
    file, again = tmp_path / "new.safetensors", tmp_path / "again"
    assert main(["export", str(tmp_path / "new"), "--out", str(file)]) == 0
    tokenizer = ["--tokenizer", str(made / "tokenizer")]
    assert main(["convert", "--checkpoint", str(file), "--out", str(again), *tokenizer]) == 0
    assert load_model(again).run_defaults == defaults
    edit(inference=DELETE)(again)
    (again / MANIFEST).unlink()
    with pytest.warns(UserWarning, match=r"has no manifest.json, as folders of older versions"):
        assert load_model(again).run_defaults == RunDefaults()


@pytest.mark.parametrize("size", BACKBONES)
def test_sizes_survive_json(size: str) -> None:
    config = ClipVisConfig(BACKBONES[size], TEXT_TOWERS[size])
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_a_folder_opens_without_torch_and_without_a_network(made: Path) -> None:
    script = f"""
import sys, socket
sys.modules["torch"] = None
socket.socket.connect = None
import clipvis_jax
segmenter = clipvis_jax.load({str(made)!r})
with segmenter.start(["dog", "cat"]) as state:
    print(state.classifier.num_classes)
"""
    environment = os.environ | {"CLIPVIS_CACHE": str(made.parent / "cache")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == "2\n"


def edit(**changes: object) -> Callable[[Path], None]:
    """Change entries of config.json; names may reach into it: text__width."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(changed_entries(json.loads(file.read_text()), **changes)))

    return change


def other_values(folder: Path) -> None:
    """Put other values of the same shapes into the place of the variables."""
    variables = ocp.load(folder / "variables")
    shutil.rmtree(folder / "variables")
    ocp.save(folder / "variables", jax.tree.map(lambda array: np.asarray(array * np.float32(1.01)), variables))


def swap_tokens(folder: Path) -> None:
    """Give two words each other's ids."""
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["dog</w>"], vocabulary["cat</w>"] = vocabulary["cat</w>"], vocabulary["dog</w>"]
    file.write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (shutil.rmtree, "", "no such folder; make a model folder with 'clipvis convert'"),
    "another folder": (lambda p: (p / "config.json").unlink(), "", "not a model folder (no config.json)"),
    "empty config": (lambda p: (p / "config.json").write_text(""), "config.json", "damaged"),
    "binary config": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "config.json", "damaged"),
    "half a config": (lambda p: (p / "config.json").write_text('{"format_version": 1, "co'), "config.json", "damaged"),
    "a list": (lambda p: (p / "config.json").write_text("[1]"), "config.json", "damaged"),
    "newer": (edit(format_version=FORMAT_VERSION + 1, config=DELETE), "config.json", "2 is newer than this program"),
    "version is text": (edit(format_version="one"), "config.json", "damaged"),
    "no version": (edit(format_version=DELETE), "config.json", "damaged"),
    "no text": (edit(config__text=DELETE), "config.json", "damaged (KeyError: 'text')"),
    "unknown backbone": (edit(config__backbone__kind="vit"), "config.json", "damaged"),
    "unknown field": (edit(config__text__colour=3), "config.json", "damaged"),
    "depth is text": (edit(config__backbone__depths="three"), "config.json", "damaged"),
    "impossible heads": (edit(config__text__num_heads=5), "config.json", "damaged"),
    "other sizes": (edit(config__query_decoder__num_queries=21), "", "the variables do not fit config.json"),
    "other values": (other_values, "variables", "damaged (another checksum)"),
    "a size that is none": (edit(inference__size="big"), "config.json", "damaged (ValueError: size big, max"),
    "a size below the stride": (
        edit(inference__size=5),
        "config.json",
        "damaged (ValueError: size 5, max_size 1333",
    ),
    "an empty background name": (edit(inference__background=["sky", " "]), "config.json", "damaged (TypeError: backgr"),
    "background is text": (edit(inference__background="sky"), "config.json", "damaged (TypeError: background"),
    "other heads": (edit(config__query_decoder__num_heads=4), "config.json", "was changed since the model was written"),
    "swapped tokens": (swap_tokens, "tokenizer/tokenizer.json", "was changed since the model was written"),
    "a stray file": (
        lambda p: (p / "tokenizer/added_tokens.json").write_text("{}"),
        "tokenizer/added_tokens.json",
        "was added since the model was written",
    ),
    "half a manifest": (lambda p: (p / MANIFEST).write_text('{"config'), MANIFEST, "is not valid JSON"),
    "a list as manifest": (lambda p: (p / MANIFEST).write_text("[[1, 2]]"), MANIFEST, "Expected object, got array"),
    "a deep manifest": (lambda p: (p / MANIFEST).write_text("[" * 100_000), MANIFEST, "convert the model again"),
    "a version that is no number": (
        edit(format_version=float("nan")),
        "config.json",
        "damaged (TypeError: format_vers",
    ),
    "an endless config": (lambda p: os.truncate(p / "config.json", 2**30), "config.json", "damaged (ValueError: it is"),
    "an endless file": (
        lambda p: (
            (p / "tokenizer/deep").mkdir(),
            (p / "tokenizer/deep/x").touch(),
            os.truncate(p / "tokenizer/deep/x", 2**40),
        ),
        "tokenizer/deep/x",
        "holds more than 32 MiB",
    ),
    "gigabytes in little room": (
        edit(config__text__vocab_size=2**17, config__text__width=2**12),
        "variables",
        "but config.json asks for",
    ),
    "no variables": (lambda p: shutil.rmtree(p / "variables"), "variables", "damaged"),
    "no tokenizer": (lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer", "convert the model again"),
    "half a tokenizer": (lambda p: (p / "tokenizer/tokenizer.json").write_text("{"), "tokenizer", "convert the model"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str, model: Path) -> None:
    damage, place, message = DAMAGE[case]
    damage(model)
    error = message_of(load_model, model)
    assert error.startswith(f"{model / place}: ")
    assert message in error


def test_a_tokenizer_of_another_model(model: Path) -> None:
    make_tokenizer([], context_length=77).save(model / "tokenizer")
    assert "tokenizer: has 514 entries, but the text encoder 518" in message_of(load_model, model)


def test_a_cut_file_is_one_line_of_the_command(model: Path, tmp_path: Path) -> None:
    """In a process of its own: orbax's threads print about an error long after it is known."""
    largest = max((model / "variables").rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    (tmp_path / "image.png").write_bytes(IMAGE)
    command = [sys.executable, "-m", "clipvis_jax.cli", "predict", "image.png", "--model", model, "--classes", "dog"]
    environment = os.environ | {"CLIPVIS_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"clipvis: error: {model / 'variables'}: damaged (")
    assert not (tmp_path / "clipvis_out").exists()


IMAGE = bytes.fromhex(  # a white pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63f80f0001010100"
    "1bb6ee560000000049454e44ae426082"
)


# --- writing


def test_an_old_model_is_replaced_only_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    save(folder)
    (folder / "notes.txt").write_text("mine")
    assert f"{folder}: exists already; choose another folder or set overwrite" in message_of(save, folder)
    assert (folder / "notes.txt").exists()
    save(folder, source={"converter": "second"}, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["source"] == {"converter": "second"}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "tokenizer", "variables"]
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_is_filled_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file, but a folder is needed"),
        ("file/model", "cannot be written (Not a directory)"),
        ("n" * 300, "cannot be written (File name too long)"),
        ("/proc/model", "cannot be written ("),
        ("photos", None),
    ],
)
def test_a_target_that_cannot_be(place: str, message: str | None, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("mine")
    if message is None:
        message = "holds something else than a model" if overwrite else "exists already"
    before = sorted(tmp_path.rglob("*"))
    for act in (check_target, save):
        error = message_of(act, tmp_path / place, overwrite=overwrite)
        assert error.startswith(f"{tmp_path / place}: ")
        assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_that_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    config = tiny_config()
    error = message_of(save_model, tmp_path / "model", config, {}, {}, make_tokenizer([]), source={})
    assert "has 514 entries, but the text encoder 518" in error
    assert list(tmp_path.iterdir()) == []


STEPS = {
    "variables": (ocp, "save"),
    "tokenizer": (ClipTokenizer, "save"),
    "config": (Path, "write_text"),
    "move": (Path, "rename"),
}
FAILURES = {"disk full": OSError(errno.ENOSPC, "No space left on device"), "Ctrl-C": KeyboardInterrupt()}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_a_failure_leaves_all_as_it_was(
    step: str, failure: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "model"
    if exists:
        save(folder)
    before = contents(tmp_path)
    monkeypatch.setattr(model_folder, "exchange", lambda *_: False)  # as where the system cannot

    def fail(*_: object, **__: object) -> None:
        raise FAILURES[failure]

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], fail)
        if failure == "disk full":
            assert f"{folder}: cannot be written (No space left on device); free some space" in message_of(
                save, folder, overwrite=exists
            )
        else:
            with pytest.raises(KeyboardInterrupt):
                save(folder, overwrite=exists)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"new"}


def test_a_replaced_model_comes_back_when_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save(folder, source={"converter": "first"})
    rename = Path.rename
    monkeypatch.setattr(model_folder, "exchange", lambda *_: False)  # as where the system cannot

    def rename_but_the_new_one(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_but_the_new_one)
        with pytest.raises(KeyboardInterrupt):
            save(folder, source={"converter": "second"}, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["source"] == {"converter": "first"}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot")
def test_a_model_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    save(folder, source={"converter": "first"})
    rename = Path.rename

    def rename_others(path: Path, target: Path) -> Path:
        assert folder not in (path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_others)
    save(folder, source={"converter": "second"}, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["source"] == {"converter": "second"}
    assert list(tmp_path.iterdir()) == [folder]


def test_one_conversion_at_a_time_and_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    save(folder, source={"converter": "first"})
    said = []

    def meanwhile(*given: object, **options: object) -> None:
        (temporary,) = tmp_path.glob(".clipvis-*")
        said.append(message_of(save, folder, overwrite=True))
        # Killed between two renames, where the system cannot do it in one step.
        folder.rename(temporary / "old")
        shutil.copytree(temporary, tmp_path / "left")
        (temporary / "old").rename(folder)
        raise KeyboardInterrupt

    name = f".clipvis-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"
    with monkeypatch.context() as patch:
        patch.setattr(ClipTokenizer, "save", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            save(folder, overwrite=True)
    assert said == [f"{folder}: another process is at work there; wait for it, or choose another folder"]
    shutil.rmtree(folder)
    (tmp_path / "left").rename(tmp_path / name)
    assert "exists already" in message_of(save, folder)
    assert json.loads((folder / "config.json").read_text())["source"] == {"converter": "first"}
    assert list(tmp_path.iterdir()) == [folder]


def test_somebody_elses_folder_is_not_emptied(tmp_path: Path) -> None:
    """In a shared folder anybody can put a link to where the temporary files would go."""
    folder = tmp_path / "model"
    photos = tmp_path / "home" / "photos"
    photos.mkdir(parents=True)
    link = tmp_path / f".clipvis-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"
    link.symlink_to(tmp_path / "home")
    assert message_of(save, folder) == f"{link}: was put there by somebody else; remove it, or choose another folder"
    assert photos.is_dir()
    link.unlink()
    link.mkdir()
    (link / "stray").touch()  # a file, as network file systems leave of locks
    save(folder)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "home", folder]


def test_ctrl_c_waits_for_orbaxs_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would go on writing into the folder that is being removed."""

    def write(path: Path, _: object) -> None:
        path.mkdir(parents=True)
        for number in range(40):
            time.sleep(0.01)
            (path / str(number)).touch()

    def save_in_a_thread(path: Path, variables: object) -> None:
        thread = threading.Thread(target=write, args=(path, variables))
        thread.start()
        time.sleep(0.1)  # until the main thread waits
        interrupt_main()
        thread.join()

    monkeypatch.setattr(ocp, "save", save_in_a_thread)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "model")
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_a_device_are_written_as_plain_ones(tmp_path: Path) -> None:
    """Those of JAX could be read on the same kind of devices only."""
    save(tmp_path / "model")
    assert {type(leaf) for leaf in jax.tree.leaves(ocp.load(tmp_path / "model" / "variables"))} == {np.ndarray}


def test_a_disk_that_fills_up_below_orbax(tmp_path: Path) -> None:
    """Tensorstore's own words for the system's errors become ours; a limit on file sizes stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        error = message_of(save, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'model'}: cannot be written (File too large)" in error
    assert list(tmp_path.iterdir()) == []
