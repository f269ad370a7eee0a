"""What was imported, written as a data set: annotations.json and its pictures below JPEGImages."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from clipvis_jax.data.importing.found import Found, FoundInstance, FoundVideo, FrameFile
from clipvis_jax.errors import InputError
from clipvis_jax.media.video_reader import open_frames

ANNOTATIONS, IMAGES = "annotations.json", "JPEGImages"
_MAX_NAME = 200
"""Bytes of a file's name; systems allow 255, of which some are for numbers that tell like names apart."""

_QUALITY = 95
"""Of JPEG files that frames of a video become; the masks were drawn on pictures that were compressed as well."""


def write_found(found: Found, folder: Path, *, link: bool = False, show_progress: bool = False) -> dict[str, str]:
    """Fill a folder with annotations.json and JPEGImages; with several splits, a folder of that kind for each.

    Videos are in YouTube-VIS format, pictures in COCO format. Ids count from 1, and are those of the source in
    ``track_id``. Classes without instances are left out; the ids of the others are the same in all splits.

    Args:
        found: What is written.
        folder: An empty folder.
        link: Make hard links to pictures in place of copies.
        show_progress: Show a progress bar.

    Returns:
        By the annotation files' names below the folder, what they hold.

    Raises:
        InputError: There is nothing to write, or a picture cannot be copied or a frame not be decoded.
    """
    used = dict.fromkeys(instance.label for video in found.videos for instance in video.instances)
    if not used:
        raise InputError("the source has no instance with a mask; nothing to import")
    labels = [label for label in dict.fromkeys(label.strip() for label in found.labels) if label in used]
    category_ids = {label: number for number, label in enumerate(dict.fromkeys((*labels, *used)), start=1)}
    splits = dict.fromkeys(video.split for video in found.videos)
    written = {}
    with tqdm(unit="frame", disable=not show_progress, delay=3) as bar:
        bar.total = sum(len(video.frames) for video in found.videos)
        for split in splits:
            videos = [video for video in found.videos if video.split == split]
            name = _safe(split) if len(splits) > 1 else ""
            (folder / name / IMAGES).mkdir(parents=True)
            names = list(_write_images(folder / name / IMAGES, videos, bar, link=link, in_folders=found.is_video))
            write = _youtube_vis if found.is_video else _coco
            document = write(videos, names, category_ids)
            (folder / name / ANNOTATIONS).write_text(json.dumps(document), encoding="utf-8")
            frames, count = sum(map(len, names)), len(document["annotations"])
            what = f"{_count(len(videos), 'video')}, {_count(frames, 'frame')}" if found.is_video else ""
            counts = f"{what or _count(frames, 'picture')}, {_count(count, 'instance')}"
            classes = len({instance.label for video in videos for instance in video.instances})
            written[f"{name}/{ANNOTATIONS}".lstrip("/")] = f"{counts} of {_count(classes, 'class', 'es')}"
    return written


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _write_images(
    folder: Path, videos: list[FoundVideo], bar: tqdm, *, link: bool, in_folders: bool
) -> Iterator[list[str]]:
    """Write the pictures of every video; yields their names below the folder."""
    taken: set[str] = set()
    for video in videos:
        below = folder
        names = taken
        if in_folders:
            below, names = folder / _unique(_safe(video.name), taken), set()
            below.mkdir()
        targets = [below / _unique(_safe(frame.name), names) for frame in video.frames]
        if video.frames[0].number is None:
            for frame, target in zip(video.frames, targets, strict=True):
                _place(frame.path, target, link=link)
                bar.update()
        else:
            _decode(video.frames, targets, bar)
        yield [target.relative_to(folder).as_posix() for target in targets]


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise InputError(f"{source}: cannot be linked ({error.strerror}); let it be copied") from error
            raise
    else:
        shutil.copyfile(source, target)


def _decode(frames: list[FrameFile], targets: list[Path], bar: tqdm) -> None:
    """Write frames of a video as JPEG files."""
    path = frames[0].path
    wanted = {frame.number: target for frame, target in zip(frames, targets, strict=True)}
    for number, image in open_frames(path):
        if number in wanted:
            Image.fromarray(image).save(wanted.pop(number), "JPEG", quality=_QUALITY, subsampling=0)
            bar.update()
        if not wanted:
            return
    raise InputError(
        f"{path}: has no frame {min(n for n in wanted if n is not None)}; give the video that was annotated"
    )


def _safe(name: str) -> str:
    """Return a name for a file or folder that is one on any system, and leads nowhere."""
    safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    while len(safe.encode()) > _MAX_NAME:
        middle = len(safe) // 2  # the end is the suffix, and often a number
        safe = safe[: middle - 1] + safe[middle + 1 :]
    return safe or "_"


def _unique(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, also where capitals do not count, and take it."""
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    number, unique = 1, name
    while unique.casefold() in taken:
        number += 1
        unique = f"{stem}_{number}{dot}{suffix}"
    taken.add(unique.casefold())
    return unique


def _instance(instance: FoundInstance, identity: int, category_ids: dict[str, int]) -> dict[str, Any]:
    own = {} if instance.track_id is None else {"track_id": instance.track_id}
    crowd = int(instance.is_crowd)
    return {"id": identity, "category_id": category_ids[instance.label], "iscrowd": crowd, **own}


def _measured(mask: dict[str, Any] | None) -> tuple[int | None, list[float] | None]:
    return (None, None) if mask is None else (int(coco_mask.area(mask)), coco_mask.toBbox(mask).tolist())


def _document(category_ids: dict[str, int]) -> dict[str, Any]:
    return {"info": {}, "licenses": [], "categories": [{"id": id_, "name": name} for name, id_ in category_ids.items()]}


def _youtube_vis(videos: list[FoundVideo], names: list[list[str]], category_ids: dict[str, int]) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video_id, (video, files) in enumerate(zip(videos, names, strict=True), start=1):
        height, width = video.size
        facts = {"height": height, "width": width, "length": len(files)}
        records.append({"id": video_id, "name": video.name, **facts, "file_names": files})
        for instance in video.instances:
            counts = [instance.masks.get(frame) for frame in range(len(files))]
            masks = [None if text is None else {"size": list(video.size), "counts": text} for text in counts]
            areas, boxes = zip(*map(_measured, masks), strict=True)
            record = _instance(instance, len(annotations) + 1, category_ids) | {"video_id": video_id, **facts}
            annotations.append(record | {"segmentations": masks, "areas": areas, "bboxes": boxes})
    return _document(category_ids) | {"videos": records, "annotations": annotations}


def _coco(pictures: list[FoundVideo], names: list[list[str]], category_ids: dict[str, int]) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (picture, (file,)) in enumerate(zip(pictures, names, strict=True), start=1):
        height, width = picture.size
        records.append({"id": image_id, "height": height, "width": width, "file_name": file})
        for instance in picture.instances:
            mask = {"size": list(picture.size), "counts": instance.masks[0]}
            area, box = _measured(mask)
            record = _instance(instance, len(annotations) + 1, category_ids) | {"image_id": image_id}
            annotations.append(record | {"segmentation": mask, "area": area, "bbox": box})
    return _document(category_ids) | {"images": records, "annotations": annotations}
