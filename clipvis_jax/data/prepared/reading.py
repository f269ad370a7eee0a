"""Read a prepared data set."""

import dataclasses
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tqdm import tqdm

from clipvis_jax.data.prepared.builder import BUILDERS
from clipvis_jax.data.prepared.layout import (
    FORMAT_VERSION,
    INFO_FILE,
    METADATA_FILE,
    PROGRESS_FOLDER,
    Shard,
    hash_file,
    is_remote,
    read_json,
)
from clipvis_jax.data.prepared.record_text import category_from_json, video_from_text
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.files import atomic_path

_READER_OPTIONS = "readahead_buffer_size:0"
"""Records are read one by one, in any order."""


class PreparedDataset:
    """A `Dataset` of the files that `prepare` wrote: the same records and image files as the published data set.

    At the level ``frames`` each record is a video of one frame; videos then count from 1, and `video_ids` says where
    each comes from. It can be pickled. Of an object store, shards are copied to the cache folder when they are needed.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Open the folder with the files themselves; see `open_prepared` for folders above it.

        Raises:
            InputError: A file is missing or has another size than it had, or the metadata cannot be read.
        """
        self.folder = folder
        metadata = read_json(folder / METADATA_FILE)
        if metadata.get("format_version") != FORMAT_VERSION or metadata.get("level") not in BUILDERS:
            raise InputError(
                f"{folder}: was not written by this version of 'clipvis prepare'; prepare the data set again"
            )
        self.name: str = metadata["dataset"]
        self.level: str = metadata["level"]
        self.digest: str = metadata["digest"]
        self.has_annotations: bool = metadata["has_annotations"]
        self.categories = tuple(map(category_from_json, metadata["categories"]))
        self._shards = [Shard.from_json(record) for record in metadata["shards"]]
        self._stops = list(accumulate(len(shard.sizes) for shard in self._shards))
        self._check_sizes()
        self._features = tfds.builder_from_directory(folder).info.features
        self._readers: dict[int, ArrayRecordReader] = {}
        self._last: tuple[int, dict[str, Any]] = (-1, {})

    @property
    def video_ids(self) -> Sequence[int]:
        """The id that each record's video has in the annotation file."""
        return [video_id for shard in self._shards for video_id in shard.video_ids]

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        row = range(len(self))[index]
        video = video_from_text(self._example(row)["video"])
        return video if self.level == "videos" else dataclasses.replace(video, id=row + 1)

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video, without reading the videos."""
        return [size for shard in self._shards for size in shard.sizes]

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return the encoded image file of one frame."""
        example = self._example(range(len(self))[index])
        frames = example["frames"] if self.level == "videos" else [example["image"]]
        return frames[frame]

    def verify(self, show_progress: bool = False) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: A file is damaged.
        """
        size = sum(shard.num_bytes for shard in self._shards)
        with tqdm(total=size, desc="verifying", unit="B", unit_scale=True, disable=not show_progress) as bar:
            for shard in self._shards:
                if hash_file(self.folder / shard.file) != shard.sha256:
                    raise _damaged(self.folder / shard.file, "its checksum differs")
                bar.update(shard.num_bytes)

    def __reduce__(self) -> tuple[type["PreparedDataset"], tuple[epath.Path]]:
        return PreparedDataset, (self.folder,)

    def _check_sizes(self) -> None:
        for shard in self._shards:
            path = self.folder / shard.file
            if not path.exists():
                raise InputError(f"{path}: is missing; prepare the data set again")
            if path.stat().length != shard.num_bytes:
                raise _damaged(path, f"it has {path.stat().length} bytes instead of {shard.num_bytes}")

    def _example(self, row: int) -> dict[str, Any]:
        """Read one record; the last one is kept, since frames of one video are usually asked for one by one."""
        last_row, example = self._last
        if last_row == row:
            return example
        number = bisect_right(self._stops, row)
        first = self._stops[number] - len(self._shards[number].sizes)
        try:
            if number not in self._readers:
                self._readers[number] = ArrayRecordReader(str(self._local_file(number)), options=_READER_OPTIONS)
            example = self._features.deserialize_example_np(self._readers[number].read([row - first])[0])
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise _damaged(self.folder / self._shards[number].file, reason) from error
        self._last = row, example
        return example

    def _local_file(self, number: int) -> Path:
        """Return a shard on this machine, copied there first if need be."""
        shard = self._shards[number]
        path = self.folder / shard.file
        if not is_remote(path):
            return Path(path)
        cached = _cache_folder() / f"{shard.sha256}.array_record"
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(cached) as temporary:
                path.copy(temporary, overwrite=True)
                if hash_file(epath.Path(temporary)) != shard.sha256:
                    raise _damaged(path, "its checksum differs")
        return cached


def open_prepared(path: str | Path | epath.Path) -> PreparedDataset:
    """Open a prepared data set: the folder with its files, or one above it that holds no other data set.

    Raises:
        InputError: There is none, more than one, one that is not finished, or a damaged one.
    """
    root = epath.Path(path)
    if not root.exists():
        raise InputError(f"{path}: does not exist; write it with 'clipvis prepare'")
    if (root / INFO_FILE).exists():
        return PreparedDataset(root)
    found = sorted({file.parent for depth in range(1, 4) for file in root.glob("/".join(["*"] * depth + [INFO_FILE]))})
    if len(found) == 1:
        return PreparedDataset(found[0])
    if found:
        names = ", ".join(str(folder.relative_to(root)) for folder in found)
        raise InputError(f"{path}: holds several data sets ({names}); name one of them")
    unfinished = [folder for depth in range(4) for folder in root.glob("/".join(["*"] * depth + [PROGRESS_FOLDER]))]
    if unfinished:
        raise InputError(f"{unfinished[0].parent}: is not finished; run 'clipvis prepare' again, it goes on there")
    raise InputError(
        f"{path}: holds no prepared data set; write one with 'clipvis prepare', or name an annotation file"
    )


def _cache_folder() -> Path:
    """Return the folder for copies of remote files, as `clipvis_jax.loading.cache_folder` chooses it."""
    if folder := os.environ.get("CLIPVIS_CACHE"):
        return Path(folder) / "prepared"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipvis_jax" / "prepared"


def _damaged(path: epath.Path, reason: str) -> InputError:
    return InputError(f"{path}: is damaged ({reason}); remove it and prepare the data set again")
