"""Association of any model's embeddings, in any mode; parity with the authors is in test_golden_results."""

import doctest

import numpy as np
import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.inference import association
from clipvis_jax.inference.association import MODES, AssociationConfig, associate


def test_examples_of_the_module(monkeypatch):
    """Another model's embeddings in three lines, and a mode of one's own in two statements."""
    monkeypatch.setattr(association, "MODES", dict(MODES))
    failed, tried = doctest.testmod(association)
    assert failed == 0
    assert tried >= 6


@pytest.mark.parametrize("mode", MODES)
def test_tracks_are_followed_through_shuffled_queries(mode):
    rng = np.random.default_rng(0)
    objects = rng.standard_normal((7, 16))
    history, places = (), []
    for _ in range(12):
        shuffle = rng.permutation(7)
        order, history = associate(objects[shuffle], history, AssociationConfig(mode))
        places.append(shuffle[order])
    assert len({tuple(place) for place in places}) == 1
    assert len(history) == 9


def test_a_mode_of_ones_own_decides(monkeypatch):
    monkeypatch.setitem(MODES, "reversed", lambda embeds, history, config: np.arange(len(embeds))[::-1])
    _, history = associate(np.eye(3))
    order, _ = associate(np.eye(3), history, AssociationConfig("reversed"))
    assert order.tolist() == [2, 1, 0]


def test_an_unknown_mode_names_those_there_are():
    with pytest.raises(InputError, match=r"association.mode 'best': must be one of top_k, all, previous"):
        AssociationConfig("best")


def test_another_number_of_queries_shifts_no_ids_silently():
    _, history = associate(np.eye(4))
    for embeddings in (np.eye(4)[[3, 1]], np.eye(5)[:, :4], np.eye(4, 3)):
        with pytest.raises(
            InputError, match=r"embeddings: .* but 4 of length 4 in the frames before; .* filled up with"
        ):
            associate(embeddings, history)
    order, history = associate(np.eye(4)[[3, 1]][[0, 1, 1, 1]] * [[1], [1], [0], [0]], history)
    assert order[[3, 1]].tolist() == [0, 1]  # and the others are given the rows of zeros
    assert sorted(order) == [0, 1, 2, 3]
