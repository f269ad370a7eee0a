"""Scores over other frames than all: those in which a track is visible, and the newest."""

import numpy as np
import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.inference.scores import ScoreConfig, ScoreSums

NUM_TRACKS, NUM_CLASSES = 4, 3


def frames(count, *, visible, seed=0):
    """Make up what the network says of frames: class probabilities, mask IoU and objectness of every track."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        probs = rng.dirichlet(np.ones(NUM_CLASSES), NUM_TRACKS).astype(np.float32)
        logit = rng.uniform(1, 3, NUM_TRACKS) * (1 if visible else -1)
        yield probs, rng.random(NUM_TRACKS).astype(np.float32), np.stack([logit, -logit], axis=1).astype(np.float32)


def scores(config, *parts):
    sums = ScoreSums.zeros(NUM_TRACKS, NUM_CLASSES, config)
    for part in parts:
        for frame in part:
            sums = sums.add(*frame)
    return sums.scores()


def test_an_object_that_comes_late_keeps_its_score():
    late = [list(frames(60, visible=False)), list(frames(12, visible=True, seed=1))]
    expected = scores(ScoreConfig(), late[1])
    np.testing.assert_array_equal(scores(ScoreConfig(over="visible"), *late), expected)
    assert np.all(scores(ScoreConfig(), *late) < 0.3 * expected)  # the method's
    np.testing.assert_array_equal(scores(ScoreConfig(over="visible"), late[0]), 0)


def test_every_track_has_its_own_visible_frames():
    seen, hidden = next(frames(1, visible=True)), next(frames(1, visible=False, seed=1))
    logits = np.where(np.arange(NUM_TRACKS)[:, None] < 2, seen[2], hidden[2])
    both = scores(ScoreConfig(over="visible"), [seen, (hidden[0], hidden[1], logits)])
    alone = scores(ScoreConfig(over="visible"), [seen])
    np.testing.assert_array_equal(both[2:], alone[2:])
    assert np.all(both[:2] != alone[:2])


@pytest.mark.parametrize("over", ["all", "visible"])
def test_a_window_forgets_what_is_older(over):
    videos = list(frames(20, visible=True)), list(frames(10, visible=True, seed=1))
    windowed = scores(ScoreConfig(over=over, window=10), *videos)
    np.testing.assert_allclose(windowed, scores(ScoreConfig(over=over), videos[1]), rtol=1e-12)
    unfilled = scores(ScoreConfig(over=over, window=100), *videos)
    np.testing.assert_allclose(unfilled, scores(ScoreConfig(over=over), *videos), rtol=1e-12)


def test_a_window_has_a_frame():
    with pytest.raises(InputError, match=r"scores.window 0: must be 1 frame or more"):
        ScoreConfig(window=0)
