"""Matching: both solvers against scipy, costs against plain formulas, bad numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from clipvis_jax.models import ops
from clipvis_jax.training.matching import MatchingConfig, match, matching_costs

METHODS = ("device", "host")
SHAPES = [(20, 7), (50, 50), (4, 9), (1, 6), (6, 1), (1, 1), (30, 60), (3, 0)]
"""Numbers of queries and of target slots."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filled", [1.0, 0.5, 0.0])
def test_equals_scipy_on_the_valid_targets(method, shape, filled):
    queries, slots = shape
    rng = np.random.default_rng(queries * 100 + slots)
    costs = rng.normal(size=(2, 3, queries, slots)).astype(np.float32)
    valid = np.broadcast_to(rng.permuted(np.arange(slots) < filled * slots), (2, 3, slots)).copy()
    matches = jax.jit(match, static_argnums=2)(jnp.asarray(costs), jnp.asarray(valid), method)
    for index in np.ndindex(2, 3):
        targets = np.flatnonzero(valid[index])
        expected = np.full(slots, -1)
        rows, columns = linear_sum_assignment(costs[index][:, targets])
        expected[targets[columns]] = rows
        np.testing.assert_array_equal(matches.matched[index], expected >= 0)
        np.testing.assert_array_equal(matches.query[index], np.maximum(expected, 0))


@pytest.mark.parametrize("method", METHODS)
def test_equal_costs_give_different_queries(method):
    matches = match(jnp.zeros((1, 8, 5)), jnp.ones((1, 5), bool), method)
    assert len(set(matches.query[0].tolist())) == 5


@pytest.mark.parametrize("method", METHODS)
def test_queries_far_apart_in_cost_are_kept_apart(method):
    costs = jnp.asarray([[1e4, 1e4, 0.5], [1e4, 0.25, 1e4], [0.125, 1e4, 1e4]])
    assert match(costs[None], jnp.ones((1, 3), bool), method).query[0].tolist() == [2, 1, 0]


def random_image(rng, queries=6, targets=4, points=50):
    return (
        jnp.asarray(rng.normal(size=(queries, 2)), jnp.float32),
        jnp.asarray(3 * rng.normal(size=(queries, points)), jnp.float32),
        jnp.asarray(rng.random((targets, points)), jnp.float32),
    )


def test_costs_equal_plain_formulas():
    torch = pytest.importorskip("torch")
    object_logits, mask_logits, target_masks = random_image(np.random.default_rng(0))
    absent = jnp.asarray([False, True, False, False])
    costs = matching_costs(object_logits, mask_logits, target_masks, absent, MatchingConfig())
    logits, masks = torch.tensor(np.asarray(mask_logits)), torch.tensor(np.asarray(target_masks))
    probs = torch.tensor(np.asarray(object_logits)).softmax(-1)
    for query in range(6):
        for target in range(4):
            bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[query], masks[target])
            p = logits[query].sigmoid()
            dice = 1 - (2 * (p * masks[target]).sum() + 1) / (p.sum() + masks[target].sum() + 1)
            expected = -2 * probs[query, int(absent[target])] + 5 * bce + 5 * dice
            np.testing.assert_allclose(costs[query, target], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_without_numbers_stays_without_a_target(bad):
    object_logits, mask_logits, target_masks = random_image(np.random.default_rng(1))
    costs = matching_costs(
        object_logits, mask_logits.at[2].set(bad), target_masks, jnp.zeros(4, bool), MatchingConfig()
    )
    assert np.isfinite(costs).all()
    for method in METHODS:
        assert 2 not in match(costs[None], jnp.ones((1, 4), bool), method).query[0]


def test_point_sample_equals_grid_sample():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    image = rng.normal(size=(7, 16, 3)).astype(np.float32)
    points = rng.uniform(-0.2, 1.2, (200, 2)).astype(np.float32)
    grid = torch.tensor(2 * points - 1)[None, None]
    batch = torch.tensor(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.grid_sample(batch, grid, align_corners=False)[0, :, 0].T
    np.testing.assert_allclose(ops.point_sample(jnp.asarray(image), jnp.asarray(points)), expected, atol=2e-5)
    mask = image[..., 0] > 0
    sampled = ops.point_sample_packed(jnp.asarray(np.packbits(mask, axis=-1)), jnp.asarray(points))
    expected = ops.point_sample(jnp.asarray(mask[..., None], jnp.float32), jnp.asarray(points))[:, 0]
    np.testing.assert_allclose(sampled, expected, atol=1e-6)


def test_a_negative_weight_is_named():
    with pytest.raises(ValueError, match=r"dice_weight -1.0: give 0 or more"):
        MatchingConfig(dice_weight=-1.0)
