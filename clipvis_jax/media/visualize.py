"""Draw tracked instances on frames."""

import colorsys
from collections.abc import Sequence
from functools import reduce
from operator import and_

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from clipvis_jax.media.fonts import font_for

_GOLDEN_RATIO = 0.6180339887498949
_FILL_ALPHA = 110  # of 255
_Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two lie just outside


def track_color(track_id: int) -> tuple[int, int, int]:
    """Give a track's colour (red, green, blue): the same in every run, far from those of nearby ids."""
    # Each next multiple of the golden ratio, modulo 1, falls into the largest gap between those before.
    hue = track_id * _GOLDEN_RATIO % 1.0
    # Hues alone are hard to tell apart after a dozen.
    saturation, value = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.75))[track_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def color_palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """Give the colours of tracks 0 to n - 1."""
    return np.array([track_color(i) for i in range(n)], np.uint8).reshape(n, 3)


def draw_tracks(
    frame_u8: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    labels: Sequence[str],
    colors: UInt8[np.ndarray, "n 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw masks, their outlines and their labels on a copy of a frame.

    A mask is tinted, outlined by 1 to 3 pixels (by frame size) and labelled at its top; an empty one is left
    out, with its label. Labels stay inside the frame and move up or down so as not to cover one another; they
    overlap only where there is no room. Labels may be of any script.

    Args:
        frame_u8: the frame, RGB.
        masks: one mask per track, True inside.
        labels: one line of text per track.
        colors: one colour per track, RGB.
    """
    height, width = frame_u8.shape[:2]
    line_width = min(max(round(min(height, width) / 360), 1), 3)
    image = Image.fromarray(frame_u8)
    draw = ImageDraw.Draw(image)
    font_size = max(round(min(height, width) / 40), 11)

    # Only a mask's bounding box is touched: most masks are far smaller than the frame.
    tracks = []
    for mask, label, color in zip(masks, labels, colors.tolist(), strict=True):
        box = bounding_box(mask)
        if box is not None:
            left, top, right, bottom = box
            tracks.append((mask[top:bottom, left:right], box, label, tuple(color)))

    # Everything is tinted before anything is outlined: outlines stay crisp where masks overlap.
    for mask, box, _, color in tracks:
        image.paste(color, box, Image.fromarray(mask * np.uint8(_FILL_ALPHA)))
    for mask, box, _, color in tracks:
        image.paste(color, box, Image.fromarray(_outline(mask, line_width) * np.uint8(255)))

    placed: list[_Box] = []
    for mask, box, text, color in tracks:
        font, label = font_for(text, font_size)
        ascent, descent = font.getmetrics()
        margin = max(descent // 2, 1)
        anchor = box[0] + round(np.flatnonzero(mask[0]).mean()), box[1]
        label_size = round(font.getlength(label)) + 2 * margin, ascent + descent
        label_box = _place_label(anchor, label_size, (width, height), placed)
        placed.append(label_box)
        left, top, right, bottom = label_box
        draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
        draw.text((left + margin, top), label, _text_color(color), font)
    return np.array(image)


def bounding_box(mask: Bool[np.ndarray, "h w"]) -> _Box | None:
    """Return left, top, right and bottom of a mask, the last two just outside; None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return int(columns[0]), top, int(columns[-1]) + 1, bottom


def _outline(mask: Bool[np.ndarray, "h w"], line_width: int) -> Bool[np.ndarray, "h w"]:
    """Select the pixels of a mask that are less than `line_width` rows or columns from its outside."""
    height, width = mask.shape
    shifts = range(2 * line_width + 1)
    padded = np.pad(mask, line_width)
    # A square is taken off row by row and then column by column, which is far faster than scipy's erosion.
    core = reduce(and_, (padded[:, k : k + width] for k in shifts))
    core = reduce(and_, (core[k : k + height] for k in shifts))
    return mask & ~core


def _place_label(
    anchor: tuple[int, int], label_size: tuple[int, int], frame_size: tuple[int, int], placed: list[_Box]
) -> _Box:
    """Find the place right above `anchor` for a label, or else the nearest free one in that column.

    All are (x, y) or (width, height).
    """
    (label_width, label_height), (frame_width, frame_height) = label_size, frame_size
    # Where a label is larger than the frame, its beginning is shown.
    left = max(min(anchor[0] - label_width // 2, frame_width - label_width), 0)
    wanted = max(anchor[1] - label_height, 0)
    in_column = [box for box in placed if box[0] < left + label_width and left < box[2]]

    def is_free(top: int) -> bool:
        return 0 <= top <= frame_height - label_height and all(
            top + label_height <= box[1] or box[3] <= top for box in in_column
        )

    # The nearest free place is the wanted one, or it touches a label that is in the way.
    tops = [wanted, *(box[1] - label_height for box in in_column), *(box[3] for box in in_column)]
    top = min(filter(is_free, tops), key=lambda top: abs(top - wanted), default=wanted)
    return left, top, left + label_width, top + label_height


def _text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Choose black or white, whichever contrasts more."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
