"""Shapes of annotation tools that are no polygons, as polygons."""

import math
from collections.abc import Sequence

import numpy as np

_CORNERS = 64
"""Of a polygon that stands for an ellipse; it covers 99.8% of it."""

OTHERS = "results that are no labelled area (points, lines, tags) and were left out"


def box(left: float, top: float, width: float, height: float) -> list[float]:
    """Return the corners of a box, x and y by turns."""
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[float]:
    """Return corners on an ellipse, x and y by turns."""
    angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1).ravel().tolist()


def rotated(polygon: list[float], degrees: float, centre: Sequence[float]) -> list[float]:
    """Turn a polygon clockwise, as seen, about a point in pixels."""
    if not degrees:
        return polygon
    turn = math.radians(degrees) if math.isfinite(degrees) else 0.0
    corners = np.reshape(polygon, (-1, 2)) - centre
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (corners @ matrix + centre).ravel().tolist()
