"""Tuned forms against their plain references: values, and gradients as JAX derives them from the references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipvis_jax.models.kernels.deformable_sampling import sample_levels, sample_levels_reference
from clipvis_jax.models.kernels.depthwise_convolution import depthwise_convolution, depthwise_convolution_reference
from clipvis_jax.models.kernels.same_convolution import convolve, convolve_reference

SHAPES = ((2, 3), (4, 5))
PIXELS = sum(height * width for height, width in SHAPES)


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


CASES = {
    "deformable_sampling": (
        functools.partial(sample_levels, level_shapes=SHAPES),
        functools.partial(sample_levels_reference, level_shapes=SHAPES),
        # Points lie beyond the maps as well.
        (normal(2, PIXELS, 2, 8), 3 * normal(2, 7, 2, len(SHAPES), 3, 2) + 1, normal(2, 7, 2, len(SHAPES), 3)),
    ),
    "depthwise_convolution": (
        depthwise_convolution,
        depthwise_convolution_reference,
        (normal(2, 5, 6, 4), normal(7, 7, 1, 4), normal(4)),
    ),
    "same_convolution": (
        functools.partial(convolve, precision=None),
        functools.partial(convolve_reference, precision=None),
        (normal(2, 6, 5, 4), normal(3, 3, 4, 8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_its_reference(name):
    kernel, reference, inputs = CASES[name]
    inputs = [jnp.asarray(x) for x in inputs]

    def with_gradients(function):
        output = function(*inputs)
        direction = jnp.sin(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        total = lambda *x: jnp.sum(function(*x) * direction)  # noqa: E731
        return output, jax.grad(total, argnums=tuple(range(len(inputs))))(*inputs)

    (actual, gradients), (expected, expected_gradients) = map(with_gradients, (kernel, reference))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max())
