"""Draw one figure: its pixels, which of them it covers, its shadow."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from clipvis_jax.data.shapes.classes import Rgb
from clipvis_jax.data.shapes.outlines import REACH, distance_at

Canvas = Float[np.ndarray, "h w 3"]

_STRIPE, _STRIPE_SHARE = 0.56, 0.46
_DOT, _DOT_RADIUS = 0.52, 0.165
"""Period of the patterns and width of their marks, in units of the figure's radius."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """What is drawn. With ``contour`` only a line along the outline, as clutter."""

    shape: str
    pattern: str
    colour: Rgb
    contour: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Pose:
    """Where a figure is: centre and radius in pixels, angle in radians, clockwise."""

    x: float
    y: float
    radius: float
    angle: float

    def moved(self, dx: float | int, dy: float | int) -> "Pose":
        """Return the pose moved by some pixels."""
        return dataclasses.replace(self, x=self.x + dx, y=self.y + dy)


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """The window of the canvas around a figure: its own coordinates there, and the distance to its outline in pixels.

    A pixel belongs to the figure where ``distance`` is not positive, that is, where it covers half of the pixel.
    """

    rows: slice
    columns: slice
    u: Float[np.ndarray, "v u"]
    v: Float[np.ndarray, "v u"]
    distance: Float[np.ndarray, "v u"]


def footprint(figure: Figure, pose: Pose, height: int, width: int) -> Footprint | None:
    """Return the part of the canvas that a figure may touch, None if it is outside."""
    reach = pose.radius * (REACH - 0.1) + 2
    top, bottom = max(0, math.floor(pose.y - reach)), min(height, math.ceil(pose.y + reach))
    left, right = max(0, math.floor(pose.x - reach)), min(width, math.ceil(pose.x + reach))
    if top >= bottom or left >= right:
        return None
    y = ((np.arange(top, bottom) + (0.5 - pose.y)) / pose.radius).astype(np.float32)[:, None]
    x = ((np.arange(left, right) + (0.5 - pose.x)) / pose.radius).astype(np.float32)[None, :]
    cos, sin = np.float32(math.cos(pose.angle)), np.float32(math.sin(pose.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    distance = distance_at(figure.shape, u, v)
    if figure.contour:
        distance = np.abs(distance) - np.float32(0.07)
    return Footprint(slice(top, bottom), slice(left, right), u, v, distance * np.float32(pose.radius))


def paint(canvas: Canvas, figure: Figure, pose: Pose, light: tuple[float, float]) -> None:
    """Draw a figure onto a float32 canvas (0 to 255), brighter towards ``light``, a direction on the screen."""
    at = footprint(figure, pose, *canvas.shape[:2])
    if at is None:
        return
    colour = np.array(figure.colour, np.float32)
    marks = _marks(figure.pattern, at, pose.radius)
    # Brightness instead of light sources: a slope across the figure, and a dark rim that sets it off from the ground.
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    slope_u = np.float32(0.13 * (cos * light[0] + sin * light[1]))
    slope_v = np.float32(0.13 * (cos * light[1] - sin * light[0]))
    rim_width = max(1.2, 0.07 * pose.radius)
    rim = np.clip((at.distance + np.float32(rim_width + 0.5)), 0, 1)
    shade = (1 + slope_u * at.u + slope_v * at.v) * (1 - np.float32(0.4) * rim)
    if marks is None:
        pixels = shade[..., None] * colour
    else:
        accent = np.array(mark_colour(figure.colour), np.float32)
        pixels = shade[..., None] * (colour + (accent - colour) * marks[..., None])
    ground = canvas[at.rows, at.columns]
    ground += (pixels - ground) * np.clip(np.float32(0.5) - at.distance, 0, 1)[..., None]


def paint_shadow(canvas: Canvas, figure: Figure, pose: Pose, light: tuple[float, float]) -> None:
    """Darken the canvas where a figure keeps the light off, blurred."""
    away = -0.14 * pose.radius
    at = footprint(figure, pose.moved(away * light[0], away * light[1]), *canvas.shape[:2])
    if at is not None:
        blur = np.float32(1 / (0.16 * pose.radius + 1))
        dark = np.float32(0.45) * np.clip(np.float32(0.5) - at.distance * blur, 0, 1)
        canvas[at.rows, at.columns] *= (1 - dark)[..., None]


def mark_colour(colour: Rgb) -> Rgb:
    """Return the colour of stripes and dots: dark on light colours, light on dark ones, of the same hue."""
    red, green, blue = colour
    if 0.3 * red + 0.59 * green + 0.11 * blue > 115:
        return red * 3 // 10, green * 3 // 10, blue * 3 // 10
    return 255 - (255 - red) * 3 // 10, 255 - (255 - green) * 3 // 10, 255 - (255 - blue) * 3 // 10


def _marks(pattern: str, at: Footprint, radius: float) -> Float[np.ndarray, "v u"] | None:
    """Return how much of each pixel is a stripe or a dot, 0 to 1; None for no pattern."""
    match pattern:
        case "plain":
            return None
        case "striped":
            turns = (at.u + at.v) * np.float32(math.sqrt(0.5) / _STRIPE)
            beyond = np.abs(turns - np.floor(turns) - np.float32(0.5)) - np.float32(_STRIPE_SHARE / 2)
            distance = beyond * np.float32(_STRIPE * radius)
        case "dotted":
            across, down = at.u * np.float32(1 / _DOT), at.v * np.float32(1 / _DOT)
            across -= np.floor(across + np.float32(0.5))
            down -= np.floor(down + np.float32(0.5))
            away = np.sqrt(across * across + down * down) - np.float32(_DOT_RADIUS / _DOT)
            distance = away * np.float32(_DOT * radius)
        case _:
            raise ValueError(f"pattern {pattern!r} is not one that can be drawn")
    return np.clip(np.float32(0.5) - distance, 0, 1)
