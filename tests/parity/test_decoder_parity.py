"""Both decoders at their published width against transformers' Mask2Former, and the operations below them."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as mask2former

from clipvis_jax.models import ops
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.deformable_attention import DeformableAttention
from clipvis_jax.models.kernels.deformable_sampling import sample_levels
from clipvis_jax.models.query_decoder import mask_logits_from
from clipvis_jax.models.structs import ClipFeatures, PixelFeatures
from clipvis_jax.weights.convert import to_state_dict
from clipvis_jax.weights.torch_names import HEAD_PREFIX

RELATIVE = 1e-4
"""Largest difference, as a share of the tensor's largest value."""
THRESHOLD_MARGIN = 5e-5
"""Mask logits that are closer to the threshold than this share of the largest one may round to either side."""

HEIGHT, WIDTH = 96, 160
BATCH = 2
HEADS = 8
CONFIG = ClipVisConfig(backbone=ResNetConfig(width=16))
"""The published decoders; the number of channels of the CLIP features is the only size that is smaller."""
CHANNELS = CONFIG.backbone.channels

NAMES = (
    (r"pixel_decoder\.input_proj\.", "pixel_decoder.input_projections."),
    (r"pixel_decoder\.transformer\.level_embed", "pixel_decoder.level_embed"),
    (r"pixel_decoder\.transformer\.encoder\.layers\.(\d)\.", r"pixel_decoder.encoder.layers.\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"(adapter_1|layer_1)\.norm\.", r"\1.1."),
    (r"(adapter_1|layer_1)\.weight", r"\1.0.weight"),
    (r"pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"predictor\.query_feat\.", "predictor.queries_features."),
    (r"predictor\.query_embed\.", "predictor.queries_embedder."),
    (
        r"predictor\.transformer_cross_attention_layers\.(\d)\.multihead_attn\.",
        r"predictor.decoder.layers.\1.cross_attn.",
    ),
    (
        r"predictor\.transformer_cross_attention_layers\.(\d)\.norm\.",
        r"predictor.decoder.layers.\1.cross_attn_layer_norm.",
    ),
    (r"predictor\.transformer_self_attention_layers\.(\d)\.self_attn\.", r"predictor.decoder.layers.\1.self_attn."),
    (
        r"predictor\.transformer_self_attention_layers\.(\d)\.norm\.",
        r"predictor.decoder.layers.\1.self_attn_layer_norm.",
    ),
    (r"predictor\.transformer_ffn_layers\.(\d)\.norm\.", r"predictor.decoder.layers.\1.final_layer_norm."),
    (r"predictor\.transformer_ffn_layers\.(\d)\.", r"predictor.decoder.layers.\1."),
    (r"predictor\.decoder_norm\.", "predictor.decoder.layernorm."),
    (r"predictor\.mask_embed\.layers\.(\d)\.", r"predictor.decoder.mask_predictor.mask_embedder.\1.0."),
    (r"predictor\.(object_embed|iou_head)\.layers\.(\d)\.", r"\1.\2.0."),
)
"""From the authors' names, which are Mask2Former's own, to those of transformers."""


class Reference(nn.Module):
    """Mask2Former's decoders, and CLIP-VIS's two heads made of its MLP."""

    def __init__(self) -> None:
        super().__init__()
        config = Mask2FormerConfig(
            feature_size=256,
            mask_feature_size=256,
            hidden_dim=256,
            encoder_feedforward_dim=1024,
            dim_feedforward=2048,
            encoder_layers=6,
            decoder_layers=10,
            num_attention_heads=HEADS,
            num_queries=100,
            dropout=0.0,
            feature_strides=[4, 8, 16, 32],
            common_stride=4,
        )
        self.pixel_decoder = mask2former.Mask2FormerPixelDecoder(config, feature_channels=CHANNELS)
        self.predictor = mask2former.Mask2FormerTransformerModule(in_features=256, config=config)
        self.object_embed = mask2former.Mask2FormerMLPPredictionHead(256, 256, 2)
        self.iou_head = mask2former.Mask2FormerMLPPredictionHead(256, 256, 1)


def random_params(seed: int):
    """Draw parameters: no norm is the identity, and where deformable attention samples depends on the query."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = rng.normal(size=leaf.shape)
        if name.endswith("offsets/bias"):
            values *= 2  # pixels
        elif name.endswith("scale"):
            values = rng.uniform(0.5, 1.5, size=leaf.shape)
        elif name.endswith("bias"):
            values *= 0.1
        elif name.endswith("kernel"):
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
            if "query" in name.split("/")[-2] or "key" in name.split("/")[-2]:
                values *= 2  # attention that is far from uniform, so that the queries stay different
        return values.astype(np.float32)

    params = jax.eval_shape(ClipVis(CONFIG).init_decoders, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def load():
    """The same parameters in our modules and in Mask2Former's."""
    params = random_params(seed=0)
    state_dict = {}
    for key, array in to_state_dict(CONFIG, {}, params).items():
        name = key.removeprefix(HEAD_PREFIX)
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        state_dict[name] = torch.from_numpy(array)
    for name in [name for name in state_dict if ".self_attn.in_proj_" in name]:
        kind = name.rpartition("_")[2]
        for part, projection in zip(state_dict.pop(name).chunk(3), "qkv", strict=True):
            state_dict[name.replace(f"in_proj_{kind}", f"{projection}_proj.{kind}")] = part
    reference = Reference().eval()
    reference.load_state_dict(state_dict, strict=True)
    return params, reference


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def assert_close(actual, expected, name):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= RELATIVE, f"{name}: relative error {error:.2e}"


def size(stride):
    """Height and width of a feature map."""
    return HEIGHT // stride, WIDTH // stride


@torch.no_grad()
def test_pixel_decoder():
    params, reference = load()
    rng = np.random.default_rng(1)
    shapes = [(BATCH, *size(stride), c) for stride, c in zip((4, 8, 16, 32), CHANNELS, strict=True)]
    maps = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    maps[0] *= 0.01  # so small that GroupNorm's epsilon matters
    expected = reference.pixel_decoder([*map(channels_first, maps)], return_dict=True)
    pixels = jax.jit(ClipVis(CONFIG).decode_pixels)(params, ClipFeatures(*maps))
    for level, (memory, feature) in enumerate(zip(pixels.memory, expected.multi_scale_features, strict=True)):
        assert_close(channels_first(memory), feature, f"memory {level}")
    assert_close(channels_first(pixels.mask_features), expected.mask_features, "mask_features")


class OracleWithOurMasks:
    """Compares every attention mask of Mask2Former with ours, then lets it go on with ours.

    So a rounding at the threshold does not decide about all that follows.
    """

    def __init__(self, keeps):
        self.keeps = [torch.from_numpy(np.array(keep)) for keep in keeps]
        self.num_compared = 0
        self.num_empty = 0

    def __call__(self, module, args, output):
        if self.num_compared == len(self.keeps):
            return None  # The mask after the last layer is not used.
        logits, blocked = output
        keep = self.keeps[self.num_compared]
        self.num_compared += 1
        logits_at_level = functional.interpolate(logits, args[2], mode="bilinear", align_corners=False).flatten(2)
        certain = (logits_at_level.abs() > THRESHOLD_MARGIN * logits_at_level.abs().max()).all(-1)
        assert certain.float().mean() > 0.8
        blocked = blocked.unflatten(0, (BATCH, HEADS))[:, 0]
        empty = blocked.all(-1, keepdim=True)
        self.num_empty += int(empty.sum())
        assert torch.equal(keep[certain], (~blocked | empty)[certain]), f"attention mask {self.num_compared}"
        return logits, (~keep).repeat_interleave(HEADS, dim=0)


@torch.no_grad()
def test_query_decoder():
    params, reference = load()
    rng = np.random.default_rng(2)
    mask_features, *memory = (rng.normal(size=(BATCH, *size(stride), 256)) for stride in (4, 32, 16, 8))
    mask_features += rng.normal(size=256)  # without a mean of their own, hardly any mask would be empty
    pixels = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PixelFeatures(mask_features, tuple(memory)))
    decoder = ClipVis(CONFIG).query_decoder

    @jax.jit
    def forward(params, pixels):
        predictions, state = decoder.apply({"params": params}, pixels, mutable=["intermediates"])
        logits = [mask_logits_from(prediction.mask_embed, pixels.mask_features) for prediction in predictions]
        return predictions, logits, state["intermediates"]["attention_keep"]

    predictions, mask_logits, keeps = forward(params["query_decoder"], pixels)
    oracle = OracleWithOurMasks(keeps)
    with reference.predictor.decoder.mask_predictor.register_forward_hook(oracle):
        expected = reference.predictor([*map(channels_first, pixels.memory)], channels_first(pixels.mask_features))
    assert oracle.num_compared == CONFIG.query_decoder.num_layers
    assert oracle.num_empty > 0, "no query was made to attend everywhere"
    assert len(predictions) == len(expected.intermediate_hidden_states) == CONFIG.query_decoder.num_layers + 1
    for index, prediction in enumerate(predictions):
        embed = expected.intermediate_hidden_states[index].transpose(0, 1)
        assert_close(prediction.query_embed, embed, f"query_embed {index}")
        assert_close(mask_logits[index], expected.masks_queries_logits[index], f"mask_logits {index}")
        assert_close(prediction.object_logits, reference.object_embed(embed), f"object_logits {index}")
        assert_close(prediction.iou, reference.iou_head(embed)[..., 0].sigmoid(), f"iou {index}")


LEVEL_SHAPES = ((2, 3), (1, 1), (5, 4))


def points_outside(rng, shape, size):
    """Half a pixel to a million pixels outside, on any side."""
    distance = 0.5 * 10 ** rng.uniform(0, 6.3, shape)
    return np.where(rng.uniform(size=shape) < 0.5, -distance, size - 1 + distance)


POINTS = {
    "anywhere": lambda rng, shape, size: rng.uniform(-2, size + 1, shape),
    "outside": points_outside,
    "on pixel centres": lambda rng, shape, size: rng.integers(-2, size + 2, shape),
    "on borders": lambda rng, shape, size: rng.choice([-1, -0.5, 0, 0.5], shape) + rng.choice([0, 1], shape) * size,
}
"""Coordinates to sample at, in pixels: random generator, shape, length of the axis."""


@pytest.mark.parametrize("kind", POINTS)
def test_sample_levels(kind):
    rng = np.random.default_rng(3)
    batch, queries, heads, head_dim, num_points = 2, 50, 3, 4, 4
    num_pixels = sum(height * width for height, width in LEVEL_SHAPES)
    values = rng.normal(size=(batch, num_pixels, heads, head_dim)).astype(np.float32)
    weights = rng.uniform(size=(batch, queries, heads, len(LEVEL_SHAPES), num_points)).astype(np.float32)
    shape = (batch, queries, heads, num_points)
    axes = [[POINTS[kind](rng, shape, length) for length in (width, height)] for height, width in LEVEL_SHAPES]
    points = np.stack([np.stack(level, axis=-1) for level in axes], axis=3).astype(np.float32)

    expected, start = torch.zeros(batch * heads, head_dim, queries), 0
    for level, (height, width) in enumerate(LEVEL_SHAPES):
        part = torch.from_numpy(values[:, start : start + height * width])
        start += height * width
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        grid = 2 * (torch.from_numpy(points[:, :, :, level]) + 0.5) / torch.tensor([width, height]) - 1
        grid = grid.transpose(1, 2).flatten(0, 1)
        samples = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        expected += (samples * torch.from_numpy(weights[:, :, :, level]).transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    expected = expected.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)

    assert expected.abs().max() > 0.1, "nothing is sampled"
    actual = jax.jit(sample_levels, static_argnums=3)(values, points, weights, LEVEL_SHAPES)
    assert_close(actual, expected, kind)


def test_initial_deformable_attention_samples_in_mask2formers_pattern():
    attention = DeformableAttention(num_heads=HEADS, num_points=4)
    x = jnp.zeros((1, 1 + 2 + 4, 256))
    params = attention.init(jax.random.key(0), x, x, ((1, 1), (1, 2), (2, 2)))["params"]
    expected = mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(256, HEADS, 3, 4)
    mask2former.Mask2FormerPreTrainedModel._init_weights(SimpleNamespace(config=Mask2FormerConfig()), expected)
    for name, module in (("offsets", expected.sampling_offsets), ("weights", expected.attention_weights)):
        np.testing.assert_allclose(params[name]["bias"], module.bias.detach(), atol=1e-5)
        np.testing.assert_array_equal(params[name]["kernel"], module.weight.detach().T)


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [
        pytest.param((3, 5), (24, 40), id="up 8 times"),
        pytest.param((24, 40), (3, 5), id="down 8 times"),
        pytest.param((7, 7), (3, 5), id="down to odd sizes"),
        pytest.param((7, 9), (13, 10), id="up to odd sizes"),
        pytest.param((5, 12), (11, 7), id="up and down"),
        pytest.param((1, 2), (3, 1), id="from and to a single pixel"),
        pytest.param((4, 6), (4, 6), id="same size"),
    ],
)
def test_resize_bilinear(size_in, size_out):
    x = np.random.default_rng(4).normal(size=(2, *size_in, 3)).astype(np.float32)
    expected = functional.interpolate(channels_first(x), size_out, mode="bilinear", align_corners=False)
    assert_close(channels_first(ops.resize_bilinear(jnp.asarray(x), size_out)), expected, "resized")


@pytest.mark.parametrize("map_size", [(1, 1), (3, 5), (30, 47)])
def test_sine_position_encoding(map_size):
    embedding = mask2former.Mask2FormerSinePositionEmbedding(num_position_features=128, normalize=True)
    expected = embedding((1, 256, *map_size), "cpu", torch.float32)[0].movedim(0, -1)
    assert_close(ops.sine_position_encoding(*map_size, 256), expected, "encoding")
