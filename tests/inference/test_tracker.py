"""Tracking is a pure function of numpy arrays."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.tracker import FrameQueries, TrackerState, update

NUM_CLASSES = 3


def frame(seed, num_queries=5):
    rng = np.random.default_rng(seed)
    shapes = [(2,), (), (8,), (4,), (NUM_CLASSES + 2,), (3, 4), (), ()]  # two columns beyond the classes
    return FrameQueries(*(rng.random((num_queries, *shape), np.float32) for shape in shapes))


@pytest.fixture
def state():
    first, _ = update(TrackerState.start(5, NUM_CLASSES, 4, AssociationConfig(), ScoreConfig()), frame(0))
    return first


def leaves(state):
    return jax.tree.leaves(dataclasses.asdict(state))


def test_a_state_stays_as_it_is_and_gives_the_same_again(state):
    before = copy.deepcopy(state)
    (second, tracked), (again, tracked_again) = update(state, frame(1)), update(state, frame(1))
    assert second.sums.num_frames == 2
    for ours, theirs in zip(leaves(state) + leaves(second), leaves(before) + leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(tracked, tracked_again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_predictions_come_in_track_order_and_are_summed(state):
    first, second = frame(0), frame(1)
    new, tracked = update(state, second)
    order = [int(np.flatnonzero(second.iou == iou)[0]) for iou in tracked.iou]
    assert sorted(order) == list(range(5))
    assert order != list(range(5))
    np.testing.assert_array_equal(tracked.mask_logits, second.mask_logits[order])
    np.testing.assert_array_equal(tracked.class_probs, second.class_probs[order, :NUM_CLASSES])
    np.testing.assert_allclose(new.mask_area, first.mask_area + second.mask_area[order], rtol=1e-6)
    np.testing.assert_allclose(new.sums.object_sum, first.object_logits + second.object_logits[order], rtol=1e-6)


def test_numbers_that_are_not_finite(state):
    broken = frame(1)
    broken.query_embed[2, 3] = np.nan
    with pytest.raises(InputError, match="frame 1: the network gave numbers that are not finite"):
        update(state, broken)
