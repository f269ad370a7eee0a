"""What lies in the folder of a prepared data set, and under which names."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from etils import epath

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.formats.parts import Side
from clipvis_jax.data.records import Category
from clipvis_jax.errors import InputError
from clipvis_jax.io.json_text import read_json

FORMAT_VERSION = 2
"""Of the metadata and the records' texts."""

INFO_FILE = "dataset_info.json"
"""tensorflow-datasets writes it last, so it shows that a folder is complete."""

METADATA_FILE = "metadata.json"
PROGRESS_FOLDER = "unfinished"
"""Holds what is known of finished shards as long as others are missing."""

AGAIN = "remove it and prepare the data set again"
"""What messages tell the user to do about a folder that cannot be used."""

_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A finished file of records: its name, its size, and its SHA-256 as hexadecimal digits."""

    name: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*$")]
    num_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some videos in a row: a file with their annotations, and one with their images.

    ``sizes`` are height, width and number of frames of each.
    """

    annotations: ShardFile
    images: ShardFile
    sizes: tuple[tuple[Side, Side, Annotated[int, msgspec.Meta(ge=1)]], ...]

    @property
    def num_images(self) -> int:
        """Number of frames of all videos."""
        return sum(length for _, _, length in self.sizes)

    @property
    def files(self) -> tuple[ShardFile, ShardFile]:
        """Both files."""
        return self.annotations, self.images


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What `prepare` notes of a data set, beside what tensorflow-datasets does."""

    format_version: int
    level: Literal["videos", "frames"]
    digest: str
    shard_bytes: int
    dataset: str
    info: DatasetInfo
    has_annotations: bool
    num_videos: int
    num_images: int
    categories: tuple[Category, ...]
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        counts = sum(len(shard.sizes) for shard in self.shards), sum(shard.num_images for shard in self.shards)
        if counts != (self.num_videos, self.num_images):
            raise ValueError(
                f"its shards hold {counts[0]} videos and {counts[1]} images, not num_videos {self.num_videos} and "
                f"num_images {self.num_images}"
            )


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


def read_metadata(folder: epath.Path) -> Metadata:
    """Read what `prepare` noted of a finished data set.

    Raises:
        InputError: The file is missing or damaged, or of another version.
    """
    path = folder / METADATA_FILE
    if read_json(path, _Version, AGAIN).format_version != FORMAT_VERSION:
        raise InputError(f"{folder}: was not written by this version of 'clipvis prepare'; {AGAIN}")
    return read_json(path, Metadata, AGAIN)


def check_features(folder: epath.Path) -> None:
    """Make sure that the records are what `prepare` writes, without importing the classes that the folder names.

    Raises:
        InputError: Their features are other ones, or the file that names them is missing or damaged.
    """
    read_json(folder / "features.json", _Features, AGAIN)


class _Version(msgspec.Struct):
    format_version: int


class _Text(msgspec.Struct):
    pythonClassName: Literal["tensorflow_datasets.core.features.text_feature.Text"]  # noqa: N815 (as in the file)


class _TextAndImage(msgspec.Struct, forbid_unknown_fields=True):
    text: _Text
    image: _Text


class _FeaturesDict(msgspec.Struct):
    features: _TextAndImage


class _Features(msgspec.Struct):
    """What tensorflow-datasets writes of the builders' features; as it reads them, any module named would run."""

    pythonClassName: Literal["tensorflow_datasets.core.features.features_dict.FeaturesDict"]  # noqa: N815
    featuresDict: _FeaturesDict  # noqa: N815
