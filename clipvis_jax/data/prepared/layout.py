"""What lies in the folder of a prepared data set, and under which names."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from etils import epath

from clipvis_jax.errors import InputError

FORMAT_VERSION = 2
"""Of the metadata and the records' texts."""

INFO_FILE = "dataset_info.json"
"""tensorflow-datasets writes it last, so it shows that a folder is complete."""

METADATA_FILE = "metadata.json"
PROGRESS_FOLDER = "unfinished"
"""Holds what is known of finished shards as long as others are missing."""

_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A finished file of records: its name, its size, and its SHA-256 as hexadecimal digits."""

    name: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if "/" in self.name:
            raise ValueError(f"{self.name!r} is not the name of a file")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some videos in a row: a file with their annotations, and one with their images.

    ``sizes`` are height, width and number of frames of each.
    """

    annotations: ShardFile
    images: ShardFile
    sizes: tuple[tuple[int, int, int], ...]

    @property
    def num_images(self) -> int:
        """Number of frames of all videos."""
        return sum(length for _, _, length in self.sizes)

    @property
    def files(self) -> tuple[ShardFile, ShardFile]:
        """Both files."""
        return self.annotations, self.images

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Shard":
        """Read what `to_json` returned."""
        sizes = tuple((height, width, length) for height, width, length in record["sizes"])
        return cls(ShardFile(**record["annotations"]), ShardFile(**record["images"]), sizes)


def open_path(path: str | Path | epath.Path) -> epath.Path:
    """Return a path of this machine or of an object store, and make sure that it can be reached.

    Raises:
        InputError: It is of an unknown kind, needs another package, or cannot be reached.
    """
    try:
        opened = epath.Path(path)
        opened.exists()
    except KeyError as error:
        raise InputError(
            f"{path}: is of an unknown kind; give a folder, or a path that begins with gs:// or s3://"
        ) from error
    except Exception as error:  # the stores' packages raise whatever they like
        if not isinstance(error, OSError) and "://" not in str(path):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be reached ({reason})") from error
    return opened


def is_remote(path: epath.Path) -> bool:
    """Say whether a path leads to an object store, where only whole files can be read and written."""
    return "://" in str(path)


def hash_file(path: epath.Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read one of the folder's small files.

    Raises:
        InputError: It cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); prepare the data set again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not one of the files of a prepared data set; prepare the data set again")
    return content
