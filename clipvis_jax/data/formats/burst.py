"""BURST's own format: a list of sequences, each with its tracks frame by frame.

Frames without annotation between the annotated ones are left out, as in the authors' conversion to YouTube-VIS format.
"""

from typing import Any

from clipvis_jax.data.fields import field, integer_field, list_field, show
from clipvis_jax.data.formats.format import MAX_SIDE, Format
from clipvis_jax.data.formats.parts import file_name, ids_field, read_masks, text_field
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError


def _read_sequence(record: Any, where: str) -> VideoRecord:
    number = integer_field(record, "id", where)
    height, width = (integer_field(record, name, where, 1, MAX_SIDE) for name in ("height", "width"))
    folder = f"{text_field(record, 'dataset', where)}/{text_field(record, 'seq_name', where)}"
    names = list_field(record, "annotated_image_paths", where)
    if not names:
        raise InputError(f"{where}.annotated_image_paths is empty; a video needs at least one frame")
    frames = []
    if record.get("segmentations") is not None:
        frames = list_field(record, "segmentations", where)
        if len(frames) != len(names):
            raise InputError(f"{where}.segmentations has {len(frames)} frames for {len(names)} annotated_image_paths")
    return VideoRecord(
        number,
        height,
        width,
        tuple(_frame_path(folder, name, f"{where}.annotated_image_paths[{t}]") for t, name in enumerate(names)),
        _read_tracks(record, frames, [height, width], where) if frames else (),
        ids_field(record, "neg_category_ids", where),
        ids_field(record, "not_exhaustive_category_ids", where),
    )


def _frame_path(folder: str, name: object, where: str) -> str:
    return file_name(f"{folder}/{file_name(name, where).split('/')[-1]}", where)


def _read_tracks(record: Any, frames: list[Any], size: list[int], where: str) -> tuple[Instance, ...]:
    category_of = field(record, "track_category_ids", where)
    if not isinstance(category_of, dict):
        raise InputError(f"{where}.track_category_ids is {show(category_of)}; an object is needed")
    masks_of: dict[str, list[Any]] = {track: [None] * len(frames) for track in category_of}
    for frame, tracks in enumerate(frames):
        place = f"{where}.segmentations[{frame}]"
        if not isinstance(tracks, dict):
            raise InputError(f"{place} is {show(tracks)}; an object with masks by track is needed")
        for track, mask in tracks.items():
            if track not in masks_of:
                raise InputError(f"{place} has track {show(track)}, which has no entry in track_category_ids")
            masks_of[track][frame] = {"size": size, "counts": text_field(mask, "rle", f"{place}[{track}]")}
    return tuple(
        Instance(
            number,
            integer_field(category_of, track, f"{where}.track_category_ids"),
            False,
            read_masks(
                masks_of[track], where, [f"{where}.segmentations[{t}][{track}].rle" for t in range(len(frames))]
            )[0],
        )
        for number, track in enumerate(category_of)
    )


BURST = Format(title="BURST", videos="sequences", annotations=None, read_video=_read_sequence)
