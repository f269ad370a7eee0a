"""COCO files of annotation tools: CVAT's (masks of a track are told by ``track_id``), Roboflow's and Label Studio's.

Read by the schemas that our own COCO files are read by: datumaro, which reads these files too, brings 14 packages with
pandas, pyarrow and OpenCV, and labelformat drops the track ids.
"""

import dataclasses
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from clipvis_jax.data.formats import COCO, recognize_format
from clipvis_jax.data.formats.parts import read_category
from clipvis_jax.data.importing.found import Found, FoundVideo, FrameFile, Pictures, check_size
from clipvis_jax.data.json_file import JsonFile
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import decode
from clipvis_jax.media.images import natural_order


class _Attributes(msgspec.Struct):
    track_id: int | str | None = None


class _Track(msgspec.Struct):
    """Where a track's id stands: CVAT's among the attributes, that of our own export beside them."""

    track_id: int | str | None = None
    attributes: _Attributes | None = None


@dataclasses.dataclass
class _File:
    """The records of a file.

    Attributes:
        path: The file.
        labels: Names by id.
        images: By id.
        masks: For each annotation its image's id, itself, the id of its track, its size if it tells one, and its name.
    """

    path: Path
    labels: dict[int, str]
    images: dict[int, VideoRecord]
    masks: list[tuple[int, Instance, int | str | None, list[int] | None, str]]


def read_cvat(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read CVAT's "COCO 1.0" exports, one task each; and what ``export-results --coco`` wrote.

    Masks with track ids make videos: the pictures of a file, or of each of its folders if it names several. CVAT marks
    every mask that is no polygon as a crowd; they are taken as instances.

    Raises:
        InputError: A file or picture is missing or cannot be used.
    """
    files: list[_File] = []
    for source in sources:
        paths = find_files(source, "annotations/instances_*.json", "*.json", "*/annotations/instances_*.json")
        files += map(read_coco, paths)
    is_video = any(mask[2] is not None for file in files for mask in file.masks)
    found = Found(is_video, [], [])
    for file in files:
        folder = file.path.parent
        root = folder.parent if folder.name == "annotations" else folder
        split = file.path.stem.removeprefix("instances_") if file.path.stem.startswith("instances_") else ""
        split = "" if split == "default" else split
        name = root.resolve().name
        pictures = Pictures(images, root / "images" / (split or "default"), root / "images", folder).below(name)
        add_coco(found, file, pictures, notes, name=name, split=split, crowds=False)
    return found


def read_roboflow(sources: list[Path], images: Path | None, notes: Counter[str]) -> Found:
    """Read Roboflow's "COCO segmentation" exports: a folder per split with _annotations.coco.json beside the pictures.

    Raises:
        InputError: A file or picture is missing or cannot be used.
    """
    found = Found(False, [], [])
    for source in sources:
        for path in find_files(source, "_annotations.coco.json", "*/_annotations.coco.json"):
            split = path.parent.name if path.parent != source else ""
            add_coco(found, read_coco(path), Pictures(images, path.parent), notes, name=split, split=split, crowds=True)
    return found


def find_files(source: Path, *patterns: str) -> list[Path]:
    """Return the file that a source is, or those of the first pattern that any file of the folder fits.

    Raises:
        InputError: The source does not exist, is a zip file, or is a folder without such files.
    """
    if source.suffix.lower() == ".zip":
        raise InputError(f"{source}: is a zip file; unpack it, and give the folder")
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: is neither a file nor a folder; give what the tool exported")
    for pattern in patterns:
        if paths := sorted(path for path in source.glob(pattern) if path.is_file() and not path.name.startswith(".")):
            return paths
    raise InputError(f"{source}: holds no {' or '.join(patterns)}; give the folder that the tool exported")


def read_coco(path: Path) -> _File:
    """Read and check the records of a COCO file.

    Raises:
        InputError: It cannot be used.
    """
    json = JsonFile(path)
    recognize_format(json.members, str(path), COCO)
    file = _File(path, {}, {}, [])
    for number, text in enumerate(json.records("categories")):
        category = read_category(text, f"{path}: categories[{number}]")
        file.labels[_new(category.id, file.labels, f"{path}: categories[{number}]")] = category.name
    for number, text in enumerate(json.records("images")):
        image = COCO.read_video(text, f"{path}: images[{number}]")
        file.images[_new(image.id, file.images, f"{path}: images[{number}]")] = image
    assert COCO.read_instance is not None
    for number, text in enumerate(json.records("annotations")):
        where = f"{path}: annotations[{number}]"
        image_id, instance, size = COCO.read_instance(text, where)
        for kind, key, known in (("image", image_id, file.images), ("category", instance.category_id, file.labels)):
            if key not in known:
                raise InputError(f"{where}.{kind}_id is {key}, but there is no such {kind}; correct the file")
        track: _Track = decode(text, _Track, where)
        track_id = track.track_id if track.attributes is None else track.attributes.track_id
        file.masks.append((image_id, instance, track_id, size, where))
    return file


def _new(key: int, known: dict[int, Any], where: str) -> int:
    if key in known:
        raise InputError(f"{where}.id is {key}, which an earlier record has already")
    return key


def add_coco(
    found: Found, file: _File, pictures: Pictures, notes: Counter[str], *, name: str, split: str, crowds: bool
) -> None:
    """Make videos of a file's records, or pictures.

    Args:
        found: Takes them.
        file: The records.
        pictures: Where the pictures are.
        notes: See ``FoundVideo``.
        name: What a video is called.
        split: What they are part of.
        crowds: Whether ``iscrowd`` means what it says.

    Raises:
        InputError: A picture is missing or of another size, or a mask is damaged.
    """
    if not found.is_video:
        pictures.check_no_video()
    found.labels.extend(file.labels.values())
    groups: dict[object, list[VideoRecord]] = {}
    for image in file.images.values():
        group: object = PurePosixPath(image.file_names[0]).parent if found.is_video else image.id
        groups.setdefault(group, []).append(image)
    places: dict[int, tuple[FoundVideo, int]] = {}
    for group, images in groups.items():
        images.sort(key=lambda image: natural_order(Path(image.file_names[0])))
        where = f"{file.path}: image {images[0].id}"
        sizes = {(image.height, image.width) for image in images}
        if len(sizes) > 1:
            raise InputError(f"{where}: other frames of its video have another size; give every video its own folder")
        frames: list[FrameFile] = [
            pictures.find(image.file_names[0], f"{file.path}: image {image.id}") for image in images
        ]
        check_size(frames, (images[0].height, images[0].width))
        title = name if len(groups) == 1 or not found.is_video else f"{name}_{group}"
        video = FoundVideo(title, frames, sizes.pop(), notes, split)
        found.videos.append(video)
        places |= {image.id: (video, index) for index, image in enumerate(images)}
    for image_id, instance, track_id, size, where in file.masks:
        video, index = places[image_id]
        key = where if track_id is None else (track_id, instance.category_id)
        label, mask = file.labels[instance.category_id], instance.masks[0]
        more: dict[str, Any] = {"track_id": track_id, "is_crowd": crowds and instance.is_crowd}
        if mask is None and instance.boxes is not None and instance.boxes[0] is not None:
            video.add_box(key, label, index, instance.boxes[0], where, **more)
            continue
        if isinstance(mask, str):
            raw: Any = {"size": size, "counts": mask}
        else:
            raw = None if mask is None else [list(part) for part in mask]
        video.add(key, label, index, raw, where, **more)
