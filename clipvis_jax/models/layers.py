"""Layers that several models share, with the settings of the authors' code."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clipvis_jax.models.kernels.same_convolution import convolve

# The two-pass variance: the faster E[x^2] - E[x]^2 loses digits where the mean is large against the spread.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
NUM_GROUPS = 32
GroupNorm32 = partial(nn.GroupNorm, num_groups=NUM_GROUPS, epsilon=1e-5, use_fast_variance=False)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks of a stage whose numbers follow ``prefix`` in the names of a checkpoint's entries."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)


def Conv(features: int, size: int, *, dtype: DTypeLike, **settings: Any) -> nn.Conv:  # noqa: N802, a module
    """Make a convolution of odd size and stride 1 that keeps height and width, with a fast backward pass on CPUs."""
    return nn.Conv(features, (size, size), padding=size // 2, dtype=dtype, conv_general_dilated=convolve, **settings)


class Mlp(nn.Module):
    """Linear layers with ReLU between them; the last of ``features`` is the output's size."""

    features: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d_out"]:
        for index, features in enumerate(self.features):
            x = nn.Dense(features, dtype=self.dtype, name=f"layer{index}")(x if index == 0 else nn.relu(x))
        return x


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with projections; the softmax is computed in float32.

    ``mask`` is True where a query (second to last axis) may attend a key (last axis).
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b m d"],
        keys: Float[Array, "b n d"],
        values: Float[Array, "b n d"],
        mask: Bool[Array, "#b m n"] | None = None,
    ) -> Float[Array, "b m d"]:
        dim = queries.shape[-1]

        def project(x: Float[Array, "b k d"], name: str) -> Float[Array, "b k heads head_dim"]:
            dense = nn.Dense(dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
            return dense(x).reshape(*x.shape[:2], self.num_heads, -1)

        attended = jax.nn.dot_product_attention(
            project(queries, "query"),
            project(keys, "key"),
            project(values, "value"),
            mask=None if mask is None else mask[:, None],
        )
        return nn.Dense(dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out")(
            attended.reshape(queries.shape)
        )
