"""Temporal top-K enhanced matching: which query of a frame continues which track.

Runs on the host: it is sequential and tiny. Source: CLIP-VIS, section III-C.

It needs nothing but query embeddings, so those of any other model serve as well. ``order[track]`` is the query that
continues a track:

>>> history = ()
>>> for embeddings in (np.eye(3), np.eye(3)[[2, 0, 1]]):
...     order, history = associate(embeddings, history)
>>> order.tolist()
[1, 2, 0]

A mode of one's own is one function and one entry:

>>> def oldest_frame(embeddings, history, config):
...     return cheapest_assignment(1 - history[0] @ embeddings.T)[1]
>>> MODES["oldest"] = oldest_frame
>>> order, _ = associate(embeddings, history, AssociationConfig(mode="oldest"))
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from clipvis_jax.errors import InputError

History = tuple[Float[np.ndarray, "_ _"], ...]
"""The track history, tracks x length: embeddings of the last frames in track order, L2-normalised, oldest first."""


MAX_LENGTH = 1_000_000
"""Of a track history, in frames."""


@dataclasses.dataclass(frozen=True)
class AssociationConfig:
    """How queries are matched over time.

    Attributes:
        mode: One of ``MODES``: top_k is the paper's matching; previous looks at the previous frame alone, as MinVIS
            does; all averages over the whole track history without selection.
        memory_length: Number of frames in the track history, the paper's T.
        top_k: Number of frames of it that decide, the best ones, the paper's K.
    """

    mode: str = "top_k"
    memory_length: int = 9
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"association.mode {self.mode!r}: must be one of {', '.join(MODES)}")
        for name in ("memory_length", "top_k"):
            if not 1 <= getattr(self, name) <= MAX_LENGTH:
                raise InputError(f"association.{name} {getattr(self, name)}: must be between 1 and {MAX_LENGTH}")


def cheapest_assignment(cost: Float[np.ndarray, "q q"]) -> tuple[float, Int[np.ndarray, " q"]]:
    """Return the cheapest assignment's cost and, for every row (track), its column (query)."""
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum()), columns


def match_top_k(embeds: Float[np.ndarray, "q d"], history: History, config: AssociationConfig) -> Int[np.ndarray, " q"]:
    """Average over the K past frames that fit best; with fewer than K, the best one alone decides."""
    costs = 1 - np.stack(history) @ embeds.T
    assignments = [cheapest_assignment(cost) for cost in costs]
    totals = np.array([total for total, _ in assignments])
    if len(costs) < config.top_k:
        return assignments[int(np.argmin(totals))][1]
    return _match_mean(costs, np.sort(np.argsort(totals, kind="stable")[: config.top_k]))


def match_all(embeds: Float[np.ndarray, "q d"], history: History, config: AssociationConfig) -> Int[np.ndarray, " q"]:
    """Average over the whole track history."""
    return _match_mean(1 - np.stack(history) @ embeds.T, np.arange(len(history)))


def match_previous(
    embeds: Float[np.ndarray, "q d"], history: History, config: AssociationConfig
) -> Int[np.ndarray, " q"]:
    """Match with the previous frame alone."""
    return cheapest_assignment(1 - history[-1] @ embeds.T)[1]


MODES: dict[str, Callable[[np.ndarray, History, AssociationConfig], np.ndarray]] = {
    "top_k": match_top_k,
    "all": match_all,
    "previous": match_previous,
}
"""Modes by name: L2-normalised embeddings (q, d), a history that is not empty, settings -> the query of every track."""


def associate(
    embeds: Float[np.ndarray, "q d"], history: History = (), config: AssociationConfig = AssociationConfig()
) -> tuple[Int[np.ndarray, " q"], History]:
    """Match a frame's queries with the tracks.

    There are as many tracks as the first frame has queries. Where their number varies, as that of detections, fill up
    with rows of zeros, which are equally far from all tracks.

    Args:
        embeds: Query embeddings of the frame, in its own order, of any length; as many as in the frames before.
        history: What the call for the frame before returned; empty at the first frame.
        config: Which earlier frames have a say.

    Returns:
        The query of every track (a permutation; the identity at the first frame), and the history with this frame.

    Raises:
        InputError: The frame has another number of queries than those before it, or embeddings of another length.
    """
    if history and embeds.shape != history[-1].shape:
        (queries, length), (tracks, known) = embeds.shape, history[-1].shape
        raise InputError(
            f"embeddings: {queries} queries of length {length}, but {tracks} of length {known} in the frames before; "
            "give as many in every frame, filled up with zeros"
        )
    norm = np.sqrt(np.sum(np.square(embeds), axis=1, keepdims=True))
    embeds = embeds / np.maximum(norm, 1e-8)
    order = MODES[config.mode](embeds, history, config) if history else np.arange(len(embeds))
    return order, (*history, embeds[order])[-config.memory_length :]


def _match_mean(costs: Float[np.ndarray, "t q q"], selected: Int[np.ndarray, " k"]) -> Int[np.ndarray, " q"]:
    """Match by the mean of some frames' costs (tracks x queries), oldest first."""
    # Matches the authors' code: a cost weighs more the newer its frame is.
    weights = (selected + 1).astype(costs.dtype)
    return cheapest_assignment(np.mean(costs[selected] * weights[:, None, None], axis=0))[1]
