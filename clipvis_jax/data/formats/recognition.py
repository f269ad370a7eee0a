"""Tell the format of an annotation file from its keys, reading no more of it than is needed."""

from pathlib import Path

from clipvis_jax.data.formats.burst import BURST
from clipvis_jax.data.formats.coco import COCO
from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.youtube_vis import YOUTUBE_VIS
from clipvis_jax.data.json_stream import JsonStream
from clipvis_jax.errors import InputError

_LISTS = {"videos": YOUTUBE_VIS, "sequences": BURST}
_REFERENCES = {"video_id": YOUTUBE_VIS, "image_id": COCO}


def recognize_format(path: Path) -> Format:
    """Return the format of an annotation file.

    Raises:
        InputError: It cannot be read, is not JSON, or looks like none of the formats.
    """
    has_images = False
    for entry in JsonStream(path):
        if entry.key in _LISTS:
            return _LISTS[entry.key]
        # Converted BURST files have images as well; only what the annotations refer to decides.
        has_images |= entry.key == "images"
        if entry.key == "annotations" and isinstance(entry.value, dict):
            for reference, annotation_format in _REFERENCES.items():
                if reference in entry.value:
                    return annotation_format
    if has_images:
        return COCO
    raise InputError(
        f"{path}: has neither 'videos' (YouTube-VIS format), 'images' (COCO format) nor 'sequences' (BURST format); "
        "give an annotation file in one of these formats"
    )


def check_format(path: Path, expected: Format) -> None:
    """Make sure that an annotation file has the expected format.

    Raises:
        InputError: It has another one; the message says which.
    """
    found = recognize_format(path)
    if found is not expected:
        raise InputError(
            f"{path}: is in {found.title} format ('{found.videos}'), but {expected.title} format "
            f"('{expected.videos}') is needed; give another file"
        )
