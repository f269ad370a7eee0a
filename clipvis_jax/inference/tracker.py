"""Tracking as a pure function: what is known of a video's tracks, and what one more frame adds to it."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig, History, associate
from clipvis_jax.inference.scores import ScoreConfig, ScoreSums


class FrameQueries(NamedTuple):
    """One frame of ``FramePredictions``, on the host; in the frame's own query order, or in track order."""

    object_logits: Float[np.ndarray, "q 2"]
    iou: Float[np.ndarray, " q"]
    query_embed: Float[np.ndarray, "q d"]
    visual_embed: Float[np.ndarray, "q e"]
    class_probs: Float[np.ndarray, "q c"]
    mask_logits: Float[np.ndarray, "q h4 w4"]
    mask_area: Float[np.ndarray, " q"]
    mask_prob_sum: Float[np.ndarray, " q"]


@dataclasses.dataclass(frozen=True, eq=False)
class TrackerState:
    """What is known of a video's tracks after some of its frames; ``start`` makes the first state.

    Attributes:
        association: How queries are matched over time.
        history: Embeddings of the last frames.
        sums: What the tracks' scores follow from.
        mask_area: Sum over all frames of each track's positive stride-4 mask pixels.
        mask_prob_sum: Sum of the probabilities of these pixels.
    """

    association: AssociationConfig
    history: History
    sums: ScoreSums
    mask_area: Float[np.ndarray, " q"]
    mask_prob_sum: Float[np.ndarray, " q"]

    @classmethod
    def start(
        cls,
        num_queries: int,
        num_classes: int,
        embed_dim: int,
        association: AssociationConfig,
        scores: ScoreConfig,
    ) -> "TrackerState":
        """Return the state before the first frame; a video has as many tracks as a frame has queries."""
        zeros = np.zeros(num_queries)
        return cls(association, (), ScoreSums.zeros(num_queries, num_classes, embed_dim, scores), zeros, zeros)


def update(state: TrackerState, frame: FrameQueries) -> tuple[TrackerState, FrameQueries]:
    """Take the next frame.

    Args:
        state: The tracks after the frames before; it stays as it is.
        frame: The network's predictions, in their own query order.

    Returns:
        The tracks with this frame, and its predictions in track order, of real classes only.

    Raises:
        InputError: The embeddings are not finite.
    """
    if not np.isfinite(frame.query_embed).all():
        raise InputError(
            f"frame {state.sums.num_frames}: the network gave numbers that are not finite; check the model's weights"
        )
    order, history = associate(frame.query_embed, state.history, state.association)
    tracked = FrameQueries(*(array[order] for array in frame))
    tracked = tracked._replace(class_probs=tracked.class_probs[:, : state.sums.class_sum.shape[1]])
    sums = state.sums.add(tracked.class_probs, tracked.iou, tracked.object_logits, tracked.visual_embed)
    mask_area, mask_prob_sum = state.mask_area + tracked.mask_area, state.mask_prob_sum + tracked.mask_prob_sum
    return TrackerState(state.association, history, sums, mask_area, mask_prob_sum), tracked
