"""Results for others: COCO's format, and the archive that evaluation servers take."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import Result, Video
from clipvis_jax.io.files import atomic_path
from clipvis_jax.masks.rle import empty_mask

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""A fixed time, so that the same results give the same archive."""


def write_submission(
    path: Path,
    results: Sequence[Result],
    videos: Mapping[int, Video],
    *,
    is_images: bool = False,
    max_megabytes: float | None = None,
) -> None:
    """Write results for an evaluation server: a list in YouTube-VIS format, compressed.

    Args:
        path: The archive to write.
        results: What was found.
        videos: The videos of the results, by id.
        is_images: Write COCO's format instead.
        max_megabytes: The server's limit, in units of 10**6 bytes; None if there is none.

    Raises:
        InputError: The archive is larger than the server takes (none is left then), or cannot be written.
    """
    with atomic_path(path) as temporary:
        entry = zipfile.ZipInfo("results.json", _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        with (
            zipfile.ZipFile(temporary, "w", compresslevel=9) as archive,
            archive.open(entry, "w", force_zip64=True) as target,
        ):
            _write_records(target.write, results, videos, is_images)
        size = temporary.stat().st_size / 1e6
        if max_megabytes is not None and size > max_megabytes:
            raise InputError(
                f"{path}: would have {size:.1f} MB, but the server takes {max_megabytes:g} MB; "
                "ask for fewer results, or raise max_megabytes if the server takes more"
            )


def write_coco_results(path: Path, results: Sequence[Result], videos: Mapping[int, Video]) -> None:
    """Write results of images in COCO's format: ``image_id``, ``category_id``, ``bbox``, ``score``, ``segmentation``.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as target:
        _write_records(target.write, results, videos, is_images=True)


def _write_records(
    write: Callable[[bytes], object], results: Sequence[Result], videos: Mapping[int, Video], is_images: bool
) -> None:
    # One by one: the text of all results may be large.
    record = _image_record if is_images else _record
    write(b"[")
    for index, result in enumerate(results):
        text = json.dumps(record(result, videos[result.video_id].size))
        write(f"{',' if index else ''}\n{text}".encode())
    write(b"\n]\n")


def _image_record(result: Result, size: list[int]) -> dict[str, object]:
    mask = {"size": size, "counts": result.track.counts[0] or empty_mask(size)}
    return {
        "image_id": result.video_id,
        "category_id": result.category_id,
        "bbox": coco_mask.toBbox(mask).tolist(),
        "score": result.score,
        "segmentation": mask,
    }


def _record(result: Result, size: list[int]) -> dict[str, object]:
    masks = [None if counts is None else {"size": size, "counts": counts} for counts in result.track.counts]
    return {
        "video_id": result.video_id,
        "category_id": result.category_id,
        "score": result.score,
        "segmentations": masks,
    }
