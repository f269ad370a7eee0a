"""Which query answers for which target: costs on sampled points, and two solvers of the assignment.

Source: Mask2Former (arXiv 2112.01527), section 3.3; DETR (arXiv 2005.12872), section 3.1.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax.assignment
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from clipvis_jax.errors import InputError
from clipvis_jax.training.structs import Matches

MatchingMethod = Literal["device", "host"]

_COST_LIMIT = 1e4
"""Costs beyond this, and those that are no numbers, count as this."""


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """Weights of the matching costs, and who solves the assignment.

    ``device`` runs the Hungarian algorithm in the step; ``host`` calls scipy from it, which is quicker on a CPU (2 ms
    instead of 74 for the ten layers of an image with 20 targets). It is not the default all the same: a program that
    calls the host is compiled anew at every start, and several CPU devices of one process may wait for each other for
    ever (the training step refuses them).
    """

    method: MatchingMethod = "device"
    object_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_weight") and not value >= 0:
                raise InputError(f"step.losses.matching.{field.name} {value}: give 0 or more")


def matching_costs(
    object_logits: Float[Array, "q 2"],
    mask_logits: Float[Array, "q p"],
    target_masks: Float[Array, "n p"],
    absent: Bool[Array, " n"],
    config: MatchingConfig,
) -> Float[Array, "q n"]:
    """Compute what it costs to match each query of an image with each target.

    Args:
        object_logits: Objectness of every query.
        mask_logits: Mask logits at the points.
        target_masks: Target masks at the same points, 0..1.
        absent: Targets that the frame does not show.
        config: Weights.

    Returns:
        Finite costs.
    """
    precision = jax.lax.Precision.HIGHEST
    num_points = mask_logits.shape[1]
    object_probs = jax.nn.softmax(object_logits)
    # Matches the authors' code: an instance that the frame does not show looks for a query that sees nothing.
    object_cost = -jnp.where(absent, object_probs[:, 1:], object_probs[:, :1])
    # Binary cross-entropy with logits x and target t is softplus(x) - x t.
    products = jnp.einsum("qp,np->qn", mask_logits, target_masks, precision=precision)
    mask_cost = (jnp.sum(jax.nn.softplus(mask_logits), axis=1, keepdims=True) - products) / num_points
    probs = jax.nn.sigmoid(mask_logits)
    overlap = 2 * jnp.einsum("qp,np->qn", probs, target_masks, precision=precision)
    total = jnp.sum(probs, axis=1, keepdims=True) + jnp.sum(target_masks, axis=1)
    dice_cost = 1 - (overlap + 1) / (total + 1)
    cost = config.object_weight * object_cost + config.mask_weight * mask_cost + config.dice_weight * dice_cost
    return jnp.clip(jnp.nan_to_num(cost, nan=_COST_LIMIT), -_COST_LIMIT, _COST_LIMIT)


def match(costs: Float[Array, "*batch q n"], valid: Bool[Array, "*batch n"], method: MatchingMethod) -> Matches:
    """Assign queries to targets at the smallest total cost, for every leading index by itself.

    Every valid target gets a query of its own, or every query a target if there are more targets. Under ``jit``
    over several devices this belongs inside ``shard_map``: a device then solves its own images and waits for none.

    Args:
        costs: Finite matching costs.
        valid: Which targets are not padding.
        method: Who solves it.
    """
    batch, num_targets = costs.shape[:-2], costs.shape[-1]
    if num_targets == 0:
        return Matches(query=jnp.zeros(valid.shape, jnp.int32), matched=valid)
    # A padded target costs more than any other, so it never takes a query that a valid target could use.
    costs = jnp.where(valid[..., None, :], costs, jnp.max(costs, axis=(-2, -1), keepdims=True) + 1)
    flat = jax.lax.stop_gradient(costs.reshape(-1, *costs.shape[-2:]))
    match method:
        case "device":
            query = jax.vmap(_solve_on_device)(flat)
        case "host":
            shape = jax.ShapeDtypeStruct((flat.shape[0], num_targets), jnp.int32)
            query = jax.pure_callback(_solve_on_host, shape, flat, vmap_method="expand_dims")
    query = query.reshape(*batch, num_targets)
    matched = valid & (query >= 0)
    return Matches(query=jnp.where(matched, query, 0), matched=matched)


def _solve_on_device(costs: Float[Array, "q n"]) -> Int[Array, " n"]:
    """Return the query of every target, -1 for none."""
    queries, targets = optax.assignment.hungarian_algorithm(costs)
    return jnp.full(costs.shape[1], -1, jnp.int32).at[targets].set(queries.astype(jnp.int32))


def _solve_on_host(costs: Float[Array, "*batch q n"]) -> Int[np.ndarray, "*batch n"]:
    """Return the query of every target, -1 for none."""
    problems = np.asarray(costs)
    assigned = np.full((*problems.shape[:-2], problems.shape[-1]), -1, np.int32)
    for index in np.ndindex(*problems.shape[:-2]):
        queries, targets = linear_sum_assignment(problems[index])
        assigned[index][targets] = queries
    return assigned
