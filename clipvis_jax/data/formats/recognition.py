"""Tell the format of an annotation file from its keys."""

from collections.abc import Collection

from clipvis_jax.data.formats.burst import BURST
from clipvis_jax.data.formats.coco import COCO
from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.youtube_vis import YOUTUBE_VIS
from clipvis_jax.errors import InputError


def recognize_format(keys: Collection[str], source: str, expected: Format | None = None) -> Format:
    """Return the format of an annotation file whose outermost object has these keys.

    Raises:
        InputError: They are those of none of the formats, or of another one than is expected.
    """
    # Converted BURST files have images as well.
    found = next((known for known in (YOUTUBE_VIS, BURST, COCO) if known.videos in keys), None)
    if found is None:
        raise InputError(
            f"{source}: has neither 'videos' (YouTube-VIS format), 'images' (COCO format) nor 'sequences' (BURST "
            "format); give a whole annotation file in one of these formats"
        )
    if expected is not None and found is not expected:
        raise InputError(
            f"{source}: is in {found.title} format ('{found.videos}'), but {expected.title} format "
            f"('{expected.videos}') is needed; give another file"
        )
    return found
