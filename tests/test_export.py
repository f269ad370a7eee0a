"""``clipvis export``: what it writes is read back bit for bit, and what it cannot do leaves nothing behind."""

import resource
import signal

import jax
import numpy as np
import pytest
from conftest import FAMILIES
from safetensors import safe_open
from tiny import tiny_model_folder, wordy_state_dict

from clipvis_jax.checkpoints import load_model
from clipvis_jax.cli import main
from clipvis_jax.state_dicts import read_state_dict


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp(request.param) / "model", request.param)


def export(*options):
    return main(["export", *map(str, options)])


def error_of(capsys, *options):
    capsys.readouterr()
    assert export(*options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("clipvis: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_what_is_exported_converts_to_the_same_model(folder, tmp_path, capsys):
    file, again = tmp_path / "model.safetensors", tmp_path / "again"
    assert export(folder, "--out", file) == 0
    assert f"wrote {file}" in capsys.readouterr().out
    options = ["--tokenizer", folder / "tokenizer", "--text-heads", 4, "--out", again]
    assert main(["convert", "--checkpoint", str(file), *map(str, options)]) == 0
    expected, found = load_model(folder), load_model(again)
    assert found.config == expected.config
    assert found.text_hash == expected.text_hash
    variables, same = (found.clip_vars, found.params), (expected.clip_vars, expected.params)
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    for (path, a), b in zip(jax.tree.leaves_with_path(variables), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path), strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_authors_own_entries_come_back(family, tmp_path):
    folder, file = tiny_model_folder(tmp_path / "model", family), tmp_path / "model.safetensors"
    assert export(folder, "--out", file) == 0
    found, expected = read_state_dict(file), wordy_state_dict(family)
    # Counters and constants are not part of a model; PyTorch makes them itself.
    assert expected.keys() - found.keys() == {
        key for key in expected if key.endswith(("num_batches_tracked", "attn_mask", "empty_object_weight"))
    }
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key, strict=True)
    with safe_open(file, "numpy") as opened:
        assert opened.metadata()["format"] == "pt"


def test_a_file_is_replaced_only_if_asked(folder, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"mine")
    assert "exists already" in error_of(capsys, folder, "--out", file)
    assert file.read_bytes() == b"mine"
    assert export(folder, "--out", file, "--overwrite") == 0
    assert read_state_dict(file)


@pytest.mark.parametrize(
    ("model", "out", "message"),
    [
        ("nowhere", "x.safetensors", "no such folder"),
        (".", "x.safetensors", "not a model folder"),
        (None, "x.pth", "must end with .safetensors"),
        (None, "no/such/x.safetensors", "create its folder first"),
    ],
)
def test_what_cannot_be_exported(folder, tmp_path, capsys, *, model, out, message):
    assert message in error_of(capsys, tmp_path / model if model else folder, "--out", tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_file(folder, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"mine")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        error = error_of(capsys, folder, "--out", file, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "model.safetensors: cannot be written (File too large)" in error
    assert file.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
