"""CLIP's image and text encoders at their published sizes against open_clip and timm, with random weights."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
from oracles import install_torchvision_stub

from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.weights.convert import from_state_dict, to_state_dict
from clipvis_jax.weights.published_sizes import BACKBONES, TEXT_TOWERS
from clipvis_jax.weights.torch_names import CLIP_PREFIX

install_torchvision_stub()

import open_clip  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

RELATIVE = 1e-4
"""Largest difference, as a share of the tensor's largest value."""

PUBLISHED_TAGS = {
    "RN50": "openai",
    "RN101": "openai",
    "RN50x4": "openai",
    "RN50x16": "openai",
    "RN50x64": "openai",
    "convnext_base_w": "laion2b_s13b_b82k",
    "convnext_large_d": "laion2b_s26b_b102k_augreg",
}
"""Which weights' settings are taken, by open_clip's name. Only ``convnext_xxlarge`` is missing: it needs 15 GB."""
FAST = ("RN50", "convnext_base_w")
SIZES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED_TAGS]

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
VALID = (90, 133)
"""Height and width of the frames' part that is not padding."""

SMALL = 0.01
"""Size of what convolutions give."""

START, END = 49406, 49407
CONTEXT = 77
LONGEST = 16


class Pair(NamedTuple):
    """The same weights in open_clip's model and in ours, and what open_clip subtracts from and divides pixels by."""

    reference: torch.nn.Module
    model: ClipVis
    clip_vars: Variables
    mean: torch.Tensor
    std: torch.Tensor


@torch.no_grad()
def make_reference(name: str, quick_gelu: bool) -> torch.nn.Module:
    """Build open_clip's model with random weights which hide nothing.

    No norm is the identity, no residual block adds next to nothing, and what convolutions give is so small that the
    epsilon of the norm behind them matters.
    """
    with torch.device("meta"):
        reference = open_clip.CLIP(**open_clip.get_model_config(name), quick_gelu=quick_gelu)
    reference.to_empty(device="cpu").eval()
    reference.attn_mask = torch.full(reference.attn_mask.shape, -torch.inf).triu(1)
    torch.manual_seed(0)
    for key, value in reference.state_dict().items():
        module, _, leaf = key.rpartition(".")
        match reference.get_submodule(module):
            case torch.nn.BatchNorm2d() | torch.nn.LayerNorm() if leaf == "weight":
                value.uniform_(0.5, 1.5)
            case torch.nn.BatchNorm2d() if leaf == "running_var":
                value.uniform_(0.5 * SMALL**2, 1.5 * SMALL**2)
            case torch.nn.BatchNorm2d() if leaf == "running_mean":
                value.normal_(0, 0.1 * SMALL)
            case torch.nn.Conv2d():
                value.normal_(0, SMALL * (math.sqrt(value.shape[0] / value.numel()) if leaf == "weight" else 0.1))
            case _ if leaf == "gamma":
                value.uniform_(0.1, 0.3)
            case _ if value.is_floating_point():
                value.normal_(0, math.sqrt(value.shape[0] / value.numel()) if value.ndim > 1 else 0.1)
    return reference


def smallest_decoders(config: ClipVisConfig) -> dict[str, np.ndarray]:
    """Entries of very small decoders: next to them, the conversion of CLIP need not draw large ones."""
    config = dataclasses.replace(
        config,
        pixel_decoder=PixelDecoderConfig(dim=32, mask_dim=32, num_layers=1, ffn_dim=8),
        query_decoder=QueryDecoderConfig(num_queries=2, num_layers=1, dim=32, mask_dim=32, ffn_dim=8),
    )
    params = jax.eval_shape(ClipVis(config).init_decoders, jax.random.key(0))
    return to_state_dict(config, {}, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params))


def clip_state_dict(reference: torch.nn.Module) -> dict[str, np.ndarray]:
    return {CLIP_PREFIX + key: value.numpy() for key, value in reference.state_dict().items()}


@pytest.fixture(scope="module", params=SIZES)
def pair(request):
    name = request.param
    settings = open_clip.get_pretrained_cfg(name, PUBLISHED_TAGS[name])
    reference = make_reference(name, quick_gelu=settings.get("quick_gelu", False))
    decoders = smallest_decoders(ClipVisConfig(BACKBONES[name], TEXT_TOWERS[name]))
    config, clip_vars, _ = from_state_dict(clip_state_dict(reference) | decoders, source=name)
    mean, std = (torch.tensor(settings[key]) for key in ("mean", "std"))
    return Pair(reference, ClipVis(config), clip_vars, mean, std)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def reference_image(pair):
    """Normalise the frames as open_clip does, then pad with zeros."""
    image = ((torch.from_numpy(FRAMES) / 255 - pair.mean) / pair.std).movedim(-1, 1)
    image[:, :, VALID[0] :] = 0
    image[:, :, :, VALID[1] :] = 0
    return image


@pytest.fixture(scope="module")
def features(pair):
    return jax.jit(pair.model.extract_features)(pair.clip_vars, FRAMES, np.array(VALID))


def embed_masks(pair, res5, masks):
    return jax.jit(pair.model.visual_head.apply)({"params": pair.clip_vars["visual_head"]}, res5, masks)


@torch.no_grad()
def test_feature_maps(pair, features):
    output = pair.reference.visual.forward_intermediates(reference_image(pair), indices=4, intermediates_only=True)
    names = ("res2", "res3", "res4", "res5")
    for name, expected in zip(names, output["image_intermediates"], strict=True):
        error = relative_error(channels_first(getattr(features, name)), expected)
        assert error <= RELATIVE, f"{name}: relative error {error:.2e}"


def attention_pool(reference, res5, masks):
    """Embed masks [b, q, h, w] by CLIP's attention pool over the pixels of res5 [b, c, h, w] inside each."""
    pool = reference.visual.attnpool
    channels, size = res5.shape[1], res5.shape[2:]
    grid = math.isqrt(len(pool.positional_embedding) - 1)
    position = pool.positional_embedding[1:].T.reshape(1, channels, grid, grid)
    position = functional.interpolate(position, size, mode="bilinear", align_corners=False)
    pixels = (res5 + position).flatten(2).permute(2, 0, 1)
    query = (res5.mean((2, 3)) + pool.positional_embedding[0]).expand(masks.shape[1], -1, -1)
    keep = masks.flatten(2).repeat_interleave(pool.num_heads, dim=0)
    pooled, _ = functional.multi_head_attention_forward(
        query,
        pixels,
        pixels,
        embed_dim_to_check=channels,
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        training=False,
        need_weights=False,
        attn_mask=torch.zeros(keep.shape).masked_fill(~keep, -torch.inf),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    # An empty mask gives 0 or NaN, depending on PyTorch's version; the authors' results are with 0.
    return torch.where(masks.any((2, 3))[..., None], pooled.transpose(0, 1), pool.c_proj.bias)


def mean_pool(reference, res5, masks):
    """Embed masks [b, q, h, w] by the mean of res5 [b, c, h, w] inside each, head norm and projection."""
    visual = reference.visual
    total = (masks[:, :, None] * res5[:, None]).sum((3, 4))
    pooled = total / (masks.sum((2, 3))[..., None] + 1e-8)
    embedded = visual.head(visual.trunk.head.norm(pooled.flatten(0, 1)[:, :, None, None]).flatten(1))
    return embedded.unflatten(0, pooled.shape[:2])


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 5), (9, 16)])
def test_visual_head(pair, grid):
    rng = np.random.default_rng(0)
    is_resnet = isinstance(pair.model.config.backbone, ResNetConfig)
    # In front of a norm, small values show its epsilon.
    scale = 1 if is_resnet else SMALL
    res5 = scale * np.abs(rng.normal(size=(2, *grid, pair.model.config.backbone.channels[-1]))).astype(np.float32)
    masks = rng.uniform(size=(2, 5, *grid)) < 0.4
    masks[:, 0] = True
    masks[:, 1] = False
    masks[:, 2] = np.arange(masks[0, 2].size).reshape(grid) == 7
    embed = attention_pool if is_resnet else mean_pool
    expected = embed(pair.reference, torch.from_numpy(channels_first(res5)), torch.from_numpy(masks))
    error = relative_error(embed_masks(pair, res5, masks), expected)
    assert error <= RELATIVE, f"relative error {error:.2e}"


@torch.no_grad()
@pytest.mark.parametrize("pair", ["convnext_base_w"], indirect=True)
def test_whole_image_as_the_mask_gives_open_clips_image_embedding(pair, features):
    everything = np.ones((len(FRAMES), 1, *features.res5.shape[1:3]), bool)
    expected = pair.reference.encode_image(reference_image(pair))
    assert relative_error(embed_masks(pair, features.res5, everything)[:, 0], expected) <= RELATIVE


def make_tokens() -> np.ndarray:
    """Texts of several lengths up to ``LONGEST``, zeros after the end-of-text token."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((6, CONTEXT), np.int32)
    for row, length in zip(tokens, (2, 3, 5, 8, 13, LONGEST), strict=True):
        row[:length] = [START, *rng.integers(0, START, length - 2), END]
    return tokens


def text_error(pair, activation, length):
    """Compare the text encoder on texts cut to a length with open_clip's on texts of the full length."""
    config = pair.model.config
    model = ClipVis(dataclasses.replace(config, text=dataclasses.replace(config.text, activation=activation)))
    tokens = make_tokens()
    with torch.no_grad():
        expected = pair.reference.encode_text(torch.from_numpy(tokens).long())
    return relative_error(jax.jit(model.encode_text)(pair.clip_vars, tokens[:, :length]), expected)


@pytest.mark.parametrize("length", [CONTEXT, LONGEST])
def test_text_encoder_at_any_length(pair, length):
    error = text_error(pair, pair.model.config.text.activation, length)
    assert error <= RELATIVE, f"relative error {error:.2e}"


def test_text_encoder_with_the_other_activation_is_clearly_off(pair):
    other = "gelu" if pair.model.config.text.activation == "quick_gelu" else "quick_gelu"
    assert text_error(pair, other, LONGEST) > 20 * RELATIVE


def test_conversion_back_gives_the_same_weights(pair):
    expected = clip_state_dict(pair.reference)
    converted = to_state_dict(pair.model.config, pair.clip_vars, {})
    for key, array in converted.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
    assert all(key in converted or key.endswith("num_batches_tracked") for key in expected)
