"""The published models' sizes, and how to work out a checkpoint's from its names and shapes.

A wrong number of decoder layers would load without a word in the authors' code and give an AP of 0.
"""

import dataclasses
from collections.abc import Mapping

from clipvis_jax.errors import InputError
from clipvis_jax.models.backbones import BACKBONES, KINDS, Backbone
from clipvis_jax.models.clip_text import Activation, TextConfig
from clipvis_jax.models.clipvis import ClipVisConfig
from clipvis_jax.models.layers import count_blocks
from clipvis_jax.models.pixel_decoder import NUM_LEVELS, PixelDecoderConfig
from clipvis_jax.models.query_decoder import IouActivation, QueryDecoderConfig
from clipvis_jax.weights.torch_names import CLIP_PREFIX, HEAD_PREFIX

Shapes = Mapping[str, tuple[int, ...]]

TEXT_TOWERS: dict[str, TextConfig] = {
    "RN50": TextConfig(),
    "RN101": TextConfig(embed_dim=512),
    "RN50x4": TextConfig(width=640, num_heads=10, embed_dim=640),
    "RN50x16": TextConfig(width=768, num_heads=12, embed_dim=768),
    "RN50x64": TextConfig(width=1024, num_heads=16, embed_dim=1024),
    "convnext_base_w": TextConfig(width=640, num_heads=10, embed_dim=640, activation="gelu"),
    "convnext_large_d": TextConfig(width=768, num_heads=12, num_layers=16, embed_dim=768, activation="gelu"),
    "convnext_xxlarge": TextConfig(width=1024, num_heads=16, num_layers=24, embed_dim=1024, activation="gelu"),
}
"""The text encoders that belong to ``BACKBONES``."""


def infer_config(
    shapes: Shapes,
    *,
    source: str,
    activation: Activation | None = None,
    text_heads: int | None = None,
    iou_activation: IouActivation = "sigmoid",
) -> tuple[ClipVisConfig, bool]:
    """Work out a model's sizes from the names and shapes of a checkpoint.

    Args:
        shapes: Shape of every entry, under the authors' names.
        source: What to call the checkpoint in errors.
        activation: Activation of the text encoder, which no key shows; by default QuickGELU for ResNets (OpenAI's
            weights) and exact GELU for ConvNeXts.
        text_heads: Attention heads of the text encoder, which no key shows; by default 64 channels each.
        iou_activation: Last activation of the trained mask-IoU head, which no key shows.

    Returns:
        The sizes, and whether the checkpoint holds the trained decoders (otherwise their sizes are the defaults).

    Raises:
        InputError: Not a CLIP with a ResNet or ConvNeXt image encoder, or not CLIP-VIS.
    """
    clip = {key.removeprefix(CLIP_PREFIX): s for key, s in shapes.items() if key.startswith(CLIP_PREFIX)}
    head = {key.removeprefix(HEAD_PREFIX): s for key, s in shapes.items() if key.startswith(HEAD_PREFIX)}
    if not clip:
        raise InputError(
            f"{source}: holds no CLIP weights (no key starts with '{CLIP_PREFIX}'); "
            "give CLIP in a file of its own, as 'clip'"
        )
    try:
        backbone = _infer_backbone(clip, source)
        text = _infer_text(clip, backbone, activation, text_heads)
        config = ClipVisConfig(backbone, text)
        if head:
            config = _add_decoders(config, head, source, iou_activation)
    except InputError:  # a ValueError too
        raise
    except KeyError as error:
        raise InputError(f"{source}: the entry {error} is missing; the file is not a whole checkpoint") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{source}: an entry has an unexpected shape ({error})") from None
    return config, bool(head)


def _infer_backbone(clip: Shapes, source: str) -> Backbone:
    for kind in KINDS.values():
        if (backbone := kind.from_shapes(clip)) is not None:
            return backbone
    raise InputError(
        f"{source}: the image encoder is neither a CLIP ResNet nor a CLIP ConvNeXt "
        f"(supported: {', '.join(BACKBONES)}); a ViT has no feature pyramid for CLIP-VIS"
    )


def _infer_text(clip: Shapes, backbone: Backbone, activation: Activation | None, text_heads: int | None) -> TextConfig:
    width, embed_dim = clip["text_projection"]
    num_heads = max(1, width // 64) if text_heads is None else text_heads
    if num_heads < 1 or width % num_heads:
        raise InputError(f"text_heads {num_heads}: must divide the text encoder's width, which is {width}")
    return TextConfig(
        width=width,
        num_heads=num_heads,
        num_layers=count_blocks(clip, "transformer.resblocks."),
        context_length=clip["positional_embedding"][0],
        vocab_size=clip["token_embedding.weight"][0],
        embed_dim=embed_dim,
        activation=activation or backbone.text_activation,
    )


def _add_decoders(config: ClipVisConfig, head: Shapes, source: str, iou_activation: IouActivation) -> ClipVisConfig:
    """Put the decoders' sizes into a configuration."""
    try:
        query_decoder = dataclasses.replace(_infer_query_decoder(head), iou_activation=iou_activation)
        return dataclasses.replace(config, pixel_decoder=_infer_pixel_decoder(head), query_decoder=query_decoder)
    except InputError as error:  # of a configuration, which does not know the file
        raise InputError(f"{source}: the decoders have unsupported sizes ({error})") from None


def _infer_pixel_decoder(head: Shapes) -> PixelDecoderConfig:
    layer = "pixel_decoder.transformer.encoder.layers"
    config = PixelDecoderConfig(
        dim=head["pixel_decoder.input_proj.0.0.weight"][0],
        mask_dim=head["pixel_decoder.mask_features.weight"][0],
        num_layers=count_blocks(head, f"{layer}."),
        ffn_dim=head[f"{layer}.0.linear1.weight"][0],
    )
    samples = head[f"{layer}.0.self_attn.attention_weights.weight"][0]
    return dataclasses.replace(config, num_points=samples // (NUM_LEVELS * config.num_heads))


def _infer_query_decoder(head: Shapes) -> QueryDecoderConfig:
    queries, dim = head["predictor.query_feat.weight"]
    return QueryDecoderConfig(
        num_queries=queries,
        num_layers=count_blocks(head, "predictor.transformer_ffn_layers."),
        dim=dim,
        mask_dim=head["predictor.mask_embed.layers.2.weight"][0],
        ffn_dim=head["predictor.transformer_ffn_layers.0.linear1.weight"][0],
    )


def backbone_name(backbone: Backbone) -> str | None:
    """Return open_clip's name of an image encoder, None if it has none."""
    return next((name for name, config in BACKBONES.items() if config == backbone), None)


def describe(config: ClipVisConfig) -> str:
    """Say in one line what a model is."""
    text, decoder = config.text, config.query_decoder
    name = backbone_name(config.backbone) or "CLIP of an unpublished size"
    iou_head = "; mask-IoU head ends in a ReLU" if decoder.iou_activation == "relu" else ""
    return (
        f"{name}; text encoder with {text.num_layers} layers of width "
        f"{text.width} and {text.num_heads} heads, {text.activation}; {config.pixel_decoder.num_layers} pixel decoder "
        f"layers, {decoder.num_layers} query decoder layers, {decoder.num_queries} queries{iou_head}"
    )
