"""What an annotation format has to say."""

import dataclasses
from collections.abc import Callable
from typing import Any

from clipvis_jax.data.records import Instance, VideoRecord


@dataclasses.dataclass(frozen=True)
class Format:
    """An annotation format: one JSON object with lists of videos, categories and perhaps instances.

    The functions take the JSON text of a record, check it and raise `InputError`; the last argument says how messages
    call it.

    Attributes:
        title: For messages.
        videos: The key of the list of videos, or images.
        annotations: The key of the list of instances; None if the videos hold them.
        read_video: Turns a record of ``videos`` into ours. With instances only if there is no such list; their ids
            then count from 0 within the video.
        read_instance: Turns a record of ``annotations`` into the id of its video, our record, and the size that its
            run lengths have (None if there are none).
    """

    title: str
    videos: str
    annotations: str | None
    read_video: Callable[[Any, str], VideoRecord]
    read_instance: Callable[[Any, str], tuple[int, Instance, list[int] | None]] | None = None
