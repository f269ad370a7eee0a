"""Scores over other frames than all: those in which a track is visible, and the newest; embeddings likewise."""

import numpy as np
import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.inference.scores import ScoreConfig, ScoreSums

NUM_TRACKS, NUM_CLASSES, EMBED_DIM = 4, 3, 6


def frames(count, *, visible, seed=0):
    """Make up what the network says of frames, of every track: probabilities, mask IoU, objectness, embedding."""
    rng, embeddings = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    for _ in range(count):
        probs = rng.dirichlet(np.ones(NUM_CLASSES), NUM_TRACKS).astype(np.float32)
        logit = rng.uniform(1, 3, NUM_TRACKS) * (1 if visible else -1)
        iou, logits = rng.random(NUM_TRACKS), np.stack([logit, -logit], axis=1)
        embedding = embeddings.standard_normal((NUM_TRACKS, EMBED_DIM))
        yield probs, *(array.astype(np.float32) for array in (iou, logits, embedding))


def sums(config, *parts):
    total = ScoreSums.zeros(NUM_TRACKS, NUM_CLASSES, EMBED_DIM, config)
    for part in parts:
        for frame in part:
            total = total.add(*frame)
    return total


def scores(config, *parts):
    return sums(config, *parts).scores()


def test_an_object_that_comes_late_keeps_its_score():
    late = [list(frames(60, visible=False)), list(frames(12, visible=True, seed=1))]
    expected = scores(ScoreConfig(), late[1])
    np.testing.assert_array_equal(scores(ScoreConfig(over="visible"), *late), expected)
    assert np.all(scores(ScoreConfig(), *late) < 0.3 * expected)  # the method's
    np.testing.assert_array_equal(scores(ScoreConfig(over="visible"), late[0]), 0)


def test_every_track_has_its_own_visible_frames():
    seen, hidden = next(frames(1, visible=True)), next(frames(1, visible=False, seed=1))
    logits = np.where(np.arange(NUM_TRACKS)[:, None] < 2, seen[2], hidden[2])
    both = scores(ScoreConfig(over="visible"), [seen, (*hidden[:2], logits, hidden[3])])
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
    embeddings = [
        sums(config, video).embeddings()
        for config, video in [(ScoreConfig(window=10), videos[0] + videos[1]), (ScoreConfig(), videos[1])]
    ]
    np.testing.assert_allclose(*embeddings, rtol=1e-5)


def test_an_embedding_is_the_mean_of_its_frames_weighted_as_scores_are():
    seen, hidden = list(frames(3, visible=True)), list(frames(2, visible=False, seed=1))

    def mean(video, weigh):
        directions = [
            frame[3] / np.linalg.norm(frame[3], axis=1, keepdims=True) * weigh(frame[1])[:, None] for frame in video
        ]
        total = np.sum(directions, axis=0)
        return total / np.linalg.norm(total, axis=1, keepdims=True)

    def found(config, *videos):
        return sums(config, *videos).embeddings()

    np.testing.assert_allclose(found(ScoreConfig(), seen, hidden), mean(seen + hidden, np.sqrt), rtol=1e-5)
    np.testing.assert_allclose(found(ScoreConfig(over="visible"), seen, hidden), mean(seen, np.sqrt), rtol=1e-5)
    np.testing.assert_allclose(found(ScoreConfig(use_iou=False), seen), mean(seen, np.ones_like), rtol=1e-5)
    assert not found(ScoreConfig(over="visible"), hidden).any()


def test_a_window_has_a_frame():
    with pytest.raises(InputError, match=r"scores.window 0: must be 1 frame or more"):
        ScoreConfig(window=0)
