"""Convolution of odd size and stride 1 that keeps height and width, with a fast backward pass on CPUs."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_ROWS = 16
"""Rows of a map that the kernel's gradient sees at a time."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], *_: Any, **settings: Any
) -> Float[Array, "b h w c_out"]:
    """Convolve as ``layers.Conv`` asks flax to; strides, padding and dilation are what they always are there."""
    return _same_convolution(x, kernel, settings["precision"])


def convolve_reference(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], precision: Any
) -> Float[Array, "b h w c_out"]:
    """Compute ``convolve`` plainly; the tuned form differs in its backward pass, on CPUs, alone."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same_convolution(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "k k c_in c_out"], precision: Any
) -> Float[Array, "b h w c_out"]:
    return convolve_reference(x, kernel, precision)


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
    (d_x,) = jax.vjp(lambda x: convolve_reference(x, kernel, precision), x)[1](gradient)

    def by_convolution(x: Array, gradient: Array) -> Array:
        (d_kernel,) = jax.vjp(lambda kernel: convolve_reference(x, kernel, precision), kernel)[1](gradient)
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
