"""Which entry of a PyTorch state dict every leaf of our variables is, for reading and writing checkpoints.

The table goes from our module paths to the authors' names: ``backbone.clip_model.*`` for the frozen CLIP, under
open_clip's names, and ``sem_seg_head.*`` for the decoders.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clipvis_jax.models.clipvis import ClipVisConfig, Variables

CLIP_PREFIX = "backbone.clip_model."
HEAD_PREFIX = "sem_seg_head."

IGNORED = {
    r".*\.num_batches_tracked": "a counter of BatchNorm's training",
    r"criterion\.empty_object_weight": "a constant of the training loss",
    re.escape(CLIP_PREFIX) + r"(visual\.)?attn_mask": "a constant buffer",
    re.escape(CLIP_PREFIX) + r"(input_resolution|context_length|vocab_size)": "sizes, visible in the shapes",
    r"(sem_seg_head\.)?(pixel_mean|pixel_std)": "constants",
}
"""Keys that are not converted, and why."""


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

# Module paths, ours on the left. Numbers are captured; `{1-1}` writes the first number less one. Those of the image
# encoder are what its configuration says.
_MODULES: tuple[tuple[str, str], ...] = (
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
        return _attention_entry(prefix + _module_key(parent, config), name, leaf)
    key = prefix + _module_key(module, config)
    if leaf == "layer_scale":
        return TorchEntry(key + ".gamma", np.asarray, np.asarray)
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


def _module_key(module: str, config: ClipVisConfig) -> str:
    for pattern, template in (*config.backbone.torch_modules.items(), *_MODULES):
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


def leaf_paths(tree: Variables) -> dict[str, Any]:
    """Flatten a tree of variables to ``path -> leaf``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
