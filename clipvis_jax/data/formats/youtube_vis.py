"""YouTube-VIS format: YouTube-VIS 2019 and 2021, OVIS, LV-VIS, BURST as the authors convert it, your own videos."""

from typing import Annotated, Any

import msgspec

from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.parts import (
    Id,
    InstanceFields,
    RawBox,
    RawMask,
    Text,
    VideoFields,
    check_length,
    file_name,
    is_crowd,
    read_box,
    read_masks,
)
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import decode


class _Video(VideoFields):
    file_names: Annotated[list[Text], msgspec.Meta(min_length=1)]
    length: Id | None = None


class _Annotation(InstanceFields):
    video_id: Id
    segmentations: list[RawMask]
    bboxes: list[RawBox | None] | None = None
    areas: tuple[float | None, ...] | None = None


def _read_video(text: Any, where: str) -> VideoRecord:
    record: _Video = decode(text, _Video, where)
    names = record.file_names
    if record.length is not None and record.length != len(names):
        raise InputError(f"{where}.length is {record.length}, but there are {len(names)} file_names")
    return VideoRecord(
        record.id,
        record.height,
        record.width,
        tuple(file_name(name, f"{where}.file_names[{frame}]") for frame, name in enumerate(names)),
        neg_category_ids=record.neg_category_ids or (),
        not_exhaustive_category_ids=record.not_exhaustive_category_ids or (),
    )


def _read_instance(text: Any, where: str) -> tuple[int, Instance, list[int] | None]:
    record: _Annotation = decode(text, _Annotation, where)
    masks, size = read_masks(record.segmentations, f"{where}.segmentations")
    boxes = None
    if record.bboxes is not None:
        check_length(record.bboxes, len(masks), f"{where}.bboxes")
        boxes = tuple(read_box(box, f"{where}.bboxes[{frame}]") for frame, box in enumerate(record.bboxes))
    if record.areas is not None:
        check_length(record.areas, len(masks), f"{where}.areas")
    instance = Instance(record.id, record.category_id, is_crowd(record, where), masks, boxes, record.areas)
    return record.video_id, instance, size


YOUTUBE_VIS = Format(
    title="YouTube-VIS",
    videos="videos",
    annotations="annotations",
    read_video=_read_video,
    read_instance=_read_instance,
)
