"""Parts of records that several formats share: masks, boxes, areas, file names, categories, ids."""

import math
from collections.abc import Sequence
from typing import Any

from clipvis_jax.data.fields import field, finite, integer_field, list_field, number_field, show
from clipvis_jax.data.records import Box, Category, Mask
from clipvis_jax.errors import InputError
from clipvis_jax.masks.rle import MAX_COORDINATE, to_counts

_UNKNOWN_SIZE = [0, 0]


def read_category(record: Any, where: str) -> Category:
    """Read a class, in any format.

    Raises:
        InputError: ``id`` or ``name`` is missing, or a field is wrong.
    """
    synonyms = list_field(record, "synonyms", where) if _has(record, "synonyms") else []
    partition = integer_field(record, "partition", where) if _has(record, "partition") else None
    return Category(
        integer_field(record, "id", where),
        text_field(record, "name", where),
        tuple(_text(name, f"{where}.synonyms[{i}]") for i, name in enumerate(synonyms)),
        text_field(record, "frequency", where) if _has(record, "frequency") else None,
        partition,
        text_field(record, "split", where) if _has(record, "split") else None,
    )


def text_field(record: Any, name: str, where: str) -> str:
    """Return a field that must be text, not empty.

    Raises:
        InputError: It is missing or something else.
    """
    return _text(field(record, name, where), f"{where}.{name}")


def ids_field(record: Any, name: str, where: str) -> tuple[int, ...]:
    """Return a list of ids, which may be missing.

    Raises:
        InputError: It is something else.
    """
    if not _has(record, name):
        return ()
    numbers = list_field(record, name, where)
    if not all(type(number) is int for number in numbers):
        raise InputError(f"{where}.{name} is {show(numbers)}; a list of whole numbers is needed")
    return tuple(numbers)


def crowd_field(record: Any, where: str) -> bool:
    """Return ``iscrowd`` (0, 1, false or true); False if it is missing.

    Raises:
        InputError: It is something else.
    """
    flag = record.get("iscrowd") or 0
    if flag not in (0, 1):
        raise InputError(f"{where}.iscrowd is {show(flag)}; 0 or 1 is needed")
    return bool(flag)


def file_name(name: object, where: str) -> str:
    """Return the path of a frame under the image folder, with forward slashes.

    Raises:
        InputError: It leads out of that folder, or is no text that can be written.
    """
    text = _text(name, where)
    # Matches the authors' code: of a path with backslashes (LV-VIS, BURST) the last two parts count.
    path = "/".join(text.split("\\")[-2:])
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InputError(f"{where} is {show(name)}, which leads out of the image folder; correct the file")
    return path


def read_masks(
    masks: Sequence[object], where: str, names: Sequence[str] | None = None
) -> tuple[tuple[Mask | None, ...], list[int] | None]:
    """Read the masks of one instance: null, polygons or run lengths, frame by frame.

    Polygons with less than three points or an odd count of numbers are left out, as the authors' loaders do. Counts
    that are compressed already are not looked into, see `clipvis_jax.masks.rle.measure`.

    Args:
        masks: One per frame.
        where: How messages call them; for frame 2, ``where[2]``.
        names: Or else how messages call each of them.

    Returns:
        The masks, and the size that those with run lengths have in common; None if there are no run lengths.

    Raises:
        InputError: A mask is none of the three, or run lengths have different sizes or do not add up to theirs.
    """
    read: list[Mask | None] = []
    size: list[int] | None = None
    for frame, mask in enumerate(masks):
        if mask is None or mask == []:
            read.append(None)
            continue
        place = names[frame] if names else f"{where}[{frame}]"
        if isinstance(mask, list):
            read.append(_polygons(mask, place))
            continue
        try:
            counts, own_size = to_counts(mask, _UNKNOWN_SIZE)
        except ValueError as error:
            raise InputError(f"{place} {error}") from error
        if size is not None and own_size != size:
            raise InputError(f"{place}.size is {own_size}, but an earlier mask of this instance has {size}")
        size = own_size
        read.append(counts)
    return tuple(read), size


def read_box(box: object, where: str) -> Box | None:
    """Read left, top, width and height; null or an empty list is no box.

    Raises:
        InputError: It is something else.
    """
    if box is None or box == []:
        return None
    if not isinstance(box, list) or len(box) != 4:
        raise InputError(f"{where} is {show(box)}; [left, top, width, height] is needed")
    left, top, width, height = (finite(number, where) for number in box)
    return left, top, width, height


def read_boxes(record: Any, name: str, where: str, length: int) -> tuple[Box | None, ...] | None:
    """Read one box per frame; None if the field is missing.

    Raises:
        InputError: It is something else.
    """
    boxes = _per_frame(record, name, where, length)
    if boxes is None:
        return None
    return tuple(read_box(box, f"{where}.{name}[{frame}]") for frame, box in enumerate(boxes))


def read_areas(record: Any, name: str, where: str, length: int) -> tuple[float | None, ...] | None:
    """Read one area per frame; None if the field is missing.

    Raises:
        InputError: It is something else.
    """
    areas = _per_frame(record, name, where, length)
    if areas is None:
        return None
    return tuple(None if area is None else finite(area, f"{where}.{name}[{frame}]") for frame, area in enumerate(areas))


def optional_number(record: Any, name: str, where: str) -> float | None:
    """Return a finite number; None if the field is missing.

    Raises:
        InputError: It is something else.
    """
    return number_field(record, name, where) if _has(record, name) else None


def _has(record: Any, name: str) -> bool:
    return isinstance(record, dict) and record.get(name) is not None


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} is {show(value)}; text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write one half of a pair of surrogates
        raise InputError(f"{where} is {show(value)}, which holds half a character; correct the file") from error
    return value


def _per_frame(record: Any, name: str, where: str, length: int) -> list[Any] | None:
    if not _has(record, name):
        return None
    values = list_field(record, name, where)
    if len(values) != length:
        raise InputError(f"{where}.{name} has {len(values)} entries for {length} frames")
    return values


def _polygons(polygons: list[Any], where: str) -> Mask | None:
    """Read polygons; None if none of them covers anything."""
    parts = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise InputError(f"{where} holds {show(polygon)}; a polygon is a list of numbers")
        try:
            # Adding up is the quick way to notice what is not finite.
            is_inside = math.isfinite(sum(polygon)) and max(map(abs, polygon), default=0) < MAX_COORDINATE
        except OverflowError:  # a whole number that no float can hold
            is_inside = False
        if not is_inside:
            raise InputError(f"{where} holds a polygon with a number that is not a coordinate: {show(polygon)}")
        if len(polygon) % 2 == 0 and len(polygon) >= 6:
            parts.append(tuple(map(float, polygon)))
    return tuple(parts) or None
