"""Every intermediate tensor of the tiny models against the authors' code, from the weights to the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from tiny import tiny_model

from clipvis_jax.models import ops
from clipvis_jax.models.query_decoder import mask_logits_from

RELATIVE = 1e-4
"""Largest difference, as a share of the tensor's largest value."""


def assert_close(actual, expected, name):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= RELATIVE, f"{name}: relative error {error:.2e}"


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def padded_clip():
    frames = golden("tiny_inputs")["resized_u8"]
    height, width = frames.shape[1:3]
    pad = [(0, 0), (0, ops.pad_to_multiple(height) - height), (0, ops.pad_to_multiple(width) - width), (0, 0)]
    return jnp.asarray(np.pad(frames, pad)), jnp.array([height, width])


@functools.cache
def run(family):
    """Run the model over the clip; return every intermediate value, by frame."""
    model, clip_vars, params = tiny_model(family)
    frames, valid = padded_clip()

    @jax.jit
    def forward(frames):
        features = model.extract_features(clip_vars, frames, valid)
        pixels = model.decode_pixels(params, features)
        predictions, state = model.query_decoder.apply(
            {"params": params["query_decoder"]}, pixels, mutable=["intermediates"], capture_intermediates=True
        )
        return features, pixels, predictions, state["intermediates"]

    return forward(frames)


@pytest.mark.parametrize("name", ["res2", "res3", "res4", "res5"])
def test_backbone(family, name):
    video = golden(f"tiny_{family}_video")
    features = run(family)[0]
    assert_close(getattr(features, name)[video["heavy_frames"]], channels_last(video[name]), name)


def test_pixel_decoder(family):
    video = golden(f"tiny_{family}_video")
    pixels = run(family)[1]
    heavy = video["heavy_frames"]
    assert_close(pixels.mask_features[heavy], channels_last(video["pd_mask_features"]), "mask_features")
    for level in range(3):
        assert_close(pixels.memory[level][heavy], channels_last(video[f"pd_ms{level}"]), f"memory {level}")


@pytest.mark.parametrize("head", range(4))
def test_query_decoder(family, head):
    video = golden(f"tiny_{family}_video")
    _, pixels, predictions, intermediates = run(family)
    prediction = predictions[head]
    assert_close(prediction.object_logits, video[f"dec{head}_object_logits"], "object_logits")
    assert_close(prediction.iou[..., None], video[f"dec{head}_ious"], "iou")
    logits = mask_logits_from(prediction.mask_embed, pixels.mask_features)
    expected = video[f"dec{head}_mask_logits"]
    assert_close(logits if head == 3 else logits[video["heavy_frames"]], expected, "mask_logits")
    if head < 3:
        keep = intermediates["attention_keep"][head]
        np.testing.assert_array_equal(keep, ~video[f"dec{head}_attn_mask_used"])
    if head > 0:
        state = intermediates[f"layer{head - 1}"]["__call__"][0]
        assert_close(state[video["heavy_frames"]], video[f"dec{head}_state"], "state")
    if head == 3:
        assert_close(prediction.query_embed, video["query_embeds"], "query_embeds")


def test_text_encoder(family):
    model, clip_vars, _ = tiny_model(family)
    tokens = jnp.asarray(golden("tiny_inputs")["text_tokens"])
    assert_close(jax.jit(model.encode_text)(clip_vars, tokens), golden(f"tiny_{family}_video")["text_raw"], "text_raw")
