"""Write a data set as ArrayRecord files, shard by shard; an interrupted preparation goes on where it stopped."""

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from clipvis_jax.data.annotated_frames import AnnotatedFrames
from clipvis_jax.data.prepared.builder import ANNOTATIONS, BUILDERS, IMAGES, Features, PreparedBuilder
from clipvis_jax.data.prepared.layout import (
    FORMAT_VERSION,
    INFO_FILE,
    PROGRESS_FOLDER,
    Shard,
    ShardFile,
    hash_file,
    is_remote,
    open_path,
    read_metadata,
)
from clipvis_jax.data.records import Dataset
from clipvis_jax.errors import InputError, printable
from clipvis_jax.io.files import atomic_path, output_error
from clipvis_jax.io.folder_lock import locked_folder
from clipvis_jax.io.json_text import read_json

_SHARD_BYTES = 2**28
"""Wanted size of a shard: small enough to lose little to an interruption, large enough for object stores."""

_BYTES_PER_PIXEL = 0.25
"""Of a usual JPEG file; only a guess to choose the number of shards."""

_WRITER_OPTIONS = "group_size:1"
"""Every record can be read by itself."""


def prepare(
    dataset: Dataset,
    out: str | Path | epath.Path,
    *,
    level: Literal["videos", "frames"] = "videos",
    shard_bytes: int = _SHARD_BYTES,
    show_progress: bool = False,
) -> epath.Path:
    """Write a data set into files of their own, images included.

    What is finished already is not written again: a complete folder is left as it is, and after an interruption
    only the shards that are missing are written.

    Args:
        dataset: The data set.
        out: Folder, also of an object store (``gs://...``); the files go to a folder below, named after the data set.
        level: ``videos``, or ``frames`` for annotated frames as videos of their own (see `AnnotatedFrames`).
        shard_bytes: Rough size of a shard.
        show_progress: Show a progress bar over videos.

    Returns:
        The folder with the files, for `open_prepared`.

    Raises:
        InputError: The data set cannot be read, the files cannot be written, the folder holds another version of the
            data set, or another process is writing there (not noticed in an object store).
    """
    if level == "frames" and not dataset.has_annotations:
        raise InputError(f"{dataset.name}: has no annotated frames; prepare it with the level 'videos'")
    if level == "frames":
        dataset = AnnotatedFrames(dataset)
    if not len(dataset):
        raise InputError(f"{dataset.name}: has no {level} to prepare")
    builder = BUILDERS[level](dataset, open_path(out))
    folder = epath.Path(builder.data_dir)
    fingerprint = {
        "format_version": FORMAT_VERSION,
        "level": level,
        "digest": dataset.digest,
        "shard_bytes": shard_bytes,
    }
    try:
        progress = folder / PROGRESS_FOLDER
        if _is_finished(folder, fingerprint) and not progress.exists():
            return folder
        with _locked(folder):
            if not _is_finished(folder, fingerprint):  # another process may have been faster
                shards = _write_shards(builder, folder, fingerprint, show_progress)
                _write_metadata(builder, folder, fingerprint, shards)
            if progress.exists():
                progress.rmtree()
    except OSError as error:
        raise output_error(error.filename or str(folder), error) from error
    return folder


def _locked(folder: epath.Path) -> AbstractContextManager[None]:
    """Keep other preparations out of a folder; object stores know no locks."""
    if is_remote(folder):
        return nullcontext()
    # Beside the folder, which may be removed and holds nothing but the data set.
    return locked_folder(Path(folder.parent), who="another preparation")


def _is_finished(folder: epath.Path, fingerprint: dict[str, Any]) -> bool:
    if not (folder / INFO_FILE).exists():
        return False
    if read_metadata(folder).digest != fingerprint["digest"]:
        raise InputError(f"{folder}: was prepared from other annotations; remove it or choose another place")
    return True


def _write_shards(
    builder: PreparedBuilder, folder: epath.Path, fingerprint: dict[str, Any], show_progress: bool
) -> list[Shard]:
    """Write the shards that are missing; return all."""
    progress = folder / PROGRESS_FOLDER
    marker = progress / "fingerprint.json"
    if _read_note(marker, dict[str, Any]) != fingerprint:
        if folder.exists():
            folder.rmtree()  # what another data set, or another division into shards, left unfinished
        progress.mkdir(parents=True)
        _write_whole(marker, fingerprint)
    _remove_leftovers(folder)
    bounds = _shard_bounds(builder.dataset.video_sizes(), fingerprint["shard_bytes"])
    shards = []
    title = printable(f"preparing {builder.dataset.name}")
    bar = tqdm(total=bounds[-1], desc=title, unit="video", disable=not show_progress)
    with bar:
        for number, (start, stop) in enumerate(pairwise(bounds)):
            suffix = f"array_record-{number:05}-of-{len(bounds) - 1:05}"
            note = progress / f"{number:05}.json"
            shard = _read_note(note, Shard)
            if shard is not None and _is_intact(folder, shard):
                bar.update(stop - start)
                # Time left is reckoned from what is written now.
                bar.initial = bar.n
            else:
                shard = _write_shard(builder, range(start, stop), folder, suffix, bar)
                _write_whole(note, dataclasses.asdict(shard))
            shards.append(shard)
    return shards


def _shard_bounds(sizes: Sequence[tuple[int, int, int]], shard_bytes: int) -> list[int]:
    """Divide videos into shards of about the same size; the same at every call."""
    pixels = np.cumsum([height * width * length for height, width, length in sizes])
    count = min(len(sizes), max(1, round(float(pixels[-1]) * _BYTES_PER_PIXEL / shard_bytes)))
    stops = np.searchsorted(pixels, pixels[-1] * np.arange(1, count) / count, side="right")
    return sorted({0, *stops.tolist(), len(sizes)})


def _write_shard(builder: PreparedBuilder, videos: range, folder: epath.Path, suffix: str, bar: tqdm) -> Shard:
    dataset = builder.dataset
    sizes = dataset.video_sizes()[videos.start : videos.stop]

    def images() -> Iterator[Features]:
        for index in videos:
            yield from builder.images(index, dataset[index])
            bar.update()

    annotations = (builder.annotation(dataset[index]) for index in videos)
    return Shard(
        _write_file(builder, folder / f"{builder.name}-{ANNOTATIONS}.{suffix}", annotations),
        _write_file(builder, folder / f"{builder.name}-{IMAGES}.{suffix}", images()),
        tuple(sizes),
    )


def _write_file(builder: PreparedBuilder, path: epath.Path, records: Iterator[Features]) -> ShardFile:
    features = builder.info.features
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    with _local_file(path) as local:
        writer = ArrayRecordWriter(str(local), _WRITER_OPTIONS)
        try:
            for record in records:
                data = serializer.serialize_example(features.encode_example(record))
                _write(writer.write, path, data)
            _write(writer.close, path)
        finally:
            with suppress(RuntimeError):
                writer.close()
        return ShardFile(path.name, local.stat().st_size, hash_file(epath.Path(local)))


def _write(call: Callable[..., None], path: epath.Path, *arguments: bytes) -> None:
    try:
        call(*arguments)
    except RuntimeError as error:  # all that the library raises, whatever the reason
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from error


def _write_metadata(
    builder: PreparedBuilder, folder: epath.Path, fingerprint: dict[str, Any], shards: Sequence[Shard]
) -> None:
    dataset, info = builder.dataset, builder.info
    info.metadata.update(
        **fingerprint,
        dataset=dataset.name,
        info=dataclasses.asdict(dataset.info),
        has_annotations=dataset.has_annotations,
        num_videos=len(dataset),
        num_images=sum(shard.num_images for shard in shards),
        categories=[dataclasses.asdict(category) for category in dataset.categories],
        shards=[dataclasses.asdict(shard) for shard in shards],
    )
    splits = [
        tfds.core.SplitInfo(
            split,
            lengths,
            sum(file.num_bytes for file in files),
            tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=builder.name, split=split, filetype_suffix="array_record"
            ),
        )
        for split, lengths, files in (
            (ANNOTATIONS, [len(shard.sizes) for shard in shards], [shard.annotations for shard in shards]),
            (IMAGES, [shard.num_images for shard in shards], [shard.images for shard in shards]),
        )
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)


def _read_note(path: epath.Path, kind: Any) -> Any:
    """Read what is known of something finished; None, so that it is done again, if that is missing or damaged."""
    if not path.exists():
        return None
    try:
        return read_json(path, kind, "it is written again")
    except InputError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def _is_intact(folder: epath.Path, shard: Shard) -> bool:
    paths = [folder / file.name for file in shard.files]
    return all(path.exists() for path in paths) and all(
        path.stat().length == file.num_bytes for path, file in zip(paths, shard.files, strict=True)
    )


def _remove_leftovers(folder: epath.Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.iterdir():
        if path.name.startswith(".clipvis-"):
            path.unlink()


@contextmanager
def _local_file(path: epath.Path) -> Iterator[Path]:
    """Give a temporary path on this machine that becomes `path` when the block ends well."""
    if not is_remote(path):
        with atomic_path(Path(path)) as local:
            yield local
        return
    # An object store takes whole files only, so a copy there needs no temporary name.
    with tempfile.TemporaryDirectory(prefix="clipvis-") as folder:
        local = Path(folder, path.name)
        yield local
        epath.Path(local).copy(path, overwrite=True)


def _write_whole(path: epath.Path, content: dict[str, Any]) -> None:
    """Write a small file so that nobody finds half of it."""
    with _local_file(path) as local:
        local.write_text(json.dumps(content), encoding="utf-8")
