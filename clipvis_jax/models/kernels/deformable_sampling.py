"""Weighted bilinear samples of several feature maps: what deformable attention spends its time on."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from clipvis_jax.models.kernels import packed_sampling
from clipvis_jax.models.kernels.packed_sampling import LevelShapes

Form = Literal["cpu", "gpu", "tpu"]
"""Which form computes the samples: loops over heads and points, or ``packed_sampling`` in one of its orders."""


class _Corner(NamedTuple):
    """One of the four pixels around each sample: where it stands in its level, and its part in the sample.

    The bilinear weight is ``weight_x * weight_y`` where the pixel is ``inside`` its level, else 0.
    ``dx`` and ``dy`` are the slopes of the two factors.
    """

    pixel: Int[Array, "*samples"]
    inside: Bool[Array, "*samples"]
    weight_x: Float[Array, "*samples"]
    weight_y: Float[Array, "*samples"]
    dx: int
    dy: int


def _corners(points_px: Float[Array, "*samples 2"], height: int, width: int) -> list[_Corner]:
    x, y = points_px[..., 0], points_px[..., 1]
    left, top = jnp.floor(x), jnp.floor(y)
    corners = []
    for dy in (-1, 1):
        for dx in (-1, 1):
            column, row = left + (dx > 0), top + (dy > 0)
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            column_clipped = jnp.clip(column, 0, width - 1).astype(jnp.int32)
            row_clipped = jnp.clip(row, 0, height - 1).astype(jnp.int32)
            pixel = row_clipped * width + column_clipped
            corners.append(_Corner(pixel, inside, 1 - jnp.abs(x - column), 1 - jnp.abs(y - row), dx, dy))
    return corners


def sample_levels(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    level_shapes: LevelShapes,
    form: Form | None = None,
) -> Float[Array, "b m heads head_dim"]:
    """Sum bilinear samples of every level's values, weighted.

    Args:
        values: The pixels of all levels, concatenated.
        points_px: Where to sample, (x, y) in pixels of the level; 0 is the centre of the first pixel.
        weights: Weight of each sample.
        level_shapes: Height and width of each level.
        form: Compute as on another platform; by default as is best on the one that the program is compiled for.

    Outside its map a level counts as 0 (``grid_sample(align_corners=False, padding_mode="zeros")``).
    """
    return _sample_levels_tuned(values, points_px, weights, level_shapes, form)


def sample_levels_reference(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    level_shapes: LevelShapes,
) -> Float[Array, "b m heads head_dim"]:
    """Compute ``sample_levels`` plainly: level by level, all samples at once."""
    splits = np.cumsum([height * width for height, width in level_shapes])[:-1]
    look_up = jax.vmap(jax.vmap(lambda table, index: table[index], (1, 1), 1))  # over images, then heads
    output = jnp.zeros((*points_px.shape[:3], values.shape[-1]))
    for level, (part, (height, width)) in enumerate(zip(jnp.split(values, splits, axis=1), level_shapes, strict=True)):
        for corner in _corners(points_px[:, :, :, level], height, width):
            weight = jnp.where(corner.inside, weights[:, :, :, level] * corner.weight_x * corner.weight_y, 0)
            rows = look_up(part.astype(jnp.float32), corner.pixel)
            output += jnp.einsum("bmhpd,bmhp->bmhd", rows, weight, precision=jax.lax.Precision.HIGHEST)
    return output.astype(values.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _sample_levels_tuned(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    level_shapes: LevelShapes,
    form: Form | None,
) -> Float[Array, "b m heads head_dim"]:
    by_loops = partial(_forward_by_loops, level_shapes=level_shapes)
    return _choose(form, by_loops, partial(packed_sampling.forward, level_shapes=level_shapes))(
        values, points_px, weights
    )


def _sample_levels_forward(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    level_shapes: LevelShapes,
    form: Form | None,
) -> tuple[Float[Array, "b m heads head_dim"], tuple[Array, Array, Array]]:
    return _sample_levels_tuned(values, points_px, weights, level_shapes, form), (values, points_px, weights)


def _sample_levels_backward(
    level_shapes: LevelShapes,
    form: Form | None,
    residuals: tuple[Array, Array, Array],
    gradient: Float[Array, "b m heads head_dim"],
) -> tuple[Array, Array, Array]:
    by_loops = partial(_backward_by_loops, level_shapes=level_shapes)
    return _choose(form, by_loops, partial(packed_sampling.backward, level_shapes=level_shapes))(*residuals, gradient)


_sample_levels_tuned.defvjp(_sample_levels_forward, _sample_levels_backward)


def _choose(form: Form | None, by_loops: Callable[..., Any], packed: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for a form, or one that is the platform's when it is compiled."""
    at_once, in_turn = partial(packed, order="at once"), partial(packed, order="in turn")
    if form is None:
        return partial(jax.lax.platform_dependent, cpu=by_loops, tpu=in_turn, default=at_once)
    forced: dict[Form, Callable[..., Any]] = {"cpu": by_loops, "gpu": at_once, "tpu": in_turn}
    return forced[form]


def _forward_by_loops(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    *,
    level_shapes: LevelShapes,
) -> Float[Array, "b m heads head_dim"]:
    # Head by head, in a loop: as a part of the network's one large graph, XLA would merge the look-ups with what comes
    # before and after them, which takes seven times as long on a CPU.
    by_head = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (values, points_px, weights))
    sampled = jax.lax.map(lambda head: _head_forward(*head, level_shapes=level_shapes), by_head)
    return jnp.moveaxis(sampled, 0, 2).astype(values.dtype)


def _head_forward(
    values: Float[Array, "b n head_dim"],
    points_px: Float[Array, "b m levels p 2"],
    weights: Float[Array, "b m levels p"],
    *,
    level_shapes: LevelShapes,
) -> Float[Array, "b m head_dim"]:
    """Return one head's sums of samples, in float32."""
    # Plain row look-ups, added up one by one: XLA fuses them into a single loop which never stores the samples. On a
    # CPU that is 11 times faster than one large gather followed by a product. Every image has a table of its own: one
    # table for the batch would send the maps to all devices that share the batch.
    look_up = jax.vmap(lambda table, index: table.at[index].get(mode="promise_in_bounds"))
    output = jnp.zeros((*points_px.shape[:2], values.shape[-1]), jnp.float32)
    level_start = 0
    for level, (height, width) in enumerate(level_shapes):
        for corner in _corners(points_px[:, :, level], height, width):
            weight = jnp.where(corner.inside, weights[:, :, level] * corner.weight_x * corner.weight_y, 0)
            for point in range(points_px.shape[3]):
                rows = look_up(values, level_start + corner.pixel[..., point])
                output += rows.astype(jnp.float32) * weight[..., point, None]
        level_start += height * width
    return output


def _backward_by_loops(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    gradient: Float[Array, "b m heads head_dim"],
    *,
    level_shapes: LevelShapes,
) -> tuple[Array, Array, Array]:
    """Return the gradients of values, points and weights.

    Written out because the derived backward pass keeps a row of every look-up: at 1024x1024, on a CPU, it takes 40
    times as long and 2.7 GB. Here heads and points are done one after the other, so what is kept is small.
    """
    by_head = jax.tree.map(
        lambda x: jnp.moveaxis(x, 2, 0), (values.astype(jnp.float32), points_px, weights, gradient.astype(jnp.float32))
    )
    gradients = jax.lax.map(lambda head: _head_backward(*head, level_shapes=level_shapes), by_head)
    d_values, d_points, d_weights = (jnp.moveaxis(x, 0, 2) for x in gradients)
    return d_values.astype(values.dtype), d_points, d_weights


def _head_backward(
    values: Float[Array, "b n head_dim"],
    points_px: Float[Array, "b m levels p 2"],
    weights: Float[Array, "b m levels p"],
    gradient: Float[Array, "b m head_dim"],
    *,
    level_shapes: LevelShapes,
) -> tuple[Float[Array, "b n head_dim"], Float[Array, "b m levels p 2"], Float[Array, "b m levels p"]]:
    """Return the gradients of one head's values, points and weights."""
    batch, _, head_dim = values.shape
    batch_start = jnp.arange(batch)[:, None] * values.shape[1]
    # The products of rows and gradients are summed in two steps: over slices, which vectorises, then by a matrix.
    lanes = math.gcd(head_dim, 8)
    slices = [slice(start, start + lanes) for start in range(0, head_dim, lanes)]
    tables = [values[..., part].reshape(-1, lanes) for part in slices]
    ones = jnp.ones((lanes, 8))

    def point_backward(
        d_table: Float[Array, "rows head_dim"],
        point: tuple[Float[Array, "b m levels 2"], Float[Array, "b m levels"]],
    ) -> tuple[Float[Array, "rows head_dim"], tuple[Float[Array, "b m levels 2"], Float[Array, "b m levels"]]]:
        points_px, weights = point
        d_points, d_weights = [], []
        level_start = 0
        for level, (height, width) in enumerate(level_shapes):
            weight = weights[:, :, level]
            d_weight, d_x, d_y = jnp.zeros((3, *weight.shape))
            for corner in _corners(points_px[:, :, level], height, width):
                index = batch_start + level_start + corner.pixel
                share = jnp.where(corner.inside, weight * corner.weight_x * corner.weight_y, 0)
                d_table = d_table.at[index].add(gradient * share[..., None], mode="promise_in_bounds")
                products = sum(
                    table.at[index].get(mode="promise_in_bounds") * gradient[..., part]
                    for table, part in zip(tables, slices, strict=True)
                )
                product = jnp.dot(products, ones, precision=jax.lax.Precision.HIGHEST)[..., 0]
                product = jnp.where(corner.inside, product, 0)
                d_weight += product * corner.weight_x * corner.weight_y
                d_x += product * weight * corner.weight_y * corner.dx
                d_y += product * weight * corner.weight_x * corner.dy
            d_weights.append(d_weight)
            d_points.append(jnp.stack([d_x, d_y], axis=-1))
            level_start += height * width
        return d_table, (jnp.stack(d_points, axis=2), jnp.stack(d_weights, axis=2))

    # A loop, and not one long row of look-ups, because of the time that takes to compile.
    d_table, (d_points, d_weights) = jax.lax.scan(
        point_backward,
        jnp.zeros((batch * values.shape[1], head_dim)),
        (jnp.moveaxis(points_px, 3, 0), jnp.moveaxis(weights, 3, 0)),
    )
    return d_table.reshape(values.shape), jnp.moveaxis(d_points, 0, 3), jnp.moveaxis(d_weights, 0, 3)
