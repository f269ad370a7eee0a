"""COCO format for images: COCO 2017, LVIS v1, your own images. An image is a video of one frame."""

from typing import Any

from clipvis_jax.data.fields import field, integer_field
from clipvis_jax.data.formats.format import MAX_SIDE, Format
from clipvis_jax.data.formats.parts import (
    crowd_field,
    file_name,
    ids_field,
    optional_number,
    read_box,
    read_masks,
    text_field,
)
from clipvis_jax.data.records import Instance, VideoRecord


def _read_image(record: Any, where: str) -> VideoRecord:
    number = integer_field(record, "id", where)
    height, width = (integer_field(record, name, where, 1, MAX_SIDE) for name in ("height", "width"))
    if "file_name" not in record and "coco_url" in record:
        # LVIS has no file names; its images lie under COCO's folders: http://images.cocodataset.org/train2017/1.jpg
        name = file_name("/".join(text_field(record, "coco_url", where).split("/")[-2:]), f"{where}.coco_url")
    else:
        name = file_name(field(record, "file_name", where), f"{where}.file_name")
    return VideoRecord(
        number,
        height,
        width,
        (name,),
        neg_category_ids=ids_field(record, "neg_category_ids", where),
        not_exhaustive_category_ids=ids_field(record, "not_exhaustive_category_ids", where),
    )


def _read_instance(record: Any, where: str) -> tuple[int, Instance, list[int] | None]:
    number, image_id, category_id = (integer_field(record, name, where) for name in ("id", "image_id", "category_id"))
    place = f"{where}.segmentation"
    masks, size = read_masks([field(record, "segmentation", where)], place, names=[place])
    box = read_box(record.get("bbox"), f"{where}.bbox")
    area = optional_number(record, "area", where)
    instance = Instance(
        number,
        category_id,
        crowd_field(record, where),
        masks,
        None if box is None else (box,),
        None if area is None else (area,),
    )
    return image_id, instance, size


COCO = Format(
    title="COCO",
    videos="images",
    annotations="annotations",
    read_video=_read_image,
    read_instance=_read_instance,
)
