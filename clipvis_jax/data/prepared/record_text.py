"""Videos with their instances as text (JSON), without loss."""

import msgspec

from clipvis_jax.data.formats.parts import check_length
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import decode
from clipvis_jax.masks.rle import check_polygon, measure


def video_to_text(video: VideoRecord) -> str:
    """Write a video with its instances as one line."""
    return msgspec.json.encode(video).decode()


def video_from_text(text: str | bytes, where: str = "text of a video") -> VideoRecord:
    """Read what `video_to_text` wrote; ``where`` is what messages call it.

    Raises:
        InputError: It is something else.
    """
    video: VideoRecord = decode(text, VideoRecord, where)
    for number, instance in enumerate(video.instances):
        place = f"{where}.instances[{number}]"
        for name in ("masks", "boxes", "areas"):
            values = getattr(instance, name)
            if values is not None:
                check_length(values, video.length, f"{place}.{name}")
        try:
            for polygon in (part for mask in instance.masks if isinstance(mask, tuple) for part in mask):
                check_polygon(polygon)
        except ValueError as error:
            raise InputError(f"{place}.masks: {error}") from error
    counts = [mask for instance in video.instances for mask in instance.masks if isinstance(mask, str)]
    if (measure(counts)[1] != video.height * video.width).any():
        raise InputError(f"{where}: has a mask whose counts do not add up to its size")
    return video
