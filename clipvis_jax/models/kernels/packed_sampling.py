"""Weighted bilinear samples for GPUs and TPUs: four neighbouring pixels stand side by side, one look-up finds them.

A look-up costs a TPU the same for 32 numbers and for 128, which four neighbours of a head of 32 channels are.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LevelShapes = tuple[tuple[int, int], ...]
"""Height and width of every level, in the order in which their pixels are concatenated."""

Order = Literal["at once", "in turn"]
"""All samples at once is what GPUs want: few kernels, in which XLA fuses the look-ups with what they are for.

In turn, by image, head and sample, is what TPUs want: a head's rows and one sample of each query stay on the chip.
"""

_NEIGHBOURS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""How far down and to the right of the first pixel each of the four is."""

_EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT)
"""Exact in float32 where the second factor holds zeros and ones; on TPUs in half the passes of full precision."""


class _Samples(NamedTuple):
    """Where the samples of a head lie. ``weight`` and both fractions are 0 for those beyond all pixels."""

    row: Int[Array, "samples m"]
    inside: Bool[Array, "samples m"]
    weight: Float[Array, "samples m"]
    right: Float[Array, "samples m"]
    down: Float[Array, "samples m"]

    def bilinear(self) -> Float[Array, "samples 4 m"]:
        left, top = 1 - self.right, 1 - self.down
        return jnp.stack([left * top, self.right * top, left * self.down, self.right * self.down], axis=1)


@partial(jax.jit, static_argnames=("level_shapes", "order"))  # so that layers alike are traced once
def forward(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    *,
    level_shapes: LevelShapes,
    order: Order,
) -> Float[Array, "b m heads head_dim"]:
    """Compute ``sample_levels``."""
    head = partial(_head_forward, level_shapes=level_shapes, order=order)
    sampled = _over_heads(head, order, *_by_head(values, points_px, weights))
    return jnp.moveaxis(sampled, 1, 2).astype(values.dtype)


@partial(jax.jit, static_argnames=("level_shapes", "order"))  # so that layers alike are traced once
def backward(
    values: Float[Array, "b n heads head_dim"],
    points_px: Float[Array, "b m heads levels p 2"],
    weights: Float[Array, "b m heads levels p"],
    gradient: Float[Array, "b m heads head_dim"],
    *,
    level_shapes: LevelShapes,
    order: Order,
) -> tuple[
    Float[Array, "b n heads head_dim"], Float[Array, "b m heads levels p 2"], Float[Array, "b m heads levels p"]
]:
    """Return the gradients of values, points and weights."""
    head = partial(_head_backward, level_shapes=level_shapes, order=order)
    gradient = jnp.moveaxis(gradient, 2, 1).astype(jnp.float32)
    d_values, d_points, d_weights = _over_heads(head, order, *_by_head(values, points_px, weights), gradient)
    return (
        jnp.moveaxis(d_values, 1, 2).astype(values.dtype),
        jnp.moveaxis(d_points, -1, 1),
        jnp.moveaxis(d_weights, -1, 1),
    )


def _by_head(values: Array, points_px: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Put heads before pixels, and queries last: the last axis is the one that accelerators work along."""
    return jnp.moveaxis(values, 2, 1), jnp.moveaxis(points_px, 1, -1), jnp.moveaxis(weights, 1, -1)


def _over_heads(function: Callable[..., Any], order: Order, *inputs: Array) -> Any:
    if order == "at once":
        return jax.vmap(jax.vmap(function))(*inputs)
    batch_heads = inputs[0].shape[:2]
    flat = tuple(x.reshape(-1, *x.shape[2:]) for x in inputs)
    outputs = jax.lax.map(lambda head: function(*head), flat)
    return jax.tree.map(lambda x: x.reshape(*batch_heads, *x.shape[1:]), outputs)


def _head_forward(
    values: Float[Array, "n head_dim"],
    points_px: Float[Array, "levels p 2 m"],
    weights: Float[Array, "levels p m"],
    *,
    level_shapes: LevelShapes,
    order: Order,
) -> Float[Array, "m head_dim"]:
    head_dim = values.shape[-1]
    table = _pack(values, level_shapes)
    samples = _locate(points_px, weights, level_shapes)
    shares = samples.bilinear() * samples.weight[:, None]
    if order == "at once":
        rows = _look_up(table, samples.row).reshape(*samples.row.shape, 4, head_dim)
        return jnp.sum(rows * jnp.moveaxis(shares, 1, 2)[..., None], axis=(0, 2))

    def add(total: Float[Array, "m row"], sample: tuple[Array, Array]) -> tuple[Float[Array, "m row"], None]:
        row, share = sample
        return total + _look_up(table, row) * _spread(share, head_dim), None

    total, _ = jax.lax.scan(add, jnp.zeros((points_px.shape[-1], table.shape[1])), (samples.row, shares))
    return reduce(jnp.add, jnp.split(total, 4, axis=1))


def _head_backward(
    values: Float[Array, "n head_dim"],
    points_px: Float[Array, "levels p 2 m"],
    weights: Float[Array, "levels p m"],
    gradient: Float[Array, "m head_dim"],
    *,
    level_shapes: LevelShapes,
    order: Order,
) -> tuple[Float[Array, "n head_dim"], Float[Array, "levels p 2 m"], Float[Array, "levels p m"]]:
    head_dim = values.shape[-1]
    table = _pack(values, level_shapes)
    samples = _locate(points_px, weights, level_shapes)
    bilinear = samples.bilinear()
    shares = bilinear * samples.weight[:, None]
    d_table = jnp.zeros(table.shape)
    if order == "at once":
        rows = _look_up(table, samples.row).reshape(*samples.row.shape, 4, head_dim)
        products = jnp.moveaxis(jnp.sum(rows * gradient[:, None], axis=-1), 2, 1)
        d_rows = jnp.moveaxis(shares, 1, 2)[..., None] * gradient[:, None]
        d_table = d_table.at[samples.row].add(d_rows.reshape(*samples.row.shape, -1), mode="promise_in_bounds")
    else:
        repeated = jnp.tile(gradient, 4)

        def add(d_table: Float[Array, "rows row"], sample: tuple[Array, Array]) -> tuple[Array, Array]:
            row, share = sample
            product = _sum_neighbours(_look_up(table, row) * repeated, head_dim)
            return d_table.at[row].add(_spread(share, head_dim) * repeated, mode="promise_in_bounds"), product

        d_table, products = jax.lax.scan(add, d_table, (samples.row, shares))
    d_weight = jnp.where(samples.inside, jnp.sum(products * bilinear, axis=1), 0)
    left_top, right_top, left_down, right_down = jnp.moveaxis(products, 1, 0)
    d_x = (right_top - left_top) * (1 - samples.down) + (right_down - left_down) * samples.down
    d_y = (left_down - left_top) * (1 - samples.right) + (right_down - right_top) * samples.right
    d_point = samples.weight[:, None] * jnp.stack([d_x, d_y], axis=1)
    return _unpack(d_table, level_shapes), d_point.reshape(points_px.shape), d_weight.reshape(weights.shape)


def _locate(
    points_px: Float[Array, "levels p 2 m"], weights: Float[Array, "levels p m"], level_shapes: LevelShapes
) -> _Samples:
    shapes = np.array(level_shapes)
    height, width = shapes[:, :1, None], shapes[:, 1:, None]
    sizes = (shapes + 1).prod(axis=1)
    start = (np.cumsum(sizes) - sizes)[:, None, None]
    x, y = points_px[:, :, 0], points_px[:, :, 1]
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x, y, weight = (jnp.where(inside, number, 0) for number in (x, y, weights))
    left, top = jnp.floor(x), jnp.floor(y)
    row = start + (top.astype(jnp.int32) + 1) * (width + 1) + left.astype(jnp.int32) + 1
    samples = _Samples(row, inside, weight, x - left, y - top)
    return jax.tree.map(lambda number: number.reshape(-1, number.shape[-1]), samples)


def _pack(values: Float[Array, "n head_dim"], level_shapes: LevelShapes) -> Float[Array, "rows row"]:
    """Return a row of four neighbours for every place where a sample's first pixel may be, the margin included."""
    tables, start = [], 0
    for height, width in level_shapes:
        pixels = values[start : start + height * width].reshape(height, width, -1)
        start += height * width
        pixels = jnp.pad(pixels, ((1, 1), (1, 1), (0, 0)))
        neighbours = [pixels[down : down + height + 1, right : right + width + 1] for down, right in _NEIGHBOURS]
        tables.append(jnp.concatenate(neighbours, axis=-1).reshape((height + 1) * (width + 1), -1))
    return jnp.concatenate(tables)


def _unpack(d_table: Float[Array, "rows row"], level_shapes: LevelShapes) -> Float[Array, "n head_dim"]:
    """Add up what the rows hold of each pixel: the transpose of ``_pack``."""
    levels, start = [], 0
    for height, width in level_shapes:
        size = (height + 1) * (width + 1)
        rows = d_table[start : start + size].reshape(height + 1, width + 1, -1)
        start += size
        parts = [
            part[1 - down : 1 - down + height, 1 - right : 1 - right + width]
            for part, (down, right) in zip(jnp.split(rows, 4, axis=-1), _NEIGHBOURS, strict=True)
        ]
        levels.append(reduce(jnp.add, parts).reshape(height * width, -1))
    return jnp.concatenate(levels)


def _look_up(table: Float[Array, "rows row"], row: Int[Array, "*samples"]) -> Float[Array, "*samples row"]:
    return table.at[row].get(mode="promise_in_bounds").astype(jnp.float32)


def _spread(share: Float[Array, "4 m"], head_dim: int) -> Float[Array, "m row"]:
    """Repeat each neighbour's share for all its channels; as a product, which is the quickest way on a TPU."""
    ones = np.repeat(np.eye(4, dtype=np.float32), head_dim, axis=1)
    return jnp.einsum("km,kc->mc", share, ones, precision=_EXACT)


def _sum_neighbours(rows: Float[Array, "m row"], head_dim: int) -> Float[Array, "4 m"]:
    """Sum each neighbour's channels."""
    ones = np.repeat(np.eye(4, dtype=np.float32), head_dim, axis=0)
    return jnp.einsum("mc,ck->km", rows, ones, precision=_EXACT)
