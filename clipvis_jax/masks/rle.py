"""Masks as files hold them (polygons, run lengths, compressed run lengths): conversion, measuring, overlaps.

A mask is its compressed run lengths alone (COCO's ``counts`` as text); its size is its video's.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

_CHUNK = 128
"""Masks measured together: enough to make numpy's overhead small, few enough for the cache."""

_MAX_CHARS = 7
"""A number below 2**32 takes at most this many characters of 5 bits."""

MAX_SIDE = 2**15
"""Longest side of a video in pixels; pycocotools counts the pixels of a frame with 32 bits."""

_MAX_OUTLINE = 2e6
"""Pixels; pycocotools allocates about 80 bytes for each pixel of a polygon's outline, without bounds."""


def to_counts(mask: object, size: list[int]) -> tuple[str | None, list[int]]:
    """Convert a mask in any encoding to compressed run lengths.

    Args:
        mask: None or an empty list (no mask), polygons, or run lengths, compressed or not.
        size: Height and width of the video; polygons are drawn at this size. [0, 0] if it is not known.

    Returns:
        The compressed counts, None if there is no mask; and the mask's own size.

    Raises:
        ValueError: The mask cannot be used; the message says why in one line. Compressed counts are not
            decoded here, see `measure`.
    """
    if mask is None or mask == []:
        return None, size
    if isinstance(mask, list):
        return _from_polygons(mask, size), size
    if not isinstance(mask, dict) or "size" not in mask or "counts" not in mask:
        raise ValueError("is neither null, polygons nor a mask with 'size' and 'counts'")
    own, counts = mask["size"], mask["counts"]
    if own != size or not all(size):
        if (
            not isinstance(own, list | tuple)
            or len(own) != 2
            or not all(_is_integer(n) and 1 <= n <= MAX_SIDE for n in own)
        ):
            raise ValueError(f"size is {own!r:.60}, not [height, width] from 1 to {MAX_SIDE}")
        own = [int(n) for n in own]
    if own == size:
        own = size  # not the file's, whose numbers may be floats
    if isinstance(counts, list):
        return _compress(counts, own), own
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str) or not counts or not counts.isascii():
        raise ValueError("counts are neither COCO's compressed text nor a list of whole numbers")
    return counts, own


def check_polygon(polygon: Sequence[int | float]) -> None:
    """Make sure that a polygon (x and y by turns, in pixels) can be drawn in bounded memory.

    Raises:
        ValueError: The way from the origin to it and around it is too long, or one of its numbers is not finite.
    """
    if 4 * sum(map(abs, polygon)) < _MAX_OUTLINE:
        return  # a quick bound; NaN and infinity do not pass
    try:
        corners = np.array(polygon[: len(polygon) // 2 * 2], float).reshape(-1, 2)
        length = np.abs(np.diff(corners, axis=0, prepend=0, append=corners[:1])).sum()
    except OverflowError:  # a whole number that no float can hold
        length = np.inf
    if not length < _MAX_OUTLINE:
        raise ValueError(f"holds a polygon whose outline is longer than {_MAX_OUTLINE:.0f} pixels, or has no length")


def measure(texts: Sequence[str]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Decode compressed run lengths as far as needed to know their areas and whether they are sound.

    pycocotools does not check them: counts that do not add up to the mask's size send it into an endless loop.

    Returns:
        The areas in pixels, and how many pixels each mask describes in all, -1 where the text is broken.
    """
    areas, totals = np.zeros((2, len(texts)), np.int64)
    for start in range(0, len(texts), _CHUNK):
        stop = start + _CHUNK
        areas[start:stop], totals[start:stop] = _measure(texts[start:stop])
    return areas, totals


def overlaps(rows: Sequence[str], columns: Sequence[str], size: list[int]) -> Float[np.ndarray, "rows columns"]:
    """Return the intersection over union of all pairs of masks of one size; the counts must be sound."""
    left = [{"size": size, "counts": text} for text in rows]
    right = [{"size": size, "counts": text} for text in columns]
    return coco_mask.iou(left, right, [0] * len(right))


def empty_mask(size: list[int]) -> str:
    """Return the compressed run lengths of a mask without pixels."""
    return _compress([size[0] * size[1]], size)


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _from_polygons(polygons: list[Any], size: list[int]) -> str:
    """Draw polygons, together one mask."""
    parts = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(x, numbers.Real) for x in polygon):
            raise ValueError("holds a polygon that is not a list of numbers")
        if len(polygon) % 2:
            raise ValueError("holds a polygon with an odd count of numbers")
        check_polygon(polygon)
        if len(polygon) >= 6:  # less than three points have no area, and pycocotools would take four numbers for a box
            parts += coco_mask.frPyObjects([polygon], *size)
    return str(coco_mask.merge(parts)["counts"], "ascii") if parts else empty_mask(size)


def _compress(counts: list[Any], size: list[int]) -> str:
    if not all(_is_integer(n) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"counts are not whole numbers that add up to {size[0]} x {size[1]} pixels")
    return str(coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"], "ascii")


def _measure(texts: Sequence[str]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Measure one chunk of texts, none of them empty.

    A character holds 5 bits of a number, lowest first, and a flag that more follow; the last one holds the sign as
    well. From the fourth number on, a number is the difference from the one two places before it.
    """
    chars = np.frombuffer("".join(texts).encode("ascii"), np.uint8) - 48  # wraps around below 48
    lengths = np.array([len(text) for text in texts])
    stops = np.cumsum(lengths)
    is_last = (chars & 32) == 0
    ends = np.flatnonzero(is_last)
    digits = np.diff(ends, prepend=-1)
    broken = np.logical_or.reduceat(chars > 63, stops - lengths) | ~is_last[stops - 1]
    broken[np.searchsorted(stops, ends[digits > _MAX_CHARS], side="right")] = True
    if broken.any():
        areas, totals = np.zeros(len(texts), np.int64), np.full(len(texts), -1)
        if not broken.all():
            areas[~broken], totals[~broken] = _measure(
                [text for text, is_broken in zip(texts, broken, strict=True) if not is_broken]
            )
        return areas, totals

    last = (chars[ends] & 31).astype(np.int64)
    values = last - ((last & 16) << 1)
    place, longer = 1, np.flatnonzero(digits > 1)
    while len(longer):
        values[longer] = (values[longer] << 5) + (chars[ends[longer] - place] & 31)
        place += 1
        longer = longer[digits[longer] > place]

    # Numbers at even places count pixels outside the mask, those at odd places pixels inside.
    numbers_of = np.add.reduceat(is_last, stops - lengths, dtype=np.int64)
    pairs_of = (numbers_of + 1) // 2
    pair_stops = np.cumsum(pairs_of)
    pair_starts = pair_stops - pairs_of
    unpaired = pair_stops[numbers_of % 2 == 1] - 1
    occupied = np.ones((pair_stops[-1], 2), bool)
    occupied[unpaired, 1] = False
    pairs = np.zeros((pair_stops[-1], 2), np.int64)
    pairs[occupied] = values
    outside, inside = np.ascontiguousarray(pairs.T)
    has_third = pair_starts[numbers_of > 2]
    outside[has_third + 1] -= outside[has_third]  # the third number is no difference yet
    for runs in (outside, inside):
        runs[pair_starts[1:]] -= np.add.reduceat(runs, pair_starts)[:-1]  # every mask starts from zero
        np.cumsum(runs, out=runs)
    inside[unpaired] = 0
    areas = np.add.reduceat(inside, pair_starts)
    totals = areas + np.add.reduceat(outside, pair_starts)
    negative = np.minimum(np.minimum.reduceat(inside, pair_starts), np.minimum.reduceat(outside, pair_starts)) < 0
    return areas, np.where(negative, -1, totals)
