"""The tiny models of the goldens as segmenters."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from conftest import GOLDENS, golden, tiny_state_dict

from clipvis_jax.convert import from_state_dict
from clipvis_jax.models.clipvis import ClipVis
from clipvis_jax.segmenter import InferenceConfig, Segmenter

TOP_K = 15
SIZE = 64


@functools.cache
def tiny_model(family):
    """Return a tiny model, its frozen CLIP and its parameters."""
    config, clip_vars, params = from_state_dict(tiny_state_dict(family), source=family, text_heads=4)
    return ClipVis(config), *jax.tree.map(jnp.asarray, (clip_vars, params))


class GoldenTokenizer:
    """Gives the goldens' tokens: their vocabulary is not made of real words."""

    identity = "golden"

    def __call__(self, prompts):
        tokens = golden("tiny_inputs")["text_tokens"]
        assert len(prompts) == len(tokens)
        return tokens

    def too_long(self, prompts):
        return []


def class_names():
    """Return nine names with as many synonyms as the goldens' classes have."""
    counts = golden("tiny_inputs")["num_templates"]
    return [", ".join(f"class{index} synonym{k}" for k in range(count)) for index, count in enumerate(counts)]


@functools.cache
def tiny_segmenter(family, **config):
    model, clip_vars, params = tiny_model(family)
    return Segmenter(
        model,
        clip_vars,
        params,
        tokenizer=GoldenTokenizer(),
        weights_hash=family,
        config=InferenceConfig(size=SIZE, **config),
    )


def clip_frames():
    return list(golden("tiny_inputs")["frames_u8"])


def golden_results(name):
    """Read results that the authors' code wrote."""
    return json.loads((GOLDENS / f"{name}_results.json").read_text())


def mask_iou(a, b):
    union = np.sum(a | b)
    return np.sum(a & b) / union if union else 1.0
