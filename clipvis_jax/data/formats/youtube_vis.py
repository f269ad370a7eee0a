"""YouTube-VIS format: YouTube-VIS 2019 and 2021, OVIS, LV-VIS, BURST as the authors convert it, your own videos."""

from typing import Any

from clipvis_jax.data.fields import integer_field, list_field
from clipvis_jax.data.formats.format import MAX_SIDE, Format
from clipvis_jax.data.formats.parts import crowd_field, file_name, ids_field, read_areas, read_boxes, read_masks
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError


def _read_video(record: Any, where: str) -> VideoRecord:
    number = integer_field(record, "id", where)
    height, width = (integer_field(record, name, where, 1, MAX_SIDE) for name in ("height", "width"))
    names = list_field(record, "file_names", where)
    if not names:
        raise InputError(f"{where}.file_names is empty; a video needs at least one frame")
    if record.get("length") is not None and integer_field(record, "length", where, 1) != len(names):
        raise InputError(f"{where}.length is {record['length']}, but there are {len(names)} file_names")
    return VideoRecord(
        number,
        height,
        width,
        tuple(file_name(name, f"{where}.file_names[{frame}]") for frame, name in enumerate(names)),
        neg_category_ids=ids_field(record, "neg_category_ids", where),
        not_exhaustive_category_ids=ids_field(record, "not_exhaustive_category_ids", where),
    )


def _read_instance(record: Any, where: str) -> tuple[int, Instance, list[int] | None]:
    number, video_id, category_id = (integer_field(record, name, where) for name in ("id", "video_id", "category_id"))
    segmentations = list_field(record, "segmentations", where)
    masks, size = read_masks(segmentations, f"{where}.segmentations")
    instance = Instance(
        number,
        category_id,
        crowd_field(record, where),
        masks,
        read_boxes(record, "bboxes", where, len(masks)),
        read_areas(record, "areas", where, len(masks)),
    )
    return video_id, instance, size


YOUTUBE_VIS = Format(
    title="YouTube-VIS",
    videos="videos",
    annotations="annotations",
    read_video=_read_video,
    read_instance=_read_instance,
)
