"""The written-out backward pass of deformable attention's sampling against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipvis_jax.models.kernels.deformable_sampling import sample_levels

SHAPES = ((3, 5), (6, 10), (12, 20))
NUM_PIXELS = sum(height * width for height, width in SHAPES)


def torch_sample_levels(torch, values, points_px, weights):
    """Sample with ``grid_sample``, level by level."""
    batch, _, heads, head_dim = values.shape
    total = 0
    for level, (part, (height, width)) in enumerate(
        zip(values.split([h * w for h, w in SHAPES], dim=1), SHAPES, strict=True)
    ):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        grid = (points_px[:, :, :, level] + 0.5) * 2 / torch.tensor([width, height]) - 1
        grid = grid.transpose(1, 2).flatten(0, 1)
        sampled = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + (sampled * weight[:, None]).sum(-1).reshape(batch, heads, head_dim, -1).permute(0, 3, 1, 2)
    return total


@pytest.mark.parametrize("head_dim", [8, 32, 5])
def test_sampling_and_its_gradients_equal_grid_sample(head_dim):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    batch, queries, heads, points = 2, 11, 3, 4
    values = rng.normal(size=(batch, NUM_PIXELS, heads, head_dim)).astype(np.float32)
    # Some points lie outside their level, or on its edge.
    points_px = rng.uniform(-3, 14, (batch, queries, heads, len(SHAPES), points, 2)).astype(np.float32)
    weights = rng.random((batch, queries, heads, len(SHAPES), points)).astype(np.float32)
    gradient = rng.normal(size=(batch, queries, heads, head_dim)).astype(np.float32)

    inputs = [torch.tensor(x, requires_grad=True) for x in (values, points_px, weights)]
    expected = torch_sample_levels(torch, *inputs)
    expected.backward(torch.tensor(gradient))

    sampled, backward = jax.vjp(
        lambda *arrays: sample_levels(*arrays, SHAPES), *map(jnp.asarray, (values, points_px, weights))
    )
    np.testing.assert_allclose(sampled, expected.detach(), atol=1e-5)
    for ours, theirs in zip(backward(jnp.asarray(gradient)), inputs, strict=True):
        np.testing.assert_allclose(ours, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max()))


def test_gradients_keep_the_type_of_the_values():
    values = jnp.ones((1, NUM_PIXELS, 2, 8), jnp.bfloat16)
    points_px, weights = jnp.ones((1, 4, 2, len(SHAPES), 2, 2)), jnp.ones((1, 4, 2, len(SHAPES), 2))
    gradients = jax.grad(lambda *x: sample_levels(*x, SHAPES).astype(jnp.float32).sum(), argnums=(0, 1, 2))(
        values, points_px, weights
    )
    assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
