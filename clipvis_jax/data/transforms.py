"""Augmentation: where a frame lands in the network's input, and its pixels and masks there.

A `View` is drawn first and holds all that chance decides; pixels and masks then follow it exactly, on the host, with
Pillow and pycocotools, which the authors' data loader also comes down to.
"""

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from clipvis_jax.data.records import Mask, Polygons
from clipvis_jax.errors import InputError
from clipvis_jax.masks.rle import measure

_MIN_POLYGON = 6
"""Numbers in a polygon of three corners; pycocotools would take four numbers for a box."""


@dataclasses.dataclass(frozen=True)
class View:
    """A frame's way into the network's input: mirror, resize, cut out, pad at the right and bottom.

    Sizes are (height, width) in pixels.

    Attributes:
        frame_size: The frame's own size.
        flip: Whether left and right change places.
        resized_size: The frame's size after resizing.
        offset: Top and left of the cut-out in the resized frame.
        canvas_size: The size of the input; what the cut-out does not fill is padding.
        padding: The value of padding that is part of the picture, 0..255. None: it is not, and the network sees zeros
            *after* normalisation there.
    """

    frame_size: tuple[int, int]
    flip: bool
    resized_size: tuple[int, int]
    offset: tuple[int, int]
    canvas_size: tuple[int, int]
    padding: int | None = None

    @property
    def content_size(self) -> tuple[int, int]:
        """Size of the frame's visible part, which lies at the top left of the canvas."""
        height, width = (
            min(resized - offset, canvas)
            for resized, offset, canvas in zip(self.resized_size, self.offset, self.canvas_size, strict=True)
        )
        return height, width

    @property
    def valid_size(self) -> tuple[int, int]:
        """Size of what the network takes for the picture: all but padding that is none of it."""
        return self.content_size if self.padding is None else self.canvas_size

    def frame(self, frame_u8: UInt8[np.ndarray, "h_frame w_frame 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return the canvas with the frame's pixels, resized bilinearly (and smoothed, where it shrinks)."""
        image = Image.fromarray(frame_u8)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Resized as a whole, then cut: Pillow's `box` would compute the cut-out alone, but rounds differently.
        image = image.resize(self.resized_size[::-1], Image.Resampling.BILINEAR)
        (top, left), (height, width) = self.offset, self.content_size
        canvas = np.full((*self.canvas_size, 3), self.padding or 0, np.uint8)
        canvas[:height, :width] = np.asarray(image.crop((left, top, left + width, top + height)))
        return canvas

    def mask(self, mask: Mask) -> UInt8[np.ndarray, "h w8"]:
        """Return an instance's mask on the canvas, eight pixels of a row to the byte, first pixel highest.

        Polygons are moved and scaled as coordinates, then drawn; run lengths are resized to the nearest pixel.

        Raises:
            InputError: Run lengths do not add up to the frame's pixels.
        """
        columns = self._resize(mask) if isinstance(mask, str) else self._draw(mask)
        # np.packbits is four times slower along this axis.
        octets = columns.reshape(-1, 8, self.canvas_size[0])
        packed = octets[:, 0] << 7
        for bit in range(1, 8):
            packed |= octets[:, bit] << (7 - bit)
        return packed.T

    def _draw(self, polygons: Polygons) -> UInt8[np.ndarray, "w h"]:
        """Draw polygons, together one mask, column by column."""
        # Differs from the authors' code: they clip polygons to the cut-out before they draw them, which may round other
        # pixels of the outline; here what lies outside is left out by the drawing itself. Theirs may reach from the
        # frame into the padding.
        height, width = self.canvas_size
        parts = []
        for polygon in polygons:
            if len(polygon) < _MIN_POLYGON:
                continue
            corners = self._move(np.asarray(polygon, float).reshape(-1, 2))
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            if right > 0 and bottom > 0 and left < self.content_size[1] and top < self.content_size[0]:
                # pycocotools rounds to fifths of a pixel, negative ones upwards. Rounded here, cuts change no outline.
                parts.append(np.where(corners < 0, (np.floor(5 * corners + 0.5) - 1) / 5, corners).ravel())
        if not parts:
            return np.zeros((width, height), np.uint8)
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).T
        drawn[self.content_size[1] :] = 0
        drawn[:, self.content_size[0] :] = 0
        return drawn

    def _move(self, corners: Float[np.ndarray, "corner 2"]) -> Float[np.ndarray, "corner 2"]:
        """Move corners (x and y in the frame) to the canvas."""
        x, y = corners.T
        if self.flip:
            x = self.frame_size[1] - x
        scale_y, scale_x = (new / old for new, old in zip(self.resized_size, self.frame_size, strict=True))
        return np.stack([x * scale_x - self.offset[1], y * scale_y - self.offset[0]], axis=1)

    def _resize(self, counts: str) -> UInt8[np.ndarray, "w h"]:
        """Resize a mask to the nearest pixel, column by column."""
        height, width = self.frame_size
        _, (total,) = measure([counts])
        if total != height * width:  # decoding it would write beyond the mask
            raise InputError(f"a mask's run lengths do not add up to {height} x {width} pixels; mend the annotations")
        columns = coco_mask.decode({"size": [height, width], "counts": counts}).T
        rows_from, columns_from = self._nearest
        canvas = np.zeros(self.canvas_size[::-1], np.uint8)
        canvas[: len(columns_from), : len(rows_from)] = columns[columns_from].take(rows_from, axis=1)
        return canvas

    @cached_property
    def _nearest(self) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """The frame's row and column that each visible row and column shows."""
        (top, left), (height, width) = self.offset, self.content_size
        rows = _nearest_pixels(self.frame_size[0], self.resized_size[0])[top : top + height]
        columns = _nearest_pixels(self.frame_size[1], self.resized_size[1])[left : left + width]
        return rows, self.frame_size[1] - 1 - columns if self.flip else columns


def _nearest_pixels(size_in: int, size_out: int) -> Int[np.ndarray, " out"]:
    """Return the pixel that Pillow's nearest resizing takes for each output pixel, its rounding of ties included."""
    ramp = Image.fromarray(np.arange(size_in, dtype=np.int32)[None])
    return np.asarray(ramp.resize((size_out, 1), Image.Resampling.NEAREST))[0]


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
    """Augmentation of still images: a frame fitted into the canvas times a random scale, cut out or padded.

    Matches the authors' code: Mask2Former's mapper "coco_instance_lsj", that is detectron2's ``RandomFlip``,
    ``ResizeScale`` and ``FixedSizeCrop``. The latter pads with 128 *before* normalisation, so the network sees grey
    there, not zeros, and the padding is part of the picture. One random number places the cut-out on both axes.

    Attributes:
        min_scale: The smallest scale.
        max_scale: The largest scale.
        flip_probability: How often left and right change places.
        padding: The value of padding, 0..255.
    """

    min_scale: float = 0.1
    max_scale: float = 2.0
    flip_probability: float = 0.5
    padding: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale:
            raise InputError(
                f"data.augmentation.min_scale {self.min_scale}: give a positive number, at most max_scale, "
                f"{self.max_scale}"
            )
        _check_probability(self.flip_probability)
        if not 0 <= self.padding <= 255:
            raise InputError(f"data.augmentation.padding {self.padding}: give a pixel value from 0 to 255")

    def draw(self, rng: np.random.Generator, frame_size: tuple[int, int], canvas_size: tuple[int, int]) -> View:
        """Draw a view of a frame; sizes are (height, width)."""
        flip = bool(rng.random() < self.flip_probability)
        scale = rng.uniform(self.min_scale, self.max_scale)
        factor = min(scale * canvas / frame for canvas, frame in zip(canvas_size, frame_size, strict=True))
        height, width = (max(1, round(size * factor)) for size in frame_size)
        place = rng.random()
        top, left = (
            round(max(resized - canvas, 0) * place)
            for resized, canvas in zip((height, width), canvas_size, strict=True)
        )
        return View(frame_size, flip, (height, width), (top, left), canvas_size, self.padding)


@dataclasses.dataclass(frozen=True)
class ShortSideResize:
    """Augmentation of video frames: the shorter side resized to a length drawn from a list; padding is no picture.

    The authors' configuration for YouTube-VIS names no lengths, so detectron2's defaults hold: 800, at most 1333,
    mirrored half of the time. This rests on their published configuration alone: their ``augmentation.py`` is not
    public and is taken to be Mask2Former's for video, whose own configurations draw from 360 and 480 instead. One
    frame per video is drawn, so its "by clip" variants change nothing.

    Differs from the authors' code: frames are padded to one size, not to the largest of their batch, and a frame that
    does not fit (held upright, for example) is shrunk until it does. Mirrored before resizing, not after.

    Attributes:
        short_sides: Lengths in pixels, all equally likely.
        max_long_side: The longer side is never longer, in pixels.
        flip_probability: How often left and right change places.
    """

    short_sides: tuple[int, ...] = (800,)
    max_long_side: int = 1333
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        if not self.short_sides or min(self.short_sides) < 1:
            raise InputError(f"data.augmentation.short_sides {self.short_sides}: give one or more positive lengths")
        if self.max_long_side < max(self.short_sides):
            raise InputError(
                f"data.augmentation.max_long_side {self.max_long_side}: give at least the longest of short_sides, "
                f"{max(self.short_sides)}"
            )
        _check_probability(self.flip_probability)

    def draw(self, rng: np.random.Generator, frame_size: tuple[int, int], canvas_size: tuple[int, int]) -> View:
        """Draw a view of a frame; sizes are (height, width)."""
        factor = self.short_sides[rng.integers(len(self.short_sides))] / min(frame_size)
        limits = (self.max_long_side / max(frame_size), *np.divide(canvas_size, frame_size).tolist())
        factor = min(factor, *limits)
        height, width = (max(1, int(size * factor + 0.5)) for size in frame_size)
        flip = bool(rng.random() < self.flip_probability)
        return View(frame_size, flip, (height, width), (0, 0), canvas_size)


def _check_probability(flip_probability: float) -> None:
    if not 0 <= flip_probability <= 1:
        raise InputError(f"data.augmentation.flip_probability {flip_probability}: give a number from 0 to 1")
