"""Read a prepared data set."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tqdm import tqdm

from clipvis_jax.data.prepared.builder import FEATURES
from clipvis_jax.data.prepared.layout import (
    AGAIN,
    INFO_FILE,
    METADATA_FILE,
    PROGRESS_FOLDER,
    ShardFile,
    check_features,
    hash_file,
    is_remote,
    open_path,
    read_metadata,
)
from clipvis_jax.data.prepared.record_text import video_from_text
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path, cache_folder

_READER_OPTIONS = "readahead_buffer_size:0"
"""Records are read one by one, in any order."""


class PreparedDataset:
    """A `Dataset` of the files that `prepare` wrote: the same records and image files as the published data set.

    At the level ``frames`` these are its annotated frames, see `AnnotatedFrames`. It can be pickled. Of an
    object store, files are copied to the cache folder when they are needed.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Open the folder with the files themselves; see `open_prepared` for folders above it.

        Raises:
            InputError: A file is missing or has another size than it had, or one of the small files cannot be read.
        """
        self.folder = folder
        metadata = read_metadata(folder)
        check_features(folder)
        self.name = metadata.dataset
        self.info = metadata.info
        self.level = metadata.level
        self.digest = metadata.digest
        self.has_annotations = metadata.has_annotations
        self.categories = metadata.categories
        self._category_ids = {category.id for category in metadata.categories}
        self._shards = metadata.shards
        self._sizes = [size for shard in self._shards for size in shard.sizes]
        self._first_image = [0, *accumulate(length for _, _, length in self._sizes)]
        self._check_sizes()
        self._annotations = _Records(folder, [(shard.annotations, len(shard.sizes)) for shard in self._shards])
        self._images = _Records(folder, [(shard.images, shard.num_images) for shard in self._shards])

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        row = range(len(self))[index]
        video = video_from_text(self._annotations.read(row)["text"], f"{self.folder}: video {row}")
        if (video.height, video.width, video.length) != self._sizes[row]:
            raise _damaged(self.folder, f"video {row} is of another size in {METADATA_FILE}")
        if not self._category_ids.issuperset(instance.category_id for instance in video.instances):
            raise _damaged(self.folder, f"video {row} has an instance of a class that is not in {METADATA_FILE}")
        return video

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video, without reading the videos."""
        return self._sizes

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return the encoded image file of one frame.

        Raises:
            InputError: The file that holds it is damaged.
        """
        row = range(len(self))[index]
        images = range(self._first_image[row], self._first_image[row + 1])
        return self._images.read(images[frame])["image"]

    def verify(self, show_progress: bool = False) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: A file is damaged.
        """
        files = [file for shard in self._shards for file in shard.files]
        size = sum(file.num_bytes for file in files)
        with tqdm(total=size, desc="verifying", unit="B", unit_scale=True, disable=not show_progress) as bar:
            for file in files:
                if hash_file(self.folder / file.name) != file.sha256:
                    raise _damaged(self.folder / file.name, "its checksum differs")
                bar.update(file.num_bytes)

    def __reduce__(self) -> tuple[type["PreparedDataset"], tuple[epath.Path]]:
        return PreparedDataset, (self.folder,)

    def _check_sizes(self) -> None:
        for file in (file for shard in self._shards for file in shard.files):
            path = self.folder / file.name
            if not path.exists():
                raise InputError(f"{path}: is missing; prepare the data set again")
            if path.stat().length != file.num_bytes:
                raise _damaged(path, f"it has {path.stat().length} bytes instead of {file.num_bytes}")


class _Records:
    """The records of several files in a row; files are opened when they are needed."""

    def __init__(self, folder: epath.Path, files: Sequence[tuple[ShardFile, int]]) -> None:
        """Take the files with their numbers of records."""
        self._folder = folder
        self._files = [file for file, _ in files]
        self._starts = [0, *accumulate(count for _, count in files)]
        self._readers: dict[int, ArrayRecordReader] = {}

    def read(self, row: int) -> dict[str, Any]:
        """Return the features of one record."""
        number = bisect_right(self._starts, row) - 1
        try:
            if number not in self._readers:
                path = _local_file(self._folder, self._files[number])
                self._readers[number] = ArrayRecordReader(str(path), options=_READER_OPTIONS)
            (data,) = self._readers[number].read([row - self._starts[number]])
            return FEATURES.deserialize_example_np(data)
        except InputError:
            raise
        except OSError as error:
            path = self._folder / self._files[number].name
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); try again") from error
        except Exception as error:  # array_record, tensorflow-datasets and protobuf raise many kinds
            reason = " ".join(str(error).split())
            raise _damaged(self._folder / self._files[number].name, reason) from error


def _local_file(folder: epath.Path, file: ShardFile) -> Path:
    """Return a file of records on this machine, copied there first if need be."""
    path = folder / file.name
    if not is_remote(path):
        return Path(path)
    cached = cache_folder() / "prepared" / f"{file.sha256}.array_record"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cached) as temporary:
            path.copy(temporary, overwrite=True)
            if hash_file(epath.Path(temporary)) != file.sha256:
                raise _damaged(path, "its checksum differs")
    return cached


def open_prepared(path: str | Path | epath.Path) -> PreparedDataset:
    """Open a prepared data set: the folder with its files, or one above it that holds no other data set.

    Raises:
        InputError: There is none, more than one, one that is not finished, or a damaged one.
    """
    root = open_path(path)
    if not root.exists():
        raise InputError(f"{path}: does not exist; write it with 'clipvis prepare'")
    found = _folders_with(INFO_FILE, root)
    if len(found) == 1:
        return PreparedDataset(found[0])
    if found:
        names = ", ".join(str(folder.relative_to(root)) for folder in found)
        raise InputError(f"{path}: holds several data sets ({names}); name one of them")
    unfinished = _folders_with(PROGRESS_FOLDER, root)
    if unfinished:
        raise InputError(f"{unfinished[0]}: is not finished; run 'clipvis prepare' again, it goes on there")
    raise InputError(
        f"{path}: holds no prepared data set; write one with 'clipvis prepare', or name an annotation file"
    )


def _folders_with(name: str, root: epath.Path) -> list[epath.Path]:
    """Return the folder itself if it holds something of a name, or else those up to three levels below it that do."""
    # Not by patterns: the folder may be called "**" or "[a]".
    folders, found = [root], []
    for depth in range(4):
        here = [folder for folder in folders if (folder / name).exists()]
        if here and not depth:
            return here
        found += here
        if depth < 3:
            folders = [child for folder in folders for child in _folders_in(folder)]
    return sorted(found)


def _folders_in(folder: epath.Path) -> list[epath.Path]:
    """List the folders in a folder; none where that is not allowed, as in a disk's lost+found."""
    try:
        return [child for child in folder.iterdir() if child.is_dir()]
    except PermissionError:
        return []


def _damaged(path: epath.Path, reason: str) -> InputError:
    return InputError(f"{path}: is damaged ({reason}); {AGAIN}")
