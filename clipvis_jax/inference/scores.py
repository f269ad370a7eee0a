"""Weighted open-vocabulary classification: the scores of tracks, and what survives of their masks.

Plain numpy on the host, on arrays in track order. Source: CLIP-VIS, section III-D.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from clipvis_jax.errors import InputError

PRUNE_RATIO = 0.1
"""A frame's mask is dropped where its own score is below this share of the track's."""


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How a track's scores follow from its frames; the defaults are the method's.

    Attributes:
        use_objectness: Weigh by the objectness; a switch for ablations.
        use_iou: Weigh by the mask IoU; a switch for ablations.
        over: The frames that are averaged over: ``all``, so that a score sinks with every frame that does not show the
            object, or those in which the track is ``visible``: an object is likelier there than none.
        window: Of the newest so many frames only, for streams; None: of the whole video.
    """

    use_objectness: bool = True
    use_iou: bool = True
    over: Literal["all", "visible"] = "all"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.over not in ("all", "visible"):
            raise InputError(f"scores.over {self.over!r}: give all or visible")
        if self.window is not None and self.window < 1:
            raise InputError(f"scores.window {self.window}: must be 1 frame or more")


def object_probs(object_logits: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """Return the probability of an object."""
    return expit(object_logits[..., 0] - object_logits[..., 1])


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreSums:
    """Sums over the frames seen so far, from which a video's scores follow at any time; float64, as videos are long.

    Attributes:
        config: How scores follow from the frames.
        num_frames: Frames seen so far.
        num_counted: The number of frames that each track's sums are of.
        class_sum: Sum of every track's class probabilities, weighted by the mask IoU where ``config`` says so.
        object_sum: Sum of every track's objectness logits.
        embedding_sum: Sum of every track's CLIP embeddings at unit length, weighted as ``class_sum`` is.
        newest: With ``config.window``, what each of its frames adds to the sums.
    """

    config: ScoreConfig
    num_frames: int
    num_counted: Float[np.ndarray, " q"]
    class_sum: Float[np.ndarray, "q c"]
    object_sum: Float[np.ndarray, "q 2"]
    embedding_sum: Float[np.ndarray, "q e"]
    newest: tuple[tuple[np.ndarray, ...], ...] = ()

    @classmethod
    def zeros(cls, num_tracks: int, num_classes: int, embed_dim: int, config: ScoreConfig) -> "ScoreSums":
        """Return the sums before the first frame."""
        class_sum, object_sum, embedding_sum = (np.zeros((num_tracks, n)) for n in (num_classes, 2, embed_dim))
        return cls(config, 0, np.zeros(num_tracks), class_sum, object_sum, embedding_sum)

    def add(
        self,
        class_probs: Float[np.ndarray, "q c"],
        iou: Float[np.ndarray, " q"],
        object_logits: Float[np.ndarray, "q 2"],
        visual_embed: Float[np.ndarray, "q e"],
    ) -> "ScoreSums":
        """Return the sums with one more frame, given in track order."""
        weighted = np.sqrt(class_probs * iou[:, None]) if self.config.use_iou else class_probs
        counted = np.ones(len(iou)) if self.config.over == "all" else (object_probs(object_logits) > 0.5).astype(float)
        embedding = unit_length(visual_embed)
        if self.config.use_iou:
            embedding = embedding * np.sqrt(iou)[:, None]
        added = counted, *(part * counted[:, None] for part in (weighted, object_logits, embedding))
        sums = self.num_counted, self.class_sum, self.object_sum, self.embedding_sum
        newest = self.newest
        if self.config.window is None:
            sums = tuple(total + part for total, part in zip(sums, added, strict=True))
        else:
            # Added up anew: differences would let rounding errors grow for as long as a stream lasts.
            newest = (*newest, added)[-self.config.window :]
            sums = tuple(np.sum(parts, axis=0, dtype=float) for parts in zip(*newest, strict=True))
        return ScoreSums(self.config, self.num_frames + 1, *sums, newest)

    def scores(self) -> Float[np.ndarray, "q c"]:
        """Return the score of every track and class, 0..1; with a ReLU mask-IoU head it may exceed 1."""
        num_counted = np.maximum(self.num_counted, 1)[:, None]  # the sums of a track that was never visible are 0
        mean = self.class_sum / num_counted
        if not self.config.use_objectness:
            return mean
        return np.sqrt(mean * object_probs(self.object_sum / num_counted)[:, None])

    def embeddings(self) -> Float[np.ndarray, "q e"]:
        """Return every track's CLIP embedding, at unit length; zeros for a track of which no frame was counted."""
        return unit_length(self.embedding_sum).astype(np.float32)


def unit_length(vectors: Float[np.ndarray, "q e"]) -> Float[np.ndarray, "q e"]:
    """Scale vectors to length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def image_scores(
    class_probs: Float[np.ndarray, "q c"],
    iou: Float[np.ndarray, " q"],
    object_logits: Float[np.ndarray, "q 2"],
    config: ScoreConfig,
) -> Float[np.ndarray, "q c"]:
    """Return the image model's score of every query and class, 0..1 (more with a ReLU mask-IoU head).

    The root of probability x IoU x objectness.
    """
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


class FrameScores(NamedTuple):
    """What final scores need of every frame of a video, in track order; see ``FramePredictions``."""

    object_logits: Float[np.ndarray, "q 2"]
    mask_area: Float[np.ndarray, " q"]
    mask_prob_sum: Float[np.ndarray, " q"]
    class_probs: Float[np.ndarray, "q c"]


@dataclasses.dataclass(frozen=True, eq=False)
class RankedPairs:
    """(track, class) pairs of a video, best first; ``pruned`` marks the frames where a pair's mask is dropped."""

    tracks: Int[np.ndarray, " k"]
    class_indices: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    pruned: Bool[np.ndarray, "t k"]


def rank_pairs(sums: ScoreSums, frames: Iterable[FrameScores], *, top_k: int, min_score: float) -> RankedPairs:
    """Compute the final scores of a video's best pairs; those below ``min_score`` are left out."""
    tracks, class_indices, scores = top_pairs(sums.scores(), top_k)
    shape = (sums.num_frames, len(tracks))
    object_logits = np.empty((*shape, 2), np.float32)
    class_probs, area, prob_sum = (np.empty(shape, np.float32) for _ in range(3))
    for index, frame in enumerate(frames):
        class_probs[index] = frame.class_probs[tracks, class_indices]
        object_logits[index] = frame.object_logits[tracks]
        area[index], prob_sum[index] = frame.mask_area[tracks], frame.mask_prob_sum[tracks]
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
