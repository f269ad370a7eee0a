"""Tuned forms against their plain references: values, and gradients as JAX derives them from the references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipvis_jax.models.kernels.deformable_sampling import sample_levels, sample_levels_reference
from clipvis_jax.models.kernels.depthwise_convolution import depthwise_convolution, depthwise_convolution_reference
from clipvis_jax.models.kernels.same_convolution import convolve, convolve_reference

SHAPES = ((1, 1), (2, 3), (5, 4))
PIXELS = sum(height * width for height, width in SHAPES)


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def points(*shape):
    """Draw points in, around and far beyond the maps, some of them at pixels and at the edges of maps."""
    drawn = 3 * normal(*shape) + 1
    drawn[:, 1:3] = np.round(drawn[:, 1:3])
    drawn[:, 3] = np.where(drawn[:, 3] > 1, 1e4, -1)
    return drawn


def sampling(form):
    return (
        functools.partial(sample_levels, level_shapes=SHAPES, form=form),
        functools.partial(sample_levels_reference, level_shapes=SHAPES),
        (normal(2, PIXELS, 2, 8), points(2, 7, 2, len(SHAPES), 3, 2), normal(2, 7, 2, len(SHAPES), 3)),
    )


CASES = {
    "deformable_sampling": sampling(None),
    "deformable_sampling on GPUs": sampling("gpu"),
    "deformable_sampling on TPUs": sampling("tpu"),
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


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, *inputs):
    """Return a function's output, and what pulls back a gradient that bfloat16 holds exactly."""
    output, backward = jax.vjp(function, *inputs)
    direction = jnp.arange(output.size).reshape(output.shape) % 7 - 3
    return output, *backward(direction.astype(output.dtype))


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_its_reference(name):
    kernel, reference, inputs = CASES[name]
    (actual, *gradients), (expected, *expected_gradients) = (with_gradients(f, *inputs) for f in (kernel, reference))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("form", ["gpu", "tpu"])
def test_accelerators_round_once_to_bfloat16(form):
    function, reference, (values, *others) = sampling(form)
    inputs = [jnp.asarray(values, jnp.bfloat16), *map(jnp.asarray, others)]
    ours = with_gradients(function, *inputs)
    assert [x.dtype for x in ours] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    expected = with_gradients(reference, inputs[0].astype(jnp.float32), *inputs[1:])
    for actual, wanted, step in zip(ours, expected, (2**-8, 2**-8, 1e-5, 1e-5), strict=True):
        np.testing.assert_allclose(
            actual.astype(jnp.float32), wanted, rtol=step, atol=1e-5 * float(jnp.abs(wanted).max())
        )


@pytest.mark.parametrize(("platform", "expected"), [("cpu", 2), ("cuda", 0), ("tpu", 2)])
def test_the_form_is_that_of_the_platform_that_is_compiled_for(platform, expected):
    """A program for GPUs has no loops; for TPUs, it has one over heads and one over samples, and no CPU form."""
    function, _, inputs = sampling(None)
    traced = jax.jit(jax.grad(lambda *x: function(*x).sum())).trace(*map(jnp.asarray, inputs))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while") == expected
