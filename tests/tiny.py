"""The tiny models of the goldens as segmenters."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from conftest import GOLDENS, golden, tiny_state_dict

from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.models.clipvis import ClipVis
from clipvis_jax.text.tokenizer import make_tokenizer
from clipvis_jax.weights.convert import from_state_dict
from clipvis_jax.weights.model_folder import RunDefaults, save_model

TOP_K = 15
SIZE = 64


@functools.cache
def tiny_model(family):
    """Return a tiny model, its frozen CLIP and its parameters."""
    config, clip_vars, params = from_state_dict(tiny_state_dict(family), source=family, text_heads=4)
    return ClipVis(config), *jax.tree.map(jnp.asarray, (clip_vars, params))


class GoldenTokenizer:
    """Gives the goldens' tokens: their vocabulary is not made of real words."""

    fingerprint = "golden"

    def __call__(self, prompts):
        tokens = golden("tiny_inputs")["text_tokens"]
        assert len(prompts) == len(tokens)
        return tokens

    def too_long(self, prompts):
        return []

    def unknown_words(self, text):
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


def wordy_state_dict(family):
    """Return a tiny model's weights with room for the words and the length of real prompts: see ``tiny_tokenizer``."""
    state_dict = dict(tiny_state_dict(family))
    for name, rows in {"token_embedding.weight": 518, "positional_embedding": 77}.items():
        key = f"backbone.clip_model.{name}"
        state_dict[key] = np.resize(state_dict[key], (rows, state_dict[key].shape[1]))
    return state_dict


def tiny_tokenizer():
    """Make the tokenizer of ``wordy_state_dict``: it writes any text, with 518 entries, the last of which ends it."""
    return make_tokenizer([("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")], context_length=77)


def tiny_model_folder(path, family):
    """Write a whole model folder with a tiny model, which takes any class names; returns its path."""
    config, clip_vars, params = from_state_dict(wordy_state_dict(family), source=family, text_heads=4)
    # Without background names, of which hundreds would be encoded.
    save_model(path, config, clip_vars, params, tiny_tokenizer(), source={}, run_defaults=RunDefaults(background=()))
    return path


@functools.cache
def one_layer_model():
    """Return a model with a tiny CLIP under random decoders of one layer, for tests that compile many trainings."""
    config, clip_vars, _ = from_state_dict(wordy_state_dict("rn"), source="rn", text_heads=4)
    config = dataclasses.replace(
        config,
        pixel_decoder=dataclasses.replace(config.pixel_decoder, num_layers=1, ffn_dim=64),
        query_decoder=dataclasses.replace(config.query_decoder, num_layers=1),
    )
    model = ClipVis(config)
    return model, jax.tree.map(jnp.asarray, clip_vars), jax.jit(model.init_decoders)(jax.random.key(0))


def one_layer_model_folder(path):
    """Write ``one_layer_model`` as a model folder; returns its path."""
    model, *variables = one_layer_model()
    save_model(path, model.config, *variables, tiny_tokenizer(), source={}, run_defaults=RunDefaults(background=()))
    return path
