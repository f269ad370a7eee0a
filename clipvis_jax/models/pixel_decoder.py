"""Pixel decoder: multi-scale deformable encoder over res5, res4 and res3, and one FPN step with res2.

Source: Mask2Former (arXiv 2112.01527), section 3.2.1.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clipvis_jax.errors import InputError
from clipvis_jax.models import ops
from clipvis_jax.models.deformable_attention import DeformableAttention, LevelShapes
from clipvis_jax.models.layers import NUM_GROUPS, Conv, GroupNorm32, LayerNorm, Mlp
from clipvis_jax.models.sizes import check_sizes
from clipvis_jax.models.structs import ClipFeatures, PixelFeatures

NUM_LEVELS = 3
"""res5, res4 and res3."""


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes of the pixel decoder, all of them at least 1.

    ``dim`` is a multiple of 32 (its group norms) and of ``num_heads``.
    """

    dim: int = 256
    mask_dim: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 1024

    def __post_init__(self) -> None:
        check_sizes("pixel_decoder", self)
        if self.dim % NUM_GROUPS or self.dim % self.num_heads:
            raise InputError(
                f"pixel_decoder.dim {self.dim}: give a multiple of {NUM_GROUPS} and of num_heads, {self.num_heads}"
            )


class DeformableEncoderLayer(nn.Module):
    """Post-norm layer: deformable self-attention, then an MLP."""

    config: PixelDecoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], position: Float[Array, "1 n d"], level_shapes: LevelShapes
    ) -> Float[Array, "b n d"]:
        attended = DeformableAttention(
            self.config.num_heads, self.config.num_points, dtype=self.dtype, name="attention"
        )(x + position, x, level_shapes)
        x = LayerNorm(dtype=self.dtype, name="attention_norm")(x + attended)
        y = Mlp((self.config.ffn_dim, self.config.dim), dtype=self.dtype, name="ffn")(x)
        return LayerNorm(dtype=self.dtype, name="ffn_norm")(x + y)


class PixelDecoder(nn.Module):
    """CLIP features -> mask features at stride 4 and memory at strides 32, 16 and 8.

    ``encoder_dtype`` is the type of the deformable encoder's computation. ``remat`` computes its layers once more in
    the backward pass instead of keeping what they computed.
    """

    config: PixelDecoderConfig
    dtype: DTypeLike = jnp.float32
    encoder_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, features: ClipFeatures) -> PixelFeatures:
        config = self.config
        level_embedding = self.param("level_embedding", nn.initializers.normal(1.0), (NUM_LEVELS, config.dim))
        pixels, positions, level_shapes = [], [], []
        for level, feature in enumerate((features.res5, features.res4, features.res3)):
            projected = Conv(
                config.dim,
                1,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                name=f"input{level}_conv",
            )(feature)
            projected = GroupNorm32(dtype=self.dtype, name=f"input{level}_norm")(projected)
            batch, height, width, _ = projected.shape
            position = jnp.asarray(ops.sine_position_encoding(height, width, config.dim)) + level_embedding[level]
            pixels.append(projected.reshape(batch, height * width, config.dim))
            positions.append(position.reshape(1, height * width, config.dim))
            level_shapes.append((height, width))
        x = jnp.concatenate(pixels, axis=1).astype(self.encoder_dtype)
        all_positions = jnp.concatenate(positions, axis=1).astype(self.encoder_dtype)
        encoder_layer = nn.remat(DeformableEncoderLayer, static_argnums=(3,)) if self.remat else DeformableEncoderLayer
        for index in range(config.num_layers):
            x = encoder_layer(config, dtype=self.encoder_dtype, name=f"layer{index}")(
                x, all_positions, tuple(level_shapes)
            )
        x = x.astype(self.dtype)
        splits = (
            level_shapes[0][0] * level_shapes[0][1],
            x.shape[1] - level_shapes[2][0] * level_shapes[2][1],
        )
        coarse, middle, fine = (
            part.reshape(part.shape[0], *shape, config.dim)
            for part, shape in zip(jnp.split(x, splits, axis=1), level_shapes, strict=True)
        )
        lateral = Conv(config.dim, 1, use_bias=False, dtype=self.dtype, name="lateral_conv")(features.res2)
        lateral = GroupNorm32(dtype=self.dtype, name="lateral_norm")(lateral)
        y = lateral + ops.resize_bilinear(fine, lateral.shape[1:3])
        y = Conv(config.dim, 3, use_bias=False, dtype=self.dtype, name="output_conv")(y)
        y = nn.relu(GroupNorm32(dtype=self.dtype, name="output_norm")(y))
        mask_features = Conv(config.mask_dim, 1, dtype=self.dtype, name="mask_features")(y)
        return PixelFeatures(mask_features=mask_features, memory=(coarse, middle, fine))
