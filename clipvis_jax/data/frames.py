"""Decoded frames of a data set, checked against its annotations."""

import numpy as np
from jaxtyping import UInt8

from clipvis_jax.data.records import Dataset, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.media.images import decode_image


def decode_frame(dataset: Dataset, index: int, frame: int, video: VideoRecord) -> UInt8[np.ndarray, "h w 3"]:
    """Read and decode one frame of a data set's video `index`, whose record is `video`, as 8-bit RGB.

    Raises:
        InputError: The image is missing, cannot be read or decoded, or has another size than the annotations say.
    """
    name = f"{dataset.name}: {video.file_names[frame]}"
    try:
        encoded = dataset.read_frame(index, frame)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    image_u8 = decode_image(encoded, name)
    height, width = image_u8.shape[:2]
    if (height, width) != (video.height, video.width):
        raise InputError(
            f"{name} (video {video.id}) is {width}x{height} pixels, but the annotations say "
            f"{video.width}x{video.height}; use the images that the annotations were made for"
        )
    return image_u8
