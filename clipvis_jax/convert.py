"""Turn PyTorch checkpoints into model variables, with every key and every leaf accounted for.

Reads the authors' checkpoints (``{"model": state_dict}``, which hold CLIP as well) and CLIP alone as an open_clip
state dict. All sizes are worked out from names and shapes. The correspondence of names is a table (``torch_entry``)
from our leaves to their keys, so that it serves both directions.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from clipvis_jax.errors import InputError
from clipvis_jax.models.clip_convnext import ConvNextConfig
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables
from clipvis_jax.models.pixel_decoder import NUM_LEVELS, PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig

CLIP_PREFIX = "backbone.clip_model."
HEAD_PREFIX = "sem_seg_head."

Activation = Literal["quick_gelu", "gelu"]
StateDict = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

IGNORED = {
    r".*\.num_batches_tracked": "a counter of BatchNorm's training",
    r"criterion\.empty_object_weight": "a constant of the training loss",
    re.escape(CLIP_PREFIX) + r"(visual\.)?attn_mask": "a constant buffer",
    re.escape(CLIP_PREFIX) + r"(input_resolution|context_length|vocab_size)": "sizes, visible in the shapes",
    r"(sem_seg_head\.)?(pixel_mean|pixel_std)": "constants",
}
"""Keys that are not converted, and why."""

BACKBONES: dict[str, ResNetConfig | ConvNextConfig] = {
    "RN50": ResNetConfig(),
    "RN101": ResNetConfig(depths=(3, 4, 23, 3), embed_dim=512),
    "RN50x4": ResNetConfig(depths=(4, 6, 10, 6), width=80, embed_dim=640, pool_grid=9),
    "RN50x16": ResNetConfig(depths=(6, 8, 18, 8), width=96, embed_dim=768, pool_grid=12),
    "RN50x64": ResNetConfig(depths=(3, 15, 36, 10), width=128, embed_dim=1024, pool_grid=14),
    "convnext_base_w": ConvNextConfig(),
    "convnext_large_d": ConvNextConfig(dims=(192, 384, 768, 1536), embed_dim=768, projection="mlp"),
    "convnext_xxlarge": ConvNextConfig(
        depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072), embed_dim=1024, norm_eps=1e-5
    ),
}
"""The published CLIP image encoders that are supported. ``convnext_base_w_320`` and ``convnext_large_d_320`` differ
from their namesakes in the training image size alone, which a convolutional network does not show."""

TEXT_TOWERS: dict[str, TextConfig] = {
    "RN50": TextConfig(),
    "RN101": TextConfig(embed_dim=512),
    "RN50x4": TextConfig(width=640, num_heads=10, embed_dim=640),
    "RN50x16": TextConfig(width=768, num_heads=12, embed_dim=768),
    "RN50x64": TextConfig(width=1024, num_heads=16, embed_dim=1024),
    "convnext_base_w": TextConfig(width=640, num_heads=10, embed_dim=640, activation="gelu"),
    "convnext_large_d": TextConfig(width=768, num_heads=12, num_layers=16, embed_dim=768, activation="gelu"),
    "convnext_xxlarge": TextConfig(
        width=1024, num_heads=16, num_layers=24, embed_dim=1024, activation="gelu"
    ),
}
"""The text encoders that belong to ``BACKBONES``."""


# --- our leaves <-> their keys ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TorchEntry:
    """Where a leaf of ours stands in a PyTorch state dict.

    ``part`` is the third (0, 1, 2) of a stacked query-key-value projection, or None for the whole entry.
    ``from_torch`` brings the entry to our layout; ``to_torch`` brings it back.
    """

    key: str
    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    part: int | None = None


_NORMS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_ATTENTION = {"query": 0, "key": 1, "value": 2}

# Module paths, ours on the left. Numbers are captured; `{1-1}` writes the first number less one.
_MODULES: tuple[tuple[str, str], ...] = (
    # frozen CLIP, ResNet
    (r"trunk/stem_conv(\d)", "visual.conv{1}"),
    (r"trunk/stem_norm(\d)", "visual.bn{1}"),
    (r"trunk/stage(\d)_block(\d+)/conv(\d)", "visual.layer{1}.{2}.conv{3}"),
    (r"trunk/stage(\d)_block(\d+)/norm(\d)", "visual.layer{1}.{2}.bn{3}"),
    (r"trunk/stage(\d)_block(\d+)/shortcut_conv", "visual.layer{1}.{2}.downsample.0"),
    (r"trunk/stage(\d)_block(\d+)/shortcut_norm", "visual.layer{1}.{2}.downsample.1"),
    (r"visual_head/query", "visual.attnpool.q_proj"),
    (r"visual_head/key", "visual.attnpool.k_proj"),
    (r"visual_head/value", "visual.attnpool.v_proj"),
    (r"visual_head/out", "visual.attnpool.c_proj"),
    # frozen CLIP, ConvNeXt
    (r"trunk/stem_conv", "visual.trunk.stem.0"),
    (r"trunk/stem_norm", "visual.trunk.stem.1"),
    (r"trunk/downsample(\d)_norm", "visual.trunk.stages.{1-1}.downsample.0"),
    (r"trunk/downsample(\d)_conv", "visual.trunk.stages.{1-1}.downsample.1"),
    (r"trunk/stage(\d)_block(\d+)", "visual.trunk.stages.{1-1}.blocks.{2}"),
    (r"trunk/stage(\d)_block(\d+)/depthwise", "visual.trunk.stages.{1-1}.blocks.{2}.conv_dw"),
    (r"trunk/stage(\d)_block(\d+)/norm", "visual.trunk.stages.{1-1}.blocks.{2}.norm"),
    (r"trunk/stage(\d)_block(\d+)/expand", "visual.trunk.stages.{1-1}.blocks.{2}.mlp.fc1"),
    (r"trunk/stage(\d)_block(\d+)/contract", "visual.trunk.stages.{1-1}.blocks.{2}.mlp.fc2"),
    (r"visual_head/norm", "visual.trunk.head.norm"),
    (r"visual_head/expand", "visual.head.mlp.fc1"),
    (r"visual_head/projection", "visual.head.proj"),
    # frozen CLIP, text
    (r"text/token_embedding", "token_embedding"),
    (r"text/final_norm", "ln_final"),
    (r"text/block(\d+)/attention_norm", "transformer.resblocks.{1}.ln_1"),
    (r"text/block(\d+)/attention", "transformer.resblocks.{1}.attn"),
    (r"text/block(\d+)/mlp_norm", "transformer.resblocks.{1}.ln_2"),
    (r"text/block(\d+)/expand", "transformer.resblocks.{1}.mlp.c_fc"),
    (r"text/block(\d+)/contract", "transformer.resblocks.{1}.mlp.c_proj"),
    # trained decoders
    (r"pixel_decoder/input(\d)_conv", "pixel_decoder.input_proj.{1}.0"),
    (r"pixel_decoder/input(\d)_norm", "pixel_decoder.input_proj.{1}.1"),
    (
        r"pixel_decoder/layer(\d+)/attention/value",
        "pixel_decoder.transformer.encoder.layers.{1}.self_attn.value_proj",
    ),
    (
        r"pixel_decoder/layer(\d+)/attention/offsets",
        "pixel_decoder.transformer.encoder.layers.{1}.self_attn.sampling_offsets",
    ),
    (
        r"pixel_decoder/layer(\d+)/attention/weights",
        "pixel_decoder.transformer.encoder.layers.{1}.self_attn.attention_weights",
    ),
    (
        r"pixel_decoder/layer(\d+)/attention/out",
        "pixel_decoder.transformer.encoder.layers.{1}.self_attn.output_proj",
    ),
    (r"pixel_decoder/layer(\d+)/attention_norm", "pixel_decoder.transformer.encoder.layers.{1}.norm1"),
    (r"pixel_decoder/layer(\d+)/ffn/layer0", "pixel_decoder.transformer.encoder.layers.{1}.linear1"),
    (r"pixel_decoder/layer(\d+)/ffn/layer1", "pixel_decoder.transformer.encoder.layers.{1}.linear2"),
    (r"pixel_decoder/layer(\d+)/ffn_norm", "pixel_decoder.transformer.encoder.layers.{1}.norm2"),
    (r"pixel_decoder/lateral_conv", "pixel_decoder.adapter_1"),
    (r"pixel_decoder/lateral_norm", "pixel_decoder.adapter_1.norm"),
    (r"pixel_decoder/output_conv", "pixel_decoder.layer_1"),
    (r"pixel_decoder/output_norm", "pixel_decoder.layer_1.norm"),
    (r"pixel_decoder/mask_features", "pixel_decoder.mask_features"),
    (
        r"query_decoder/layer(\d+)/cross_attention",
        "predictor.transformer_cross_attention_layers.{1}.multihead_attn",
    ),
    (
        r"query_decoder/layer(\d+)/cross_attention_norm",
        "predictor.transformer_cross_attention_layers.{1}.norm",
    ),
    (r"query_decoder/layer(\d+)/self_attention", "predictor.transformer_self_attention_layers.{1}.self_attn"),
    (
        r"query_decoder/layer(\d+)/self_attention_norm",
        "predictor.transformer_self_attention_layers.{1}.norm",
    ),
    (r"query_decoder/layer(\d+)/ffn/layer0", "predictor.transformer_ffn_layers.{1}.linear1"),
    (r"query_decoder/layer(\d+)/ffn/layer1", "predictor.transformer_ffn_layers.{1}.linear2"),
    (r"query_decoder/layer(\d+)/ffn_norm", "predictor.transformer_ffn_layers.{1}.norm"),
    (r"query_decoder/norm", "predictor.decoder_norm"),
    (r"query_decoder/object_head/layer(\d)", "predictor.object_embed.layers.{1}"),
    (r"query_decoder/mask_head/layer(\d)", "predictor.mask_embed.layers.{1}"),
    (r"query_decoder/iou_head/layer(\d)", "predictor.iou_head.layers.{1}"),
)

# Leaves that are entries of their own.
_LEAVES = {
    "logit_scale": "logit_scale",
    "visual_head/position_embedding": "visual.attnpool.positional_embedding",
    "text/position_embedding": "positional_embedding",
    "text/projection/kernel": "text_projection",
    "pixel_decoder/level_embedding": "pixel_decoder.transformer.level_embed",
    "query_decoder/query_feature": "predictor.query_feat.weight",
    "query_decoder/query_position": "predictor.query_embed.weight",
    "query_decoder/level_embedding": "predictor.level_embed.weight",
}


def torch_entry(path: str, shape: tuple[int, ...], config: ClipVisConfig) -> TorchEntry:
    """Name the PyTorch entry of a leaf, such as ``query_decoder/layer_3/cross_attention/out/kernel``.

    Args:
        path: Module names and leaf name, separated by slashes.
        shape: The leaf's shape.
        config: The model's sizes.

    Raises:
        KeyError: The path is not a leaf of this project's models.
    """
    prefix = HEAD_PREFIX if path.startswith(("pixel_decoder/", "query_decoder/")) else CLIP_PREFIX
    if path in _LEAVES:
        return TorchEntry(prefix + _LEAVES[path], np.asarray, np.asarray)
    module, leaf = path.rsplit("/", 1)
    parent, _, name = module.rpartition("/")
    if parent.endswith("attention") and not parent.startswith("pixel_decoder/"):
        return _attention_entry(prefix + _module_key(parent), name, leaf)
    key = prefix + _module_key(module)
    if leaf == "layer_scale":
        return TorchEntry(key + ".gamma", np.asarray, np.asarray)
    if module == "visual_head/projection" and getattr(config.backbone, "projection", None) == "mlp":
        key = f"{prefix}visual.head.mlp.fc2"
    if leaf in _NORMS and (leaf != "bias" or len(shape) == 1):
        return TorchEntry(f"{key}.{_NORMS[leaf]}", np.asarray, np.asarray)
    key = f"{key}.weight"
    if leaf == "kernel" and len(shape) == 4:
        return TorchEntry(key, lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
    if leaf == "kernel":
        return TorchEntry(key, np.transpose, np.transpose)
    if leaf == "embedding":
        return TorchEntry(key, np.asarray, np.asarray)
    raise KeyError(path)


def _module_key(module: str) -> str:
    for pattern, template in _MODULES:
        if match := re.fullmatch(pattern, module):
            numbers = {str(i): value for i, value in enumerate(match.groups(), start=1)}
            return re.sub(
                r"\{(\d)(-1)?\}",
                lambda m, numbers=numbers: str(int(numbers[m[1]]) - bool(m[2])),  # type: ignore[misc]
                template,
            )
    raise KeyError(module)


def _attention_entry(key: str, name: str, leaf: str) -> TorchEntry:
    """Name an attention's projection; PyTorch stacks query, key and value along the rows of one matrix [3 d, d]."""
    part = None if name == "out" else _ATTENTION[name]
    stem = f"{key}.out_proj." if name == "out" else f"{key}.in_proj_"
    if leaf == "bias":
        return TorchEntry(f"{stem}bias", np.asarray, np.asarray, part)
    return TorchEntry(f"{stem}weight", np.transpose, np.transpose, part)


def leaf_paths(tree: Variables) -> dict[str, jax.ShapeDtypeStruct]:
    """Flatten a tree of variables to ``path -> leaf``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


# --- sizes -----------------------------------------------------------------------------------------------------------


def infer_config(
    shapes: Shapes, *, source: str, activation: Activation | None = None, text_heads: int | None = None
) -> tuple[ClipVisConfig, bool]:
    """Work out a model's sizes from the names and shapes of a checkpoint.

    Args:
        shapes: Shape of every entry, under the authors' names.
        source: What to call the checkpoint in errors.
        activation: Activation of the text encoder, which no key shows; by default QuickGELU for ResNets (OpenAI's
            weights) and exact GELU for ConvNeXts.
        text_heads: Attention heads of the text encoder, which no key shows; by default 64 channels each.

    Returns:
        The sizes, and whether the checkpoint holds the trained decoders (otherwise their sizes are the defaults).

    Raises:
        InputError: Not a CLIP with a ResNet or ConvNeXt image encoder, or not CLIP-VIS.
    """
    clip = {key.removeprefix(CLIP_PREFIX): s for key, s in shapes.items() if key.startswith(CLIP_PREFIX)}
    head = {key.removeprefix(HEAD_PREFIX): s for key, s in shapes.items() if key.startswith(HEAD_PREFIX)}
    if not clip:
        raise InputError(
            f"{source}: holds no CLIP weights (no key starts with '{CLIP_PREFIX}'); give them with --clip"
        )
    try:
        backbone = _infer_backbone(clip, source)
        text = _infer_text(clip, backbone, activation, text_heads)
        decoders = (_infer_pixel_decoder(head), _infer_query_decoder(head)) if head else None
    except KeyError as error:
        raise InputError(f"{source}: the entry {error} is missing; the file is not a whole checkpoint") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{source}: an entry has an unexpected shape ({error})") from None
    pixel_decoder, query_decoder = decoders or (PixelDecoderConfig(), QueryDecoderConfig())
    return ClipVisConfig(backbone, text, pixel_decoder, query_decoder), bool(head)


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the different values of the number that a pattern captures."""
    return len({m[1] for key in shapes if (m := re.match(pattern, key))})


def _infer_backbone(clip: Shapes, source: str) -> ResNetConfig | ConvNextConfig:
    if "visual.trunk.stem.0.weight" in clip:
        stages = [f"visual.trunk.stages.{stage}" for stage in range(4)]
        dims = tuple(clip[f"{stage}.blocks.0.conv_dw.weight"][0] for stage in stages)
        depths = tuple(_count(clip, re.escape(stage) + r"\.blocks\.(\d+)\.") for stage in stages)
        mlp = "visual.head.mlp.fc1.weight" in clip
        config = ConvNextConfig(
            depths=depths,  # type: ignore[arg-type]
            dims=dims,  # type: ignore[arg-type]
            embed_dim=clip["visual.head.mlp.fc2.weight" if mlp else "visual.head.proj.weight"][0],
            projection="mlp" if mlp else "linear",
        )
        # The norms' epsilon is in no key; among the published models only the largest has another one.
        xxlarge = BACKBONES["convnext_xxlarge"]
        return xxlarge if dims == xxlarge.channels else config
    if "visual.conv1.weight" in clip and "visual.layer1.0.conv1.weight" in clip:
        embed_dim, channels = clip["visual.attnpool.c_proj.weight"]
        depths = tuple(_count(clip, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
        return ResNetConfig(
            depths=depths,  # type: ignore[arg-type]
            width=channels // 32,
            embed_dim=embed_dim,
            pool_grid=math.isqrt(clip["visual.attnpool.positional_embedding"][0] - 1),
        )
    raise InputError(
        f"{source}: the image encoder is neither a CLIP ResNet nor a CLIP ConvNeXt "
        f"(supported: {', '.join(BACKBONES)}); a ViT has no feature pyramid for CLIP-VIS"
    )


def _infer_text(
    clip: Shapes,
    backbone: ResNetConfig | ConvNextConfig,
    activation: Activation | None,
    text_heads: int | None,
) -> TextConfig:
    width, embed_dim = clip["text_projection"]
    return TextConfig(
        width=width,
        num_heads=text_heads or max(1, width // 64),
        num_layers=_count(clip, r"transformer\.resblocks\.(\d+)\."),
        context_length=clip["positional_embedding"][0],
        vocab_size=clip["token_embedding.weight"][0],
        embed_dim=embed_dim,
        activation=activation or ("quick_gelu" if isinstance(backbone, ResNetConfig) else "gelu"),
    )


def _infer_pixel_decoder(head: Shapes) -> PixelDecoderConfig:
    layer = "pixel_decoder.transformer.encoder.layers"
    config = PixelDecoderConfig(
        dim=head["pixel_decoder.input_proj.0.0.weight"][0],
        mask_dim=head["pixel_decoder.mask_features.weight"][0],
        num_layers=_count(head, re.escape(layer) + r"\.(\d+)\."),
        ffn_dim=head[f"{layer}.0.linear1.weight"][0],
    )
    samples = head[f"{layer}.0.self_attn.attention_weights.weight"][0]
    return dataclasses.replace(config, num_points=samples // (NUM_LEVELS * config.num_heads))


def _infer_query_decoder(head: Shapes) -> QueryDecoderConfig:
    queries, dim = head["predictor.query_feat.weight"]
    return QueryDecoderConfig(
        num_queries=queries,
        num_layers=_count(head, r"predictor\.transformer_ffn_layers\.(\d+)\."),
        dim=dim,
        mask_dim=head["predictor.mask_embed.layers.2.weight"][0],
        ffn_dim=head["predictor.transformer_ffn_layers.0.linear1.weight"][0],
    )


# --- values ----------------------------------------------------------------------------------------------------------


def from_state_dict(
    state_dict: StateDict,
    *,
    source: str,
    activation: Activation | None = None,
    text_heads: int | None = None,
    seed: int = 0,
) -> tuple[ClipVisConfig, Variables, Variables]:
    """Convert a whole state dict.

    Args:
        state_dict: Arrays under the authors' names (``backbone.clip_model.*``, ``sem_seg_head.*``).
        source: What to call the checkpoint in errors.
        activation: See ``infer_config``.
        text_heads: See ``infer_config``.
        seed: For the decoders' random values, if the state dict holds CLIP alone.

    Returns:
        Sizes, frozen CLIP variables and trained parameters, float32 numpy arrays.

    Raises:
        InputError: Keys that nothing uses, leaves that nothing fills, or wrong shapes; all are listed at once.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    config, has_decoders = infer_config(shapes, source=source, activation=activation, text_heads=text_heads)
    model = ClipVis(config)
    abstract_clip, abstract_params = jax.eval_shape(model.init, jax.random.key(0))
    used: set[str] = set()
    problems: list[str] = []
    clip_vars = _fill(abstract_clip, state_dict, config, used, problems)
    if has_decoders:
        params = _fill(abstract_params, state_dict, config, used, problems)
    else:
        params = jax.tree.map(np.asarray, model.init(jax.random.key(seed))[1])
    ignored = re.compile("|".join(IGNORED))
    problems += [f"{key} is not used" for key in state_dict if key not in used and not ignored.fullmatch(key)]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise InputError(f"{source}: {len(problems)} entries do not fit the model: {shown}")
    return config, clip_vars, params


def _fill(
    abstract: Variables, state_dict: StateDict, config: ClipVisConfig, used: set[str], problems: list[str]
) -> Variables:
    """Fill a tree from a state dict; note what was used and what does not fit."""

    def fill(path: str, leaf: jax.ShapeDtypeStruct) -> Float[np.ndarray, "..."]:
        entry = torch_entry(path, leaf.shape, config)
        used.add(entry.key)
        if entry.key not in state_dict:
            problems.append(f"{entry.key} is missing")
            return np.zeros(leaf.shape, np.float32)
        array = state_dict[entry.key]
        if entry.part is not None and array.shape[0] % 3 == 0:
            array = np.split(array, 3)[entry.part]
        expected = entry.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        if array.shape != expected:
            problems.append(f"{entry.key} has shape {state_dict[entry.key].shape}, not {expected}")
            return np.zeros(leaf.shape, np.float32)
        if not np.isfinite(array).all():
            problems.append(f"{entry.key} has values that are not finite")
        return np.ascontiguousarray(entry.from_torch(np.asarray(array, np.float32)))

    filled = [fill(path, leaf) for path, leaf in leaf_paths(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), filled)
