"""Models as archives and on the hub: pushed, fetched by address and revision, offline; what is hostile is refused."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_server import running_hub
from huggingface_hub import constants
from safetensors.numpy import save
from tiny import tiny_model_folder, wordy_state_dict

import clipvis_jax
from clipvis_jax.cli import main
from clipvis_jax.commands.push import without_folders
from clipvis_jax.errors import InputError
from clipvis_jax.weights.convert import CLIP_PREFIX
from clipvis_jax.weights.hub import is_address, parse_address
from clipvis_jax.weights.model_folder import find_model, load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("hub") / "model", "rn")


@pytest.fixture(scope="module")
def content(model):
    return load_model(model)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPVIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def assert_equal_models(one, other):
    assert (one.config, one.run_defaults, one.source) == (other.config, other.run_defaults, other.source)
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, (one.clip_vars, one.params), (other.clip_vars, other.params))


def refusal(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Fetching")]
    assert len(lines) == 1
    return lines[0]


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(model):
    path = model.parent / "model.zip"
    assert main(["pack", str(model), str(path)]) == 0
    return path


def test_a_packed_model_is_the_same_and_unpacked_once(model, content, archive, tmp_path):
    folder = find_model(archive)
    assert folder.is_relative_to(tmp_path / "cache" / "models")
    files = lambda root: {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}  # noqa: E731
    assert files(folder) == files(model)
    before = (folder / "config.json").stat().st_mtime_ns
    assert_equal_models(load_model(archive), content)
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_the_same_model_is_packed_into_the_same_bytes(model, archive, tmp_path, capsys):
    (model / "notes.txt").write_text("private")
    try:
        assert main(["pack", str(model), str(tmp_path / "again.zip")]) == 0
    finally:
        (model / "notes.txt").unlink()
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    assert "exists already" in refusal(capsys, "pack", model, tmp_path / "again.zip")
    assert "must end with .zip" in refusal(capsys, "pack", model, tmp_path / "model.tar")
    assert "not a model folder" in refusal(capsys, "pack", tmp_path, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def write_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/config.json", "variables/../../x", "variables/..", "tokenizer/a\\b", "run.py", "tokenizer/"],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", {name: b"{}"})
    with pytest.raises(InputError, match=r"evil\.zip: holds .*, no file of a model; make it with 'clipvis pack'"):
        load_model(path)
    assert not (tmp_path / "cache" / "models").exists()


def test_archives_that_unpack_to_more_are_refused(archive, tmp_path):
    bomb = write_zip(tmp_path / "bomb.zip", {"config.json": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"config\.json is compressed"):
        load_model(bomb)
    twice = write_zip(tmp_path / "twice.zip", {"tokenizer/a": b"", "tokenizer/A": b""})
    with pytest.raises(InputError, match="holds a file twice"):
        load_model(twice)
    overlapping = write_zip(tmp_path / "overlapping.zip", {"config.json": b"{}", "manifest.json": b"{}"})
    content = overlapping.read_bytes()
    sizes = (2).to_bytes(4, "little") * 2
    overlapping.write_bytes(content.replace(sizes, (10**9).to_bytes(4, "little") * 2))
    with pytest.raises(InputError, match="its files overlap"):
        load_model(overlapping)
    assert not (tmp_path / "cache" / "models").exists()


def test_damaged_archives_are_refused_and_leave_nothing(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    cut = tmp_path / "cut.zip"
    cut.write_bytes(content[:-100])
    content[len(content) // 2] ^= 1
    changed = tmp_path / "changed.zip"
    changed.write_bytes(content)
    for path in (cut, changed):
        with pytest.raises(InputError, match=r"not a whole archive of 'clipvis pack' .*; pack the model folder again"):
            load_model(path)
    assert not list((tmp_path / "cache").rglob("config.json"))


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_pushed_model_is_fetched_by_address_and_revision_and_offline(model, content, hub, tmp_path, monkeypatch):
    metrics = tmp_path / "metrics.json"
    stats = {"AP": 0.123, "AR1": None}
    metrics.write_text(json.dumps({"metrics": {"ytvis": {"stats": stats}}, "dataset": {"name": "a|b"}, "more": 1}))
    assert main(["push", str(model), "me/tiny", "--metrics", str(metrics), "--license", "mit"]) == 0
    (first,) = (commit for commit in hub.models["me/tiny"] if commit != "main")
    pushed = hub.models["me/tiny"]["main"]
    assert {Path(name).suffix for name in pushed} == {".md", ".json", ".safetensors"}
    card = pushed["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "| ytvis | AP | 12.3 |\n| ytvis | AR1 | - |" in card
    assert "--model hf://me/tiny --classes" in card

    # Later commits, with files that are nobody's business.
    hub.commit("me/tiny", {"pytorch_model.bin": b"pickle", "tokenizer/evil.py": b"", "config.json": b"{}"})
    hub.fetched.clear()
    assert_equal_models(load_model(f"hf://me/tiny@{first}"), content)
    assert main(["pack", str(find_model(f"hf://me/tiny@{first}")), str(tmp_path / "packed.zip")]) == 0
    assert_equal_models(load_model(tmp_path / "packed.zip"), content)
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        load_model(Path("hf://me/tiny"))
    assert {Path(name).suffix for name in hub.fetched} == {".json", ".safetensors"}

    hub.fetched.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert clipvis_jax.load(f"hf://me/tiny@{first}").model.config == content.config
    with pytest.raises(InputError, match=r"hf://me/other: not to be had from the Hugging Face hub \(LocalEntry"):
        load_model("hf://me/other")
    assert not hub.fetched


def test_paths_of_data_are_not_pushed():
    note = {"config": {"dataset": "/home/me/secret/cats.json", "evaluation": {"dataset": "C:\\me\\val\\"}}}
    note |= {"dataset": {"name": "cats", "digest": "1"}, "clip": {"hub": "hf://a/b"}, "steps": [4]}
    shown = {"config": {"dataset": "cats.json", "evaluation": {"dataset": "val"}}}
    assert without_folders(note) == note | shown


def test_what_the_hub_has_not_or_refuses_is_one_line(model, hub, tmp_path, capsys):
    hub.commit("me/pickles", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(InputError, match=r"hf://me/pickles: is no model of 'clipvis push' \(has no model.safetensors"):
        load_model("hf://me/pickles")
    out = tmp_path / "out"
    assert "hf://me/pickles: is no CLIP" in refusal(capsys, "convert", "--clip", "hf://me/pickles", "--out", out)
    assert "hf://me/none: not to be had" in refusal(capsys, "convert", "--clip", "hf://me/none", "--out", out)
    assert "check name, revision" in refusal(
        capsys, "export", "hf://me/pickles@v9", "--out", tmp_path / "x.safetensors"
    )
    assert "hf://others/model: cannot be pushed" in refusal(capsys, "push", model, "others/model")
    assert "is no address on the hub" in refusal(capsys, "push", model, "model")
    assert "leave @main out" in refusal(capsys, "push", model, "me/tiny@main")
    assert "--license" in refusal(capsys, "push", model, "me/tiny", "--license", "a\nb: c")
    assert "metrics.json" in refusal(capsys, "push", model, "me/tiny", "--metrics", model / "config.json")
    assert not out.exists()
    assert set(hub.models) == {"me/pickles"}


def test_clip_is_converted_from_the_hub(model, hub, tmp_path):
    state_dict = wordy_state_dict("rn")
    clip = {
        key.removeprefix(CLIP_PREFIX): np.array(2 * x) for key, x in state_dict.items() if key.startswith(CLIP_PREFIX)
    }
    hub.commit("timm/tiny_clip", {"open_clip_model.safetensors": save(clip), "open_clip_pytorch_model.bin": b""})
    (tmp_path / "decoders.safetensors").write_bytes(save(state_dict))
    files = ["--checkpoint", tmp_path / "decoders.safetensors", "--tokenizer", model / "tokenizer"]
    options = ["--clip", "hf://timm/tiny_clip@main", "--text-heads", "4", "--out", tmp_path / "out"]
    assert main(["convert", *map(str, files + options)]) == 0
    converted = load_model(tmp_path / "out")
    assert converted.source["clip"]["hub"] == "hf://timm/tiny_clip@main"
    assert converted.clip_vars["logit_scale"] == clip["logit_scale"]
    assert hub.fetched == ["open_clip_model.safetensors"]


def test_addresses():
    assert parse_address("hf://a/b") == parse_address(Path("hf://a/b")) == ("a/b", None)
    assert parse_address("hf://a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    assert not is_address("model")
    for wrong in ("hf://a", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@c d", "hf://a/b?x"):
        assert is_address(wrong)
        with pytest.raises(InputError, match="is no address on the hub"):
            parse_address(wrong)
