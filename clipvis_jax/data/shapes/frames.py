"""Frames of a scene, and which pixel shows which object."""

import numpy as np
from jaxtyping import Float, UInt8

from clipvis_jax.data.shapes.drawing import Canvas, footprint, paint, paint_shadow
from clipvis_jax.data.shapes.scenes import Bar, Scene


def draw_frame(scene: Scene, frame: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one frame, without the others."""
    dx, dy = scene.camera[frame].tolist()
    top, left = scene.margin - dy, scene.margin - dx
    canvas = scene.background[top : top + scene.size, left : left + scene.size].copy()
    for rank, actor in enumerate(scene.actors):
        for bar in scene.bars:
            if bar.rank == rank:
                _paint_bar(canvas, bar, dx, dy)
        pose = actor.poses[frame].moved(dx, dy)
        if scene.shadows and not actor.figure.contour:
            paint_shadow(canvas, actor.figure, pose, scene.light)
        paint(canvas, actor.figure, pose, scene.light)
    canvas *= scene.shading
    canvas *= scene.gains[frame]
    canvas += _noise(scene, frame)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8)


def draw_labels(scene: Scene, frame: int) -> UInt8[np.ndarray, "h w"]:
    """Say for every pixel of a frame which object it shows: 1 for the first actor with a class, 0 for none."""
    dx, dy = scene.camera[frame].tolist()
    labels = np.zeros((scene.size, scene.size), np.uint8)
    label = 0
    for rank, actor in enumerate(scene.actors):
        for bar in scene.bars:
            if bar.rank == rank:
                labels[_bar_window(bar, dx, dy)] = 0
        label += actor.class_number is not None
        pose = actor.poses[frame].moved(dx, dy)
        at = footprint(actor.figure, pose, *labels.shape)
        if at is not None:
            labels[at.rows, at.columns][at.distance <= 0] = 0 if actor.class_number is None else label
    return labels


def _bar_window(bar: Bar, dx: int, dy: int) -> tuple[slice, slice]:
    shift = dx if bar.upright else dy
    across = slice(max(0, bar.start + shift), max(0, bar.stop + shift))
    return (slice(None), across) if bar.upright else (across, slice(None))


def _paint_bar(canvas: Canvas, bar: Bar, dx: int, dy: int) -> None:
    """Draw a bar as a round post: bright along its middle, dark at its edges."""
    window = canvas[_bar_window(bar, dx, dy)]
    shift = dx if bar.upright else dy
    hidden = max(0, -(bar.start + shift))
    width = bar.stop - bar.start
    count = window.shape[1 if bar.upright else 0]
    across = (np.arange(hidden, hidden + count, dtype=np.float32) + np.float32(0.5)) / np.float32(width)
    profile = np.float32(0.55) + np.float32(2.2) * across * (1 - across)
    colours = profile[:, None] * bar.colour
    window[:] = colours[None] if bar.upright else colours[:, None]


def _noise(scene: Scene, frame: int) -> Float[np.ndarray, "h w 1"]:
    rng = np.random.default_rng((*scene.noise_entropy, frame))
    noise = rng.standard_normal((scene.size, scene.size, 1), np.float32)
    # Half a step more, because the conversion to whole numbers cuts off.
    return noise * np.float32(scene.noise) + np.float32(0.5)
