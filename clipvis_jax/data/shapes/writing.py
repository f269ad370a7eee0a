"""Shapes videos as files in YouTube-VIS format."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipvis_jax.data.fields import load_json
from clipvis_jax.data.json_file import JsonFile
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.data.shapes.dataset import ShapesDataset
from clipvis_jax.data.shapes.splits import SPLITS, WORLD_VERSION, ShapesConfig
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path, output_error, prepare_output_dir, write_text
from clipvis_jax.io.folder_lock import LOCK, locked_folder
from clipvis_jax.io.json_text import decode

ANNOTATIONS, IMAGES = "annotations.json", "JPEGImages"
_SETTINGS = "shapes.json"
_DESCRIPTION = "Shapes world"


def write_ytvis(
    config: ShapesConfig,
    out: str | Path,
    *,
    count: int | None = None,
    first: int = 0,
    show_progress: bool = False,
) -> Path:
    """Write videos as JPEGImages/VIDEO/FRAME.jpg and annotations.json (YouTube-VIS, with LV-VIS's ``partition``).

    A video's folder appears when it is complete and on disk, annotations.json at the very end. Called again with the
    same settings it goes on where it was stopped, or adds videos if ``count`` has grown; a video whose folder lacks
    frames is written anew.

    Args:
        config: Which world, split, size and length.
        out: Folder to write into; made if it does not exist.
        count: Number of videos; default: the split's.
        first: Number of the first video.
        show_progress: Show a progress bar.

    Returns:
        The path of annotations.json.

    Raises:
        InputError: The split has no masks or not so many videos, the folder holds something else, another process is
            writing there, or it cannot be written.
    """
    dataset = ShapesDataset(config, count, first)
    folder = prepare_output_dir(out)
    settings = {"version": WORLD_VERSION, **dataclasses.asdict(config), "first": first}
    _check(folder, settings)  # before the lock, which would leave its file in somebody's folder
    with locked_folder(folder, who="another process that writes Shapes videos"):
        _check(folder, settings)
        write_text(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        records = []
        try:
            for index in tqdm(range(len(dataset)), desc="videos", unit="video", disable=not show_progress):
                record = dataset[index]
                _write_frames(folder / IMAGES, dataset, index, record)
                records.append(record)
        except OSError as error:
            raise output_error(folder, error) from error
        target = folder / ANNOTATIONS
        with atomic_path(target) as path, path.open("w", encoding="utf-8") as file:
            json.dump(ytvis_annotations(dataset, records), file)
    return target


def split_of_file(annotations: Path) -> str | None:
    """Tell the split of an annotation file that `write_ytvis` wrote, by its ``info``; None for files of other origin.

    Raises:
        InputError: The file cannot be read, is not JSON, names no split, or is of another version of the world, whose
            scores would say nothing about this one.
    """
    members = JsonFile(annotations).members
    info = decode(members["info"], Any, f"{annotations}: info") if "info" in members else None
    if not isinstance(info, dict) or not str(info.get("description")).startswith(_DESCRIPTION):
        return None
    if info.get("split") not in SPLITS:
        raise InputError(f"{annotations}: info names no split of the Shapes world; write the videos again")
    if info["description"] != _description():
        raise InputError(f"{annotations}: of another version of the Shapes world; write the videos again")
    return info["split"]


def _description() -> str:
    return f"{_DESCRIPTION}, version {WORLD_VERSION}"


def ytvis_annotations(dataset: ShapesDataset, records: list[VideoRecord]) -> dict[str, Any]:
    """Return the content of an annotation file in YouTube-VIS format."""
    return {
        "info": {"description": _description(), **dataclasses.asdict(dataset.config)},
        "licenses": [],
        "videos": [
            {
                "id": record.id,
                "width": record.width,
                "height": record.height,
                "length": record.length,
                "file_names": list(record.file_names),
            }
            for record in records
        ],
        "categories": [
            {"id": category.id, "name": category.name, "supercategory": "shape", "partition": category.partition}
            for category in dataset.categories
        ],
        "annotations": [annotation for record in records for annotation in _annotations(record)],
    }


def _annotations(record: VideoRecord) -> list[dict[str, Any]]:
    size = [record.height, record.width]
    return [
        {
            "id": instance.id,
            "video_id": record.id,
            "category_id": instance.category_id,
            "iscrowd": int(instance.is_crowd),
            "height": record.height,
            "width": record.width,
            "length": record.length,
            "segmentations": [None if mask is None else {"size": size, "counts": mask} for mask in instance.masks],
            "bboxes": [None if box is None else list(box) for box in instance.boxes or ()],
            "areas": [None if area is None else int(area) for area in instance.areas or ()],
        }
        for instance in record.instances
    ]


def _check(folder: Path, settings: dict[str, Any]) -> None:
    """See to it that a folder is empty, or holds videos of the same settings."""
    path = folder / _SETTINGS
    if path.exists():
        if load_json(path) != settings:
            raise InputError(f"{folder}: holds Shapes videos of other settings (see {path}); choose another folder")
    elif any(entry.name != LOCK for entry in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no Shapes videos; choose another folder")


def _write_frames(images: Path, dataset: ShapesDataset, index: int, record: VideoRecord) -> None:
    """Write the frames of one video, if they are not there yet: all of them, or none. The folder has to be locked."""
    target = images / Path(record.file_names[0]).parent
    names = [Path(name).name for name in record.file_names]
    if all((target / name).is_file() and (target / name).stat().st_size for name in names):
        return
    unfinished = images / f".{target.name}"
    for folder in (target, unfinished):
        if folder.exists():
            shutil.rmtree(folder)  # what a killed process or a full disk left
    unfinished.mkdir(parents=True)
    for frame, name in enumerate(names):
        with (unfinished / name).open("wb") as file:
            file.write(dataset.read_frame(index, frame))
            file.flush()
            os.fsync(file.fileno())  # some file systems find out only now that they are full
    unfinished.rename(target)
