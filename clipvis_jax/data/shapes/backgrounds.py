"""Backgrounds: gradients, textures, tiles and clutter, in colours that objects stand out from."""

import math

import numpy as np
from jaxtyping import Float
from PIL import Image

from clipvis_jax.data.shapes.classes import COLOURS, PATTERNS, SHAPES, Rgb
from clipvis_jax.data.shapes.drawing import Canvas, Figure, Pose, paint
from clipvis_jax.data.shapes.outlines import CLUTTER_SHAPES

KINDS = ("gradient", "texture", "tiles", "clutter")


def make_background(rng: np.random.Generator, side: int, unit: int, most_clutter: int) -> Canvas:
    """Draw a background of ``side`` x ``side`` pixels, float32 from 0 to 255.

    Args:
        rng: Source of all choices.
        side: Height and width.
        unit: Side of the video's frames, which patterns and clutter are scaled by.
        most_clutter: Most look-alikes of objects to draw on it.
    """
    kind = KINDS[rng.integers(len(KINDS))]
    first, second = (np.array(_muted(rng), np.float32) for _ in range(2))
    match kind:
        case "gradient":
            share = _slope(rng, side)
        case "tiles":
            share = _tiles(rng, side, unit)
        case _:
            share = _rough(rng, side, unit, finest=3)
    grain = (_rough(rng, side, unit, finest=4) - np.float32(0.5)) * np.float32(rng.uniform(8, 36))
    canvas = first + (second - first) * share[..., None] + grain[..., None]
    if kind == "clutter":
        for _ in range(rng.integers(10, 25)):
            _add_piece(rng, canvas, side, unit, muted=True)
    for _ in range(rng.integers(most_clutter + 1)):
        _add_piece(rng, canvas, side, unit, muted=False)
    return canvas


def clutter_figure(rng: np.random.Generator) -> Figure:
    """Make something that looks like an object but is of no class.

    A piece has a colour and a pattern of the classes, but another shape; a contour has a shape of theirs, but another
    colour. So not even the clutter shows unseen classes.
    """
    if rng.random() < 0.3:
        return Figure(SHAPES[rng.integers(len(SHAPES))], "plain", _muted(rng), contour=True)
    colour = tuple(COLOURS.values())[rng.integers(len(COLOURS))]
    shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
    return Figure(shape, PATTERNS[rng.integers(len(PATTERNS))], colour)


def _add_piece(rng: np.random.Generator, canvas: Canvas, side: int, unit: int, *, muted: bool) -> None:
    figure = clutter_figure(rng)
    if muted:
        figure = Figure(figure.shape, "plain", _muted(rng), figure.contour)
    x, y = rng.uniform(0, side, 2).tolist()
    pose = Pose(x, y, unit * float(rng.uniform(0.04, 0.16)), float(rng.uniform(0, 2 * math.pi)))
    paint(canvas, figure, pose, light=(0.0, 0.0))


def _muted(rng: np.random.Generator) -> Rgb:
    """Choose a colour near grey, which no class has."""
    grey = rng.integers(48, 190)
    red, green, blue = (grey + rng.integers(-24, 25, 3)).tolist()
    return red, green, blue


def _slope(rng: np.random.Generator, side: int) -> Float[np.ndarray, "h w"]:
    """Rise from 0 to 1 across the picture, in any direction."""
    angle = float(rng.uniform(0, 2 * math.pi))
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    rise = np.float32(math.cos(angle)) * axis[None, :] + np.float32(math.sin(angle)) * axis[:, None]
    return np.clip(rise * np.float32(0.4) + np.float32(0.5), 0, 1)


def _rough(rng: np.random.Generator, side: int, unit: int, finest: int) -> Float[np.ndarray, "h w"]:
    """Sum smooth noise of several scales; 0 to 1, around 0.5."""
    total = np.zeros((side, side), np.float32)
    for octave in range(finest - 2, finest + 1):
        cells = max(2, round(2.5 * 2**octave * side / unit))
        coarse = Image.fromarray(rng.random((cells, cells), np.float32))
        total += np.asarray(coarse.resize((side, side), Image.Resampling.BILINEAR))
    return total * np.float32(1 / 3)


def _tiles(rng: np.random.Generator, side: int, unit: int) -> Float[np.ndarray, "h w"]:
    """Lay tiles of slightly different shades with dark joints: squares, bricks or planks."""
    height = max(4, round(unit * float(rng.uniform(0.1, 0.28))))
    width = max(4, round(height * float(rng.choice([1, 2, 8]))))
    rows, columns = np.arange(side) // height, np.arange(side)
    shift = (rows % 2) * (width // 2)
    across = (columns[None, :] + shift[:, None]) // width
    shades = rng.random((int(rows[-1]) + 1, int(across.max()) + 1), np.float32)
    share = shades[rows[:, None], across]
    joints = (np.arange(side) % height < 1)[:, None] | ((columns[None, :] + shift[:, None]) % width < 1)
    return np.where(joints, np.float32(1.4), share)
