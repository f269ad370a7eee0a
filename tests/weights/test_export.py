"""``clipvis export``: what it writes is read back bit for bit, and what it cannot do leaves nothing behind."""

import dataclasses
import json
import resource
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FAMILIES
from json_edits import DELETE, changed_entries
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import tiny_model_folder, tiny_tokenizer, wordy_state_dict

from clipvis_jax import bundled
from clipvis_jax.cli import main
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.weights.model_folder import FORMAT_VERSION, load_model
from clipvis_jax.weights.state_dicts import read_metadata, read_state_dict
from clipvis_jax.weights.torch_names import CLIP_PREFIX

BUNDLED = Path(bundled.__file__).parent / "model"
"""Heads of encoders and pixel decoder, sampling points and activation are not those guessed from its shapes."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp(request.param) / "model", request.param)


def export(*options):
    return main(["export", *map(str, options)])


def convert(*options):
    return main(["convert", *map(str, options)])


def error_of(capsys, *options, command=export):
    capsys.readouterr()
    assert command(*options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("clipvis: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("model", [*FAMILIES, "bundled"])
def test_what_is_exported_converts_to_the_same_model(model, tmp_path, capsys):
    folder = BUNDLED if model == "bundled" else tiny_model_folder(tmp_path / "model", model)
    file, again = tmp_path / "model.safetensors", tmp_path / "again"
    assert export(folder, "--out", file) == 0
    assert f"wrote {file}" in capsys.readouterr().out
    assert convert("--checkpoint", file, "--tokenizer", folder / "tokenizer", "--out", again) == 0
    assert "not trained" not in capsys.readouterr().out
    expected, found = load_model(folder), load_model(again)
    assert found.config == expected.config
    variables, same = (found.clip_vars, found.params), (expected.clip_vars, expected.params)
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    for (path, a), b in zip(jax.tree.leaves_with_path(variables), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path), strict=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bundled model as a file."""
    file = tmp_path_factory.mktemp("exported") / "bundled.safetensors"
    assert export(BUNDLED, "--out", file) == 0
    return file


def test_options_have_to_agree_with_the_configuration_in_the_file(exported, tmp_path, capsys):
    options = ["--checkpoint", exported, "--tokenizer", BUNDLED / "tokenizer", "--out", tmp_path / "model"]
    for option, wrong, right in (
        ("--activation", "quick_gelu", "gelu"),
        ("--text-heads", 2, 4),
        ("--iou-head", "relu", "sigmoid"),
    ):
        error = error_of(capsys, *options, option, wrong, command=convert)
        assert error == f"clipvis: error: {option} {wrong}: {exported} says {right}; leave the option out\n"
    assert not list(tmp_path.iterdir())
    assert convert(*options, "--activation", "gelu", "--text-heads", 4) == 0
    assert load_model(tmp_path / "model").config == load_model(BUNDLED).config


def test_a_relu_mask_iou_head_is_kept(tmp_path, capsys):
    """Of an authors' file from before 2024-06-05: in the model folder, in an exported file, and back."""
    weights, file = tmp_path / "old.safetensors", tmp_path / "exported.safetensors"
    save_file(wordy_state_dict("rn"), weights)
    tiny_tokenizer().save(tmp_path / "tokenizer")
    common = ["--text-heads", 4, "--tokenizer", tmp_path / "tokenizer", "--checkpoint"]
    assert convert(*common, weights, "--out", tmp_path / "new") == 0
    assert "took it to end in a sigmoid" in capsys.readouterr().out
    assert load_model(tmp_path / "new").config.query_decoder.iou_activation == "sigmoid"
    assert convert(*common, weights, "--out", tmp_path / "old", "--iou-head", "relu") == 0
    assert export(tmp_path / "old", "--out", file) == 0
    assert convert(*common, file, "--out", tmp_path / "again") == 0
    assert "sigmoid" not in capsys.readouterr().out
    for name in ("old", "again"):
        assert load_model(tmp_path / name).config.query_decoder.iou_activation == "relu"
    error = error_of(capsys, "--clip", weights, "--iou-head", "relu", "--out", tmp_path / "clip", command=convert)
    assert "--iou-head: is for the trained decoders of a --checkpoint" in error


def test_a_model_folder_from_before_the_choice_ends_in_a_sigmoid():
    assert "iou_activation" not in json.loads((BUNDLED / "config.json").read_text())["config"]["query_decoder"]
    assert load_model(BUNDLED).config.query_decoder.iou_activation == "sigmoid"


def test_another_clip_brings_its_own_sizes(exported, tmp_path):
    clip = tmp_path / "clip.safetensors"
    save_file({key: array for key, array in load_file(exported).items() if key.startswith(CLIP_PREFIX)}, clip)
    options = ["--clip", clip, "--text-heads", 2, "--tokenizer", BUNDLED / "tokenizer", "--out", tmp_path / "model"]
    assert convert("--checkpoint", exported, *options) == 0
    expected, found = load_model(BUNDLED).config, load_model(tmp_path / "model").config
    assert (found.pixel_decoder, found.query_decoder) == (expected.pixel_decoder, expected.query_decoder)
    assert found.backbone == dataclasses.replace(expected.backbone, head_dim=ResNetConfig.head_dim)
    assert found.text == dataclasses.replace(expected.text, num_heads=2, activation="quick_gelu")


def edit(**changes):
    """Change entries of the description in a file."""
    return lambda text: json.dumps(changed_entries(json.loads(text), **changes))


DAMAGED = "its clipvis_config is damaged ({}"
DAMAGE = {
    "half": (lambda text: text[: len(text) // 2], DAMAGED.format("JSONDecodeError")),
    "empty": (lambda text: "", DAMAGED.format("JSONDecodeError")),
    "a list": (lambda text: "[1]", DAMAGED.format("TypeError")),
    "no version": (edit(format_version=DELETE), DAMAGED.format("KeyError: 'format_version')")),
    "version is text": (edit(format_version="one"), DAMAGED.format("TypeError: ")),
    "newer": (
        edit(format_version=FORMAT_VERSION + 1, config=DELETE),
        f"its clipvis_config has format_version {FORMAT_VERSION + 1}, newer than this program; update clipvis-jax\n",
    ),
    "no text": (edit(config__text=DELETE), DAMAGED.format("KeyError: 'text'); export the model again\n")),
    "unknown backbone": (edit(config__backbone__kind="vit"), DAMAGED.format("KeyError: 'vit')")),
    "unknown field": (edit(config__text__colour=3), DAMAGED.format("TypeError: ")),
    "unknown activation": (edit(config__text__activation="relu"), DAMAGED.format("")),
    "unknown IoU head": (edit(config__query_decoder__iou_activation="x"), DAMAGED.format("")),
    "impossible heads": (edit(config__text__num_heads=5), DAMAGED.format("")),
    "impossible width": (edit(config__pixel_decoder__dim=65), DAMAGED.format("InputError: pixel_decoder.dim 65")),
    "another number of queries": (
        edit(config__query_decoder__num_queries=21),
        "2 entries do not fit the configuration in the metadata: "
        "sem_seg_head.predictor.query_feat.weight has shape (30, 96), not (21, 96); ",
    ),
    "fewer layers": (
        edit(config__query_decoder__num_layers=2),
        "entries do not fit the configuration in the metadata: sem_seg_head.predictor.transformer",
    ),
    "more layers": (
        edit(config__text__num_layers=3),
        "12 entries do not fit the configuration in the metadata: "
        "backbone.clip_model.transformer.resblocks.2.attn.in_proj_bias is missing; ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_configuration_is_named(case, exported, tmp_path, capsys):
    damage, message = DAMAGE[case]
    metadata = read_metadata(exported)
    file = tmp_path / "damaged.safetensors"
    save_file(load_file(exported), file, metadata | {"clipvis_config": damage(metadata["clipvis_config"])})
    error = error_of(capsys, "--checkpoint", file, "--out", tmp_path / "model", command=convert)
    assert error.startswith(f"clipvis: error: {file}: ")
    assert message in error
    assert list(tmp_path.iterdir()) == [file]


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
