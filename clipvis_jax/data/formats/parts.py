"""Parts of records that several formats share: masks, boxes, file names, categories, ids."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from clipvis_jax.data.records import Box, Category, Mask, Polygons
from clipvis_jax.errors import InputError, show
from clipvis_jax.io.json_text import decode
from clipvis_jax.masks.rle import MAX_SIDE, check_polygon, to_counts

Id = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""Beyond, a float cannot tell two neighbouring numbers apart."""

Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
RawBox = tuple[float, ...]


class RunLengths(msgspec.Struct):
    """Run lengths, compressed or not."""

    size: tuple[Side, Side]
    counts: Text | list[int]


RawMask = Polygons | RunLengths | None


class VideoFields(msgspec.Struct, kw_only=True):
    """What all formats say of a video or an image."""

    id: Id
    height: Side
    width: Side
    neg_category_ids: tuple[Id, ...] | None = None
    not_exhaustive_category_ids: tuple[Id, ...] | None = None


class InstanceFields(msgspec.Struct, kw_only=True):
    """What formats with a list of instances say of each."""

    id: Id
    category_id: Id
    iscrowd: float | bool | None = None


class _CategoryFields(msgspec.Struct):
    id: Id
    name: Text
    synonyms: tuple[Text, ...] | None = None
    frequency: Literal["f", "c", "r"] | None = None
    partition: Id | None = None
    split: Text | None = None


def read_category(text: Any, where: str) -> Category:
    """Read a class, in any format.

    Raises:
        InputError: ``id`` or ``name`` is missing, or a field is wrong.
    """
    record: _CategoryFields = decode(text, _CategoryFields, where)
    return Category(record.id, record.name, record.synonyms or (), record.frequency, record.partition, record.split)


def is_crowd(record: InstanceFields, where: str) -> bool:
    """Return ``iscrowd`` (0, 1, false or true); False if it is missing.

    Raises:
        InputError: It is something else.
    """
    flag = record.iscrowd or 0
    if flag not in (0, 1):
        raise InputError(f"{where}.iscrowd is {show(flag)}; 0 or 1 is needed")
    return bool(flag)


def file_name(name: str, where: str) -> str:
    """Return the path of a frame under the image folder, with forward slashes.

    Raises:
        InputError: It leads out of that folder.
    """
    # Matches the authors' code: of a path with backslashes (LV-VIS, BURST) the last two parts count.
    path = "/".join(name.split("\\")[-2:])
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InputError(f"{where} is {show(name)}, which leads out of the image folder; correct the file")
    return path


def read_masks(
    masks: Sequence[RawMask], where: str, names: Sequence[str] | None = None
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
        InputError: A mask cannot be used, or run lengths have different sizes or do not add up to theirs.
    """
    read: list[Mask | None] = []
    size: list[int] | None = None
    for frame, mask in enumerate(masks):
        if not mask:
            read.append(None)
            continue
        place = names[frame] if names else f"{where}[{frame}]"
        try:
            if isinstance(mask, tuple):
                for polygon in mask:
                    check_polygon(polygon)
                read.append(tuple(part for part in mask if len(part) % 2 == 0 and len(part) >= 6) or None)
                continue
            own_size = list(mask.size)
            if isinstance(mask.counts, str) and mask.counts.isascii():
                counts: str | None = mask.counts
            else:
                counts, _ = to_counts({"size": own_size, "counts": mask.counts}, own_size)
        except ValueError as error:
            raise InputError(f"{place} {error}; correct the file") from error
        if size is not None and own_size != size:
            raise InputError(f"{place}.size is {own_size}, but an earlier mask of this instance has {size}")
        size = own_size
        read.append(counts)
    return tuple(read), size


def read_box(box: RawBox | None, where: str) -> Box | None:
    """Read left, top, width and height; null or an empty list is no box.

    Raises:
        InputError: It is something else.
    """
    if not box:
        return None
    if len(box) != 4:
        raise InputError(f"{where} is {show(list(box))}; [left, top, width, height] is needed")
    return box


def check_length(values: Sequence[Any], length: int, where: str) -> None:
    """Make sure that there is one value per frame.

    Raises:
        InputError: There are more, or fewer.
    """
    if len(values) != length:
        raise InputError(f"{where} has {len(values)} entries for {length} frames")
