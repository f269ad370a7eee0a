"""Videos with their instances as text (JSON), without loss."""

import json
from typing import Any

from clipvis_jax.data.records import Category, Instance, Mask, VideoRecord


def video_to_text(video: VideoRecord) -> str:
    """Write a video with its instances as one line."""
    content = {
        "id": video.id,
        "height": video.height,
        "width": video.width,
        "file_names": video.file_names,
        "neg_category_ids": video.neg_category_ids,
        "not_exhaustive_category_ids": video.not_exhaustive_category_ids,
        "instances": [
            {
                "id": instance.id,
                "category_id": instance.category_id,
                "is_crowd": instance.is_crowd,
                "masks": instance.masks,
                "boxes": instance.boxes,
                "areas": instance.areas,
            }
            for instance in video.instances
        ],
    }
    return json.dumps(content, separators=(",", ":"))


def video_from_text(text: str | bytes) -> VideoRecord:
    """Read what `video_to_text` wrote."""
    content = json.loads(text)
    return VideoRecord(
        content["id"],
        content["height"],
        content["width"],
        tuple(content["file_names"]),
        tuple(_instance(record) for record in content["instances"]),
        tuple(content["neg_category_ids"]),
        tuple(content["not_exhaustive_category_ids"]),
    )


def category_to_json(category: Category) -> dict[str, Any]:
    """Return a category's fields, those that have nothing left out."""
    fields = {name: getattr(category, name) for name in Category.__slots__}
    return {name: value for name, value in fields.items() if value not in (None, ())}


def category_from_json(record: dict[str, Any]) -> Category:
    """Read what `category_to_json` returned."""
    return Category(**record | {"synonyms": tuple(record.get("synonyms", ()))})


def _instance(record: dict[str, Any]) -> Instance:
    boxes, areas = record["boxes"], record["areas"]
    return Instance(
        record["id"],
        record["category_id"],
        record["is_crowd"],
        tuple(map(_mask, record["masks"])),
        None if boxes is None else tuple(None if box is None else tuple(box) for box in boxes),
        None if areas is None else tuple(areas),
    )


def _mask(mask: str | list[list[float]] | None) -> Mask | None:
    return tuple(map(tuple, mask)) if isinstance(mask, list) else mask
