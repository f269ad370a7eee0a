"""Strict settings for all tests: run-time shape checks, no silent promotion, eight virtual devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu" if os.environ.get("CLIPVIS_TEST_PLATFORM") is None else "")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

# The structs stay out of the hook: it would check them inside JAX's tree functions, where leaves are placeholders.
_CHECKED = [
    "association",
    "convert",
    "masks",
    "models",
    "ops",
    "scores",
    "segmenter",
    "text",
    "tokenizer",
    "video_state",
    "frame_store",
]
install_import_hook([f"clipvis_jax.{name}" for name in _CHECKED], "beartype.beartype")

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

jax.config.update("jax_numpy_rank_promotion", "allow")

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("rn", "convnext")


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """Load an .npz of the goldens."""
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def tiny_state_dict(family: str) -> dict[str, np.ndarray]:
    """Load the weights of a tiny model under the authors' names, as float32."""
    arrays = load_file(GOLDENS / f"tiny_{family}.safetensors")
    return {key: x.astype(np.float32) if x.dtype == np.float16 else x for key, x in arrays.items()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
