"""Temporal top-K enhanced matching: which query of a frame continues which track.

Runs on the host: it is sequential and tiny. Source: CLIP-VIS, section III-C.
"""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from clipvis_jax.errors import InputError

Mode = Literal["top_k", "all", "previous"]


@dataclasses.dataclass(frozen=True)
class AssociationConfig:
    """How queries are matched over time.

    ``mode``: ``top_k`` is the paper's matching; ``previous`` looks at the previous frame alone, as MinVIS does;
    ``all`` averages over the whole memory without selection. ``memory_length`` is the paper's T, ``top_k`` its K.
    """

    mode: Mode = "top_k"
    memory_length: int = 9
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"matching mode {self.mode!r}: must be one of {', '.join(get_args(Mode))}")
        if self.memory_length < 1 or self.top_k < 1:
            raise InputError(f"memory length T ({self.memory_length}) and K ({self.top_k}) must be 1 or more")


Memory = tuple[Float[np.ndarray, "q d"], ...]
"""Embeddings of the last frames in track order, L2-normalised, oldest first."""


def associate(
    embeds: Float[np.ndarray, "q d"], memory: Memory, config: AssociationConfig
) -> tuple[Int[np.ndarray, " q"], Memory]:
    """Match a frame's queries with the tracks.

    Args:
        embeds: Query embeddings of the frame, in its own order.
        memory: Embeddings of earlier frames; empty at the first frame.
        config: Which earlier frames have a say.

    Returns:
        The query of every track (a permutation; the identity at the first frame), and the memory with this frame.
    """
    norm = np.sqrt(np.sum(np.square(embeds), axis=1, keepdims=True))
    embeds = embeds / np.maximum(norm, 1e-8)
    if not memory:
        order = np.arange(len(embeds))
    elif config.mode == "previous":
        _, order = _assign(1 - memory[-1] @ embeds.T)
    else:
        order = _vote(1 - np.stack(memory) @ embeds.T, config)
    return order, (*memory, embeds[order])[-config.memory_length :]


def _vote(costs: Float[np.ndarray, "t q q"], config: AssociationConfig) -> Int[np.ndarray, " q"]:
    """Let several memory frames decide; ``costs[i]`` is tracks x queries against memory frame i, oldest first."""
    selected = np.arange(len(costs))
    if config.mode == "top_k":
        assignments = [_assign(cost) for cost in costs]
        totals = np.array([total for total, _ in assignments])
        if len(costs) < config.top_k:
            return assignments[int(np.argmin(totals))][1]
        selected = np.sort(np.argsort(totals, kind="stable")[: config.top_k])
    # Matches the authors' code: a cost weighs more the newer its frame is.
    weights = (selected + 1).astype(costs.dtype)
    return _assign(np.mean(costs[selected] * weights[:, None, None], axis=0))[1]


def _assign(cost: Float[np.ndarray, "q q"]) -> tuple[float, Int[np.ndarray, " q"]]:
    """Return the cheapest assignment's cost and, for every row, its column."""
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum()), columns
