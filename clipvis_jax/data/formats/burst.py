"""BURST's own format: a list of sequences, each with its tracks frame by frame.

Frames without annotation between the annotated ones are left out, as in the authors' conversion to YouTube-VIS format.
"""

from typing import Annotated, Any

import msgspec

from clipvis_jax.data.formats.format import Format
from clipvis_jax.data.formats.parts import Id, RawMask, RunLengths, Text, VideoFields, file_name, read_masks
from clipvis_jax.data.records import Instance, VideoRecord
from clipvis_jax.errors import InputError, show
from clipvis_jax.io.json_text import decode


class _TrackMask(msgspec.Struct):
    rle: Text


class _Sequence(VideoFields):
    dataset: Text
    seq_name: Text
    annotated_image_paths: Annotated[list[Text], msgspec.Meta(min_length=1)]
    track_category_ids: dict[str, Id] | None = None
    segmentations: list[dict[str, _TrackMask]] | None = None


def _read_sequence(text: Any, where: str) -> VideoRecord:
    record: _Sequence = decode(text, _Sequence, where)
    folder, names = f"{record.dataset}/{record.seq_name}", record.annotated_image_paths
    if record.segmentations is not None and len(record.segmentations) != len(names):
        raise InputError(
            f"{where}.segmentations has {len(record.segmentations)} frames for {len(names)} annotated_image_paths"
        )
    return VideoRecord(
        record.id,
        record.height,
        record.width,
        tuple(_frame_path(folder, name, f"{where}.annotated_image_paths[{t}]") for t, name in enumerate(names)),
        _read_tracks(record, where) if record.segmentations else (),
        record.neg_category_ids or (),
        record.not_exhaustive_category_ids or (),
    )


def _frame_path(folder: str, name: str, where: str) -> str:
    return file_name(f"{folder}/{file_name(name, where).split('/')[-1]}", where)


def _read_tracks(record: _Sequence, where: str) -> tuple[Instance, ...]:
    frames = record.segmentations or []
    category_of = record.track_category_ids or {}
    masks_of: dict[str, list[RawMask]] = {track: [None] * len(frames) for track in category_of}
    for frame, tracks in enumerate(frames):
        for track, mask in tracks.items():
            if track not in masks_of:
                raise InputError(
                    f"{where}.segmentations[{frame}] has track {show(track)}, which has no entry in track_category_ids"
                )
            masks_of[track][frame] = RunLengths((record.height, record.width), mask.rle)
    return tuple(
        Instance(
            number,
            category_id,
            False,
            read_masks(
                masks_of[track], where, [f"{where}.segmentations[{t}][{track}].rle" for t in range(len(frames))]
            )[0],
        )
        for number, (track, category_id) in enumerate(category_of.items())
    )


BURST = Format(title="BURST", videos="sequences", annotations=None, read_video=_read_sequence)
