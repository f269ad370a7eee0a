"""Query decoder: learned queries read the memory through masks that they predict themselves.

Source: Mask2Former (arXiv 2112.01527), section 3.2; objectness and mask-IoU heads: CLIP-VIS (arXiv 2403.12455).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clipvis_jax.errors import InputError
from clipvis_jax.models import ops
from clipvis_jax.models.layers import LayerNorm, Mlp, MultiHeadAttention
from clipvis_jax.models.sizes import check_sizes
from clipvis_jax.models.structs import PixelFeatures, QueryPrediction

IouActivation = Literal["sigmoid", "relu"]
"""Last activation of the mask-IoU head."""


@dataclasses.dataclass(frozen=True)
class QueryDecoderConfig:
    """Sizes of the query decoder, all of them at least 1; ``dim`` is a multiple of ``num_heads``.

    ``num_layers`` is 6 in the authors' LVIS models and 9 in the others; their ``DEC_LAYERS`` counts one more.
    ``iou_activation`` is ReLU in what the authors published before 2024-06-05; weights do not show it.
    """

    num_queries: int = 100
    num_layers: int = 9
    dim: int = 256
    mask_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    iou_activation: IouActivation = "sigmoid"

    def __post_init__(self) -> None:
        check_sizes("query_decoder", self)
        if self.dim % self.num_heads:
            raise InputError(f"query_decoder.dim {self.dim}: give a multiple of num_heads, {self.num_heads}")


def mask_logits_from(
    mask_embed: Float[Array, "b q d"], mask_features: Float[Array, "b h w d"]
) -> Float[Array, "b q h w"]:
    """Multiply mask embeddings with mask features of any size."""
    # In float32 in any case: a sign decides here, and attention masks hang on it.
    return jnp.einsum(
        "bqd,bhwd->bqhw",
        mask_embed,
        mask_features,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


class QueryDecoderLayer(nn.Module):
    """Post-norm layer: masked cross-attention, self-attention, MLP."""

    config: QueryDecoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b q d"],
        query_position: Float[Array, "q d"],
        memory: Float[Array, "b n d"],
        memory_position: Float[Array, "n d"],
        keep: Bool[Array, "b q n"],
    ) -> Float[Array, "b q d"]:
        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(self.config.num_heads, dtype=self.dtype, name=name)

        attended = attention("cross_attention")(queries + query_position, memory + memory_position, memory, keep)
        queries = LayerNorm(dtype=self.dtype, name="cross_attention_norm")(queries + attended)
        positioned = queries + query_position
        attended = attention("self_attention")(positioned, positioned, queries)
        queries = LayerNorm(dtype=self.dtype, name="self_attention_norm")(queries + attended)
        y = Mlp((self.config.ffn_dim, self.config.dim), dtype=self.dtype, name="ffn")(queries)
        return LayerNorm(dtype=self.dtype, name="ffn_norm")(queries + y)


class QueryDecoder(nn.Module):
    """Pixel features -> one prediction before the first layer and one after each layer, the last one the result.

    ``remat`` computes layers once more in the backward pass instead of keeping what they computed.
    """

    config: QueryDecoderConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        table_shape = (config.num_queries, config.dim)
        self.query_feature = self.param("query_feature", nn.initializers.normal(1.0), table_shape)
        self.query_position = self.param("query_position", nn.initializers.normal(1.0), table_shape)
        self.level_embedding = self.param("level_embedding", nn.initializers.normal(1.0), (3, config.dim))
        layer_type = nn.remat(QueryDecoderLayer) if self.remat else QueryDecoderLayer
        self.layers = [layer_type(config, dtype=dtype, name=f"layer{index}") for index in range(config.num_layers)]
        self.norm = LayerNorm(dtype=dtype)
        self.object_head = Mlp((config.dim, config.dim, 2), dtype=dtype)
        self.mask_head = Mlp((config.dim, config.dim, config.mask_dim), dtype=dtype)
        self.iou_head = Mlp((config.dim, config.dim, 1), dtype=dtype)

    def predict(self, queries: Float[Array, "b q d"]) -> QueryPrediction:
        """Apply the heads to queries."""
        embed = self.norm(queries)
        activation = jax.nn.relu if self.config.iou_activation == "relu" else jax.nn.sigmoid
        return QueryPrediction(
            object_logits=self.object_head(embed).astype(jnp.float32),
            iou=activation(self.iou_head(embed)[..., 0].astype(jnp.float32)),
            mask_embed=self.mask_head(embed),
            query_embed=embed.astype(jnp.float32),
        )

    def __call__(self, features: PixelFeatures) -> tuple[QueryPrediction, ...]:
        """Return ``num_layers + 1`` predictions, in layer order."""
        batch = features.mask_features.shape[0]
        levels = []
        for level, memory in enumerate(features.memory):
            height, width, dim = memory.shape[1:]
            levels.append(
                (
                    memory.reshape(batch, -1, dim) + self.level_embedding[level].astype(self.dtype),
                    jnp.asarray(ops.sine_position_encoding(height, width, dim), self.dtype).reshape(-1, dim),
                    # Resizing is linear: the mask logits at this level's size are the mask embeddings times the
                    # resized mask features, so no layer but the last needs masks at stride 4.
                    ops.resize_bilinear(features.mask_features, (height, width)),
                )
            )
        position = self.query_position.astype(self.dtype)
        queries = jnp.broadcast_to(self.query_feature.astype(self.dtype), (batch, *self.query_feature.shape))
        predictions = [self.predict(queries)]
        for index, layer in enumerate(self.layers):
            memory, memory_position, mask_features = levels[index % len(levels)]
            logits = mask_logits_from(predictions[-1].mask_embed, mask_features)
            keep = jax.lax.stop_gradient(logits >= 0).reshape(batch, self.config.num_queries, -1)
            # A query whose mask is empty attends everywhere.
            keep = keep | ~jnp.any(keep, axis=-1, keepdims=True)
            self.sow("intermediates", "attention_keep", keep)
            queries = layer(queries, position, memory, memory_position, keep)
            predictions.append(self.predict(queries))
        return tuple(predictions)
