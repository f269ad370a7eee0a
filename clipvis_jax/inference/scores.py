"""Weighted open-vocabulary classification: the scores of tracks, and what survives of their masks.

Plain numpy on the host, on arrays in track order. Source: CLIP-VIS, section III-D.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from clipvis_jax.errors import InputError

PRUNE_RATIO = 0.1
"""A frame's mask is dropped where its own score is below this share of the track's."""


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What weighs the class probabilities; both switches exist for ablations."""

    use_objectness: bool = True
    use_iou: bool = True


def object_probs(object_logits: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """Return the probability of an object."""
    return expit(object_logits[..., 0] - object_logits[..., 1])


class RunningScores:
    """Sums over the frames seen so far, from which a video's scores follow at any time."""

    def __init__(self, num_tracks: int, num_classes: int, config: ScoreConfig) -> None:
        self.config = config
        self.num_frames = 0
        # Sums in float64 so that they stay exact over very long videos.
        self._class_sum = np.zeros((num_tracks, num_classes))
        self._object_sum = np.zeros((num_tracks, 2))

    def add(
        self,
        class_probs: Float[np.ndarray, "q c"],
        iou: Float[np.ndarray, " q"],
        object_logits: Float[np.ndarray, "q 2"],
    ) -> None:
        """Add a frame."""
        self._class_sum += np.sqrt(class_probs * iou[:, None]) if self.config.use_iou else class_probs
        self._object_sum += object_logits
        self.num_frames += 1

    def scores(self) -> Float[np.ndarray, "q c"]:
        """Return the score of every track and class, 0..1."""
        if self.num_frames == 0:
            return np.zeros_like(self._class_sum)
        mean = self._class_sum / self.num_frames
        if not self.config.use_objectness:
            return mean
        return np.sqrt(mean * object_probs(self._object_sum / self.num_frames)[:, None])


def image_scores(
    class_probs: Float[np.ndarray, "q c"],
    iou: Float[np.ndarray, " q"],
    object_logits: Float[np.ndarray, "q 2"],
    config: ScoreConfig,
) -> Float[np.ndarray, "q c"]:
    """Return the image model's score of every query and class, 0..1: the root of probability x IoU x objectness."""
    # Matches the authors' code: one root over all three, unlike the video model, which takes two.
    score = class_probs
    if config.use_iou:
        score = score * iou[:, None]
    if config.use_objectness:
        score = score * object_probs(object_logits)[:, None]
    return np.sqrt(score) if config.use_iou or config.use_objectness else score


def top_pairs(
    scores: Float[np.ndarray, "q c"], count: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the best (track, class) pairs and their scores, best first; a track may appear with several classes."""
    if count < 1:
        raise InputError(f"top_k {count}: must be 1 or more")
    flat = scores.ravel()
    count = min(count, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    tracks, classes = np.divmod(best, scores.shape[1])
    return tracks, classes, flat[best]


@runtime_checkable  # needed by the type checks in tests
class TrackedScores(Protocol):
    """What final scores need of every frame of a video, in track order."""

    def class_probs(self, frame: int) -> Float[np.ndarray, "q c"]:
        """Return a frame's class probabilities."""
        ...

    def scores(self, frame: int) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Return a frame's objectness logits, mask areas and mask probability sums."""
        ...


@dataclasses.dataclass(frozen=True)
class RankedPairs:
    """(track, class) pairs of a video, best first; ``pruned`` marks the frames where a pair's mask is dropped."""

    tracks: Int[np.ndarray, " k"]
    class_indices: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    pruned: Bool[np.ndarray, "t k"]


def rank_pairs(running: RunningScores, frames: TrackedScores, *, top_k: int, min_score: float) -> RankedPairs:
    """Compute the final scores of a video's best pairs; those below ``min_score`` are left out."""
    tracks, class_indices, scores = top_pairs(running.scores(), top_k)
    shape = (running.num_frames, len(tracks))
    object_logits = np.empty((*shape, 2), np.float32)
    class_probs, area, prob_sum = (np.empty(shape, np.float32) for _ in range(3))
    for index in range(running.num_frames):
        class_probs[index] = frames.class_probs(index)[tracks, class_indices]
        frame_logits, frame_area, frame_prob_sum = frames.scores(index)
        object_logits[index] = frame_logits[tracks]
        area[index], prob_sum[index] = frame_area[tracks], frame_prob_sum[tracks]
    pruned = pruned_frames(class_probs, object_logits, scores)
    scores = scores * mask_quality(prob_sum, area, pruned)
    best = by_score(scores, min_score)
    return RankedPairs(tracks[best], class_indices[best], scores[best], pruned[:, best])


def by_score(scores: Float[np.ndarray, " k"], min_score: float) -> Int[np.ndarray, " k2"]:
    """Return the positions of all scores that are high enough, best first."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= min_score]


def pruned_frames(
    class_probs: Float[np.ndarray, "*t k"],
    object_logits: Float[np.ndarray, "*t k 2"],
    scores: Float[np.ndarray, " k"],
) -> Bool[np.ndarray, "*t k"]:
    """Tell in which frames the mask of each (track, class) pair is dropped, because the pair hardly shows there."""
    # Matches the authors' code: the probability goes through a sigmoid once more.
    return np.sqrt(expit(class_probs) * object_probs(object_logits)) < PRUNE_RATIO * scores


def mask_quality(
    mask_prob_sum: Float[np.ndarray, "t k"],
    mask_area: Float[np.ndarray, "t k"],
    pruned: Bool[np.ndarray, "t k"],
) -> Float[np.ndarray, " k"]:
    """Return the mean probability of the mask pixels of each pair over all frames that were not dropped, 0..1."""
    kept = (~pruned).astype(np.float64)
    return np.sum(mask_prob_sum * kept, axis=0) / (np.sum(mask_area * kept, axis=0) + 1e-6)
