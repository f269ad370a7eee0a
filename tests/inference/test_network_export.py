"""The exported network: its README's lines run it without this package, with the same numbers."""

import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import clip_frames, one_layer_model, one_layer_model_folder

from clipvis_jax.cli import main
from clipvis_jax.inference.network_export import OUTPUTS, export_network
from clipvis_jax.models.clipvis import jitted
from clipvis_jax.models.text_classifier import TextClassifier

AROUND = """
import re, sys
assert not {name for name in sys.modules if name.startswith("clipvis")}
with open("network.jaxexport", "rb") as file:
    program = jax.export.deserialize(file.read()).mlir_module()
assert len(re.findall("stablehlo.case", program)), "the branches of the platforms"
assert set(re.findall(r"custom_call @(\\w+)", program)) <= {"shape_assertion"}, "plain XLA"
np.savez("outputs.npz", **network(weights, np.load("frames.npy"), np.array([64, 60], np.int32)))
"""


def test_the_readme_runs_the_network_without_this_package(tmp_path):
    pytest.importorskip("flatbuffers")
    model, clip_vars, params = one_layer_model()
    folder = tmp_path / "network"
    export_network(folder, model, clip_vars, params, size=(64, 64), batch="any")
    frames = np.stack([np.resize(frame, (64, 64, 3)) for frame in clip_frames()[:2]])
    np.save(folder / "frames.npy", frames)
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(line for line in snippet.splitlines(keepends=True) if not line.startswith("outputs"))  # of zeros
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", lines + AROUND], cwd=folder, env=environment, check=True)

    unnamed = TextClassifier(jnp.zeros((1, model.config.text.embed_dim)), jnp.zeros(1, jnp.int32), jnp.int32(1))
    expected = jitted(model, "predict_frames")(clip_vars, params, unnamed, frames, np.array([64, 60], np.int32))
    with np.load(folder / "outputs.npz") as outputs:
        assert set(outputs) == set(OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_allclose(outputs[name], getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    model = one_layer_model_folder(tmp_path / "model")
    for options, expected in {
        "--size 480": "--size 480: give height x width",
        "--size 50x64": "--size 50x64: height and width must be multiples of 32",
        "--size 64x64 --batch 0": "--batch 0: must be between 1 and 1024 frames, or any",
        f"--size 64x64 --out {tmp_path}": "exists already",
    }.items():
        assert main(["export-network", str(model), "--out", str(tmp_path / "out"), *options.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert not (tmp_path / "out").exists()
