"""Decoded frames of a data set, checked against its annotations."""

import numpy as np
from jaxtyping import UInt8

from clipvis_jax.data.records import Dataset, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.images import decode_image


def decode_frame(
    dataset: Dataset, index: int, frame: int, video: VideoRecord | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Read and decode one frame of video `index` as 8-bit RGB; `video` is its record, if it is at hand already.

    Raises:
        InputError: The image is missing, cannot be decoded, or has another size than the annotations say.
    """
    video = dataset[index] if video is None else video
    name = f"{dataset.name}: {video.file_names[frame]}"
    image_u8 = decode_image(dataset.read_frame(index, frame), name)
    check_frame_size(image_u8.shape[0], image_u8.shape[1], video, frame, dataset.name)
    return image_u8


def check_frame_size(height: int, width: int, video: VideoRecord, frame: int, dataset_name: str) -> None:
    """Make sure that a decoded frame has the size that the annotations say.

    Raises:
        InputError: It has another one.
    """
    if (height, width) != (video.height, video.width):
        raise InputError(
            f"{dataset_name}: {video.file_names[frame]} (video {video.id}) is {width}x{height} pixels, but the "
            f"annotations say {video.width}x{video.height}; use the images that the annotations were made for"
        )
