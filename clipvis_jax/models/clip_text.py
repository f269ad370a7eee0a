"""CLIP's text encoder: a causal pre-norm transformer whose end-of-text feature is projected."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clipvis_jax.models.layers import LayerNorm, MultiHeadAttention
from clipvis_jax.models.sizes import check_sizes

Activation = Literal["quick_gelu", "gelu"]
"""``quick_gelu`` is ``x * sigmoid(1.702 x)``; ``gelu`` is the exact one."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a CLIP text encoder.

    ``activation`` is not visible in a checkpoint: OpenAI's weights (the ResNets) were trained with QuickGELU,
    the ConvNeXt models with exact GELU. The wrong one gives plausible, bad classes.
    """

    width: int = 512
    num_heads: int = 8
    num_layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    embed_dim: int = 1024
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        check_sizes("text", self)

    @property
    def activation_function(self) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
        """The activation between the two linear layers of each block."""
        match self.activation:
            case "quick_gelu":
                return lambda x: x * jax.nn.sigmoid(1.702 * x)
            case "gelu":
                return lambda x: jax.nn.gelu(x, approximate=False)


class TextBlock(nn.Module):
    """Pre-norm transformer block with causal self-attention."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), dtype=bool))
        y = LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        x = x + MultiHeadAttention(self.config.num_heads, dtype=self.dtype, name="attention")(y, y, y, causal)
        y = LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        y = self.config.activation_function(nn.Dense(4 * self.config.width, dtype=self.dtype, name="expand")(y))
        return x + nn.Dense(self.config.width, dtype=self.dtype, name="contract")(y)


class TextEncoder(nn.Module):
    """Token ids -> one embedding per text, not normalised.

    The feature is read at the end-of-text token, which is the largest id. What follows it is never seen, so texts
    may be cut to the longest of the batch.
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
        config = self.config
        position = self.param("position_embedding", nn.initializers.normal(0.01), (config.context_length, config.width))
        x = nn.Embed(config.vocab_size, config.width, dtype=self.dtype, name="token_embedding")(tokens)
        x = x + position[: tokens.shape[1]].astype(self.dtype)
        for index in range(config.num_layers):
            x = TextBlock(config, dtype=self.dtype, name=f"block{index}")(x)
        end = jnp.argmax(tokens, axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = LayerNorm(dtype=self.dtype, name="final_norm")(x)
        return nn.Dense(config.embed_dim, use_bias=False, dtype=self.dtype, name="projection")(x)
