"""Outlines of all shapes as tables of signed distances: quick to draw at any place, size and angle, without jags."""

import functools
import math

import numpy as np
from jaxtyping import Float

REACH = 1.4
"""Tables cover -REACH to REACH in both directions; shapes fit into a circle of radius 1 (nearly)."""

_CELLS = 256

CLUTTER_SHAPES = ("shard", "half", "angle", "blob", "strip", "bite", "zigzag")
"""Shapes of no class: parts of the others, and pieces that look a bit like them."""

Grid = Float[np.ndarray, "v u"]


@functools.cache
def distance_table(shape: str) -> Float[np.ndarray, "v u"]:
    """Return a shape's distance to its outline, negative inside, on a grid over [-REACH, REACH]; y points down."""
    axis = np.linspace(-REACH, REACH, _CELLS)
    u, v = np.meshgrid(axis, axis)
    table = _distance(shape, u, v).astype(np.float32)
    table.flags.writeable = False
    return table


@functools.cache
def area(shape: str) -> float:
    """Return the area inside a shape's outline, in units of its radius squared."""
    return float((distance_table(shape) <= 0).mean()) * (2 * REACH) ** 2


def distance_at(shape: str, u: Grid, v: Grid) -> Grid:
    """Look the distance up at points in a shape's own coordinates, interpolated; outside the table, at its rim."""
    table = distance_table(shape)
    scale = np.float32((_CELLS - 1) / (2 * REACH))
    x = np.clip((u + np.float32(REACH)) * scale, 0, np.float32(_CELLS - 1.001))
    y = np.clip((v + np.float32(REACH)) * scale, 0, np.float32(_CELLS - 1.001))
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    corner = row * _CELLS + column
    flat = table.ravel()
    left_top, right_top = flat[corner], flat[corner + 1]
    left_bottom, right_bottom = flat[corner + _CELLS], flat[corner + _CELLS + 1]
    top = left_top + (right_top - left_top) * x
    bottom = left_bottom + (right_bottom - left_bottom) * x
    return top + (bottom - top) * y


def _distance(shape: str, u: Grid, v: Grid) -> Grid:
    match shape:
        case "circle":
            return np.hypot(u, v) - 0.85
        case "ring":
            return np.abs(np.hypot(u, v) - 0.68) - 0.24
        case "moon":
            return np.maximum(np.hypot(u, v) - 0.95, 0.72 - np.hypot(u - 0.5, v))
        case "flower":
            return np.minimum.reduce(
                [np.hypot(u - x, v - y) - 0.4 for x, y in _circle(5, 0.58)] + [np.hypot(u, v) - 0.4]
            )
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.74
        case "half":
            return np.maximum(np.hypot(u, v) - 0.85, v)
        case "bite":
            return np.maximum(np.hypot(u, v) - 0.85, np.minimum(u, v))
        case "blob":
            parts = [(0.0, 0.1, 0.5), (0.45, -0.2, 0.34), (-0.5, -0.1, 0.42), (-0.1, 0.55, 0.3)]
            return np.minimum.reduce([np.hypot(u - x, v - y) - radius for x, y, radius in parts])
        case _:
            return _polygon_distance(_corners(shape), u, v)


def _corners(shape: str) -> list[tuple[float, float]]:
    match shape:
        case "triangle":
            return [(0.0, -0.95), (0.95, 0.7), (-0.95, 0.7)]
        case "diamond":
            return [(0.0, -1.05), (0.64, 0.0), (0.0, 1.05), (-0.64, 0.0)]
        case "star":
            outer, inner = _circle(5, 1.05), _circle(5, 0.46, turn=0.1)
            return [corner for pair in zip(outer, inner, strict=True) for corner in pair]
        case "cross":
            long, half = 0.92, 0.3
            quarter = [(half, -long), (half, -half), (long, -half)]
            return [corner for turn in range(4) for corner in _turned(quarter, turn)]
        case "arrow":
            return [(0.0, -1.0), (0.82, -0.1), (0.32, -0.1), (0.32, 0.95), (-0.32, 0.95), (-0.32, -0.1), (-0.82, -0.1)]
        case "bolt":
            return [(0.3, -1.1), (-0.62, 0.18), (-0.06, 0.18), (-0.34, 1.1), (0.66, -0.3), (0.1, -0.3)]
        case "heart":
            turns = [2 * math.pi * i / 64 for i in range(64)]
            return [(0.98 * math.sin(a) ** 3, -_heart_height(a) / 16.5 - 0.1) for a in turns]
        case "shard":
            return [(-0.95, -0.5), (0.0, -0.2), (0.8, -0.8), (0.45, 0.15), (0.9, 0.75), (-0.25, 0.35)]
        case "angle":
            return [(-0.7, -0.8), (-0.25, -0.8), (-0.25, 0.3), (0.8, 0.3), (0.8, 0.75), (-0.7, 0.75)]
        case "strip":
            return [(-1.1, -0.16), (1.1, -0.16), (1.1, 0.16), (-1.1, 0.16)]
        case "zigzag":
            top = [(-1.05, 0.1), (-0.55, -0.5), (0.0, 0.1), (0.55, -0.5), (1.05, 0.1)]
            return top + [(x, y + 0.42) for x, y in reversed(top)]
        case _:
            raise ValueError(f"shape {shape!r} has no outline")


def _heart_height(angle: float) -> float:
    return 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)


def _circle(number: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """Return points evenly round a circle, the first one at the top or ``turn`` whole turns from it."""
    angles = [2 * math.pi * (i / number + turn) for i in range(number)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _turned(points: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    """Turn points clockwise by quarters of a turn."""
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return points


def _polygon_distance(corners: list[tuple[float, float]], u: Grid, v: Grid) -> Grid:
    """Return the exact distance to a polygon, negative inside."""
    squared = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        squared = np.minimum(squared, (u - x0 - along * dx) ** 2 + (v - y0 - along * dy) ** 2)
        if dy:
            # A point is inside if a ray to its right crosses the outline an odd number of times.
            inside ^= ((y0 <= v) != (y1 <= v)) & (u < x0 + (v - y0) * dx / dy)
    return np.sqrt(squared) * np.where(inside, -1, 1)
