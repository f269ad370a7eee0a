"""COCO format for images: COCO 2017, LVIS v1, your own images. An image is a video of one frame."""

from typing import Any

from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.parts import (
    Id,
    InstanceFields,
    RawBox,
    RawMask,
    Text,
    VideoFields,
    file_name,
    is_crowd,
    read_box,
    read_masks,
)
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import decode


class _Image(VideoFields):
    file_name: Text | None = None
    coco_url: str | None = None


class _Annotation(InstanceFields):
    image_id: Id
    segmentation: RawMask
    bbox: RawBox | None = None
    area: float | None = None


def _read_image(text: Any, where: str) -> VideoRecord:
    record: _Image = decode(text, _Image, where)
    if record.file_name:
        name = file_name(record.file_name, f"{where}.file_name")
    elif record.coco_url:
        # LVIS has no file names; its images lie under COCO's folders: http://images.cocodataset.org/train2017/1.jpg
        name = file_name("/".join(record.coco_url.split("/")[-2:]), f"{where}.coco_url")
    else:
        raise InputError(f"{where} has no 'file_name'")
    return VideoRecord(
        record.id,
        record.height,
        record.width,
        (name,),
        neg_category_ids=record.neg_category_ids or (),
        not_exhaustive_category_ids=record.not_exhaustive_category_ids or (),
    )


def _read_instance(text: Any, where: str) -> tuple[int, Instance, list[int] | None]:
    record: _Annotation = decode(text, _Annotation, where)
    place = f"{where}.segmentation"
    masks, size = read_masks([record.segmentation], place, names=[place])
    box = read_box(record.bbox, f"{where}.bbox")
    instance = Instance(
        record.id,
        record.category_id,
        is_crowd(record, where),
        masks,
        None if box is None else (box,),
        None if record.area is None else (record.area,),
    )
    return record.image_id, instance, size


COCO = Format(
    title="COCO",
    videos="images",
    annotations="annotations",
    read_video=_read_image,
    read_instance=_read_instance,
)
