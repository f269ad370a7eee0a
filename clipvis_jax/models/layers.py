"""Layers that several models share, with the settings of the authors' code."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

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
    return nn.Conv(features, (size, size), padding=size // 2, dtype=dtype, conv_general_dilated=_convolve, **settings)


_ROWS = 16
"""Rows of a map that the kernel's gradient sees at a time."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], *_: Any, **settings: Any
) -> Float[Array, "b h w c_out"]:
    """Convolve as ``Conv`` asks flax to; strides, padding and dilation are what they always are there."""
    return _same_convolution(x, kernel, settings["precision"])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same_convolution(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], precision: Any
) -> Float[Array, "b h w c_out"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, precision=precision)


def _same_convolution_forward(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], precision: Any
) -> tuple[Float[Array, "b h w c_out"], tuple[Array, Array]]:
    return _same_convolution(x, kernel, precision), (x, kernel)


def _same_convolution_backward(
    precision: Any, residuals: tuple[Array, Array], gradient: Float[Array, "b h w c_out"]
) -> tuple[Array, Array]:
    """Return the gradients of the map and of the kernel.

    The kernel's is a convolution with a kernel as large as the map, which XLA does badly on CPUs: there it takes four
    times as long as the matrix products of ``_kernel_gradient``.
    """
    x, kernel = residuals
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", precision=precision)
    (d_x,) = jax.vjp(lambda x: convolve(x, kernel, dimension_numbers=_LAYOUT), x)[1](gradient)

    def by_convolution(x: Array, gradient: Array) -> Array:
        (d_kernel,) = jax.vjp(lambda kernel: convolve(x, kernel, dimension_numbers=_LAYOUT), kernel)[1](gradient)
        return d_kernel.astype(jnp.float32)

    by_products = partial(_kernel_gradient, size=kernel.shape[0], precision=precision)
    d_kernel = jax.lax.platform_dependent(x, gradient, cpu=by_products, default=by_convolution)
    return d_x, d_kernel.astype(kernel.dtype)


def _kernel_gradient(
    x: Float[Array, "b h w c_in"], gradient: Float[Array, "b h w c_out"], *, size: int, precision: Any
) -> Float[Array, "k k c_in c_out"]:
    """Multiply every patch of the map with the gradient at its centre, some rows at a time."""
    height, width = x.shape[1:3]
    margin = size // 2
    rows = math.gcd(height, _ROWS)
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))

    def add_rows(total: Float[Array, "k2 c_out"], start: Int[Array, ""]) -> tuple[Float[Array, "k2 c_out"], None]:
        part = jax.lax.dynamic_slice_in_dim(padded, start, rows + 2 * margin, axis=1)
        shifts = [part[:, i : i + rows, j : j + width] for i in range(size) for j in range(size)]
        patches = jnp.concatenate(shifts, axis=-1)
        centres = jax.lax.dynamic_slice_in_dim(gradient, start, rows, axis=1)
        product = jnp.einsum("bhwk,bhwd->kd", patches, centres, precision=precision, preferred_element_type=jnp.float32)
        return total + product, None

    shape = (size, size, x.shape[3], gradient.shape[3])
    zeros = jnp.zeros((math.prod(shape[:3]), shape[3]))
    total, _ = jax.lax.scan(add_rows, zeros, jnp.arange(0, height, rows))
    return total.reshape(shape)


_same_convolution.defvjp(_same_convolution_forward, _same_convolution_backward)


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
