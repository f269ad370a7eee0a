"""Run a segmenter over a data set, video by video: to be stopped, continued, and shared by processes."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import msgspec
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.records import Dataset, VideoRecord
from clipvis_jax.errors import InputError
from clipvis_jax.inference.results import VideoResult
from clipvis_jax.inference.segmenter import Segmenter
from clipvis_jax.io.files import atomic_path, prepare_output_dir, write_text
from clipvis_jax.io.json_text import decode, read_json
from clipvis_jax.media.video_reader import FrameSource


class DatasetFrames(FrameSource):
    """The frames of one video of a data set, as a ``FrameSource``."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        self._dataset, self._index = dataset, index
        self.record: VideoRecord = dataset[index]
        self.kind: Literal["video", "folder", "image"] = "image" if dataset.info.is_images else "folder"
        self.name = f"{'image' if dataset.info.is_images else 'video'} {self.record.id}"
        self.height, self.width = self.record.height, self.record.width
        self.expected_frames: int | None = self.record.length

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for frame in range(self.record.length):
            yield frame, decode_frame(self._dataset, self._index, frame, self.record)


class _Results(msgspec.Struct):
    """The file of a video: its results, and the SHA-256 of their text."""

    sha256: str
    results: msgspec.Raw


def _digest(text: bytes | msgspec.Raw) -> str:
    return hashlib.sha256(text).hexdigest()


class RunFolder:
    """The results of one run, a file per video, and a note of all that they depend on.

    Files get their names when they are whole, so a run that was killed goes on with the first video without a file.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        """Open or make the folder.

        Raises:
            InputError: It holds results of another model, data set or setting, or cannot be written.
        """
        self.folder = prepare_output_dir(folder)
        self._videos = prepare_output_dir(folder / "videos")
        note = folder / "run.json"
        fingerprint = json.loads(json.dumps(fingerprint))
        if note.exists():
            other = read_json(note, dict[str, Any], "choose another folder or delete the folder")
            if different := sorted(
                key for key in fingerprint.keys() | other.keys() if fingerprint.get(key) != other.get(key)
            ):
                raise InputError(
                    f"{folder}: holds results of another run (other {', '.join(different)}); choose another folder or "
                    "delete the folder"
                )
        else:
            write_text(note, json.dumps(fingerprint, indent=2) + "\n")

    def has(self, index: int) -> bool:
        """Tell whether a video is finished.

        Warns:
            UserWarning: Its file is damaged, so it is not.
        """
        if not self._path(index).exists():
            return False
        try:
            self.read(index)
        except InputError as error:
            warnings.warn(f"{error}; it is computed again", stacklevel=2)
            return False
        return True

    def write(self, index: int, records: list[dict[str, Any]]) -> None:
        """Keep the results of a video, in YouTube-VIS format, with their checksum."""
        text = json.dumps(records)
        write_text(self._path(index), f'{{"sha256": "{_digest(text.encode())}", "results": {text}}}')

    def read(self, index: int) -> list[dict[str, Any]]:
        """Return the results of a video.

        Raises:
            InputError: They are missing or damaged.
        """
        path, advice = self._path(index), "run the same command again"
        content = read_json(path, _Results, advice)
        if content.sha256 != _digest(content.results):
            raise InputError(f"{path}: was changed (another checksum); {advice}")
        return decode(content.results, list[dict[str, Any]], f"{path}: results", advice)

    def merge(self, path: Path, indices: Sequence[int], *, show_progress: bool = False) -> None:
        """Write the results of videos into one file, one video at a time."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            separator = "["
            for index in tqdm(indices, "collecting", unit="video", disable=not show_progress):
                for record in self.read(index):
                    file.write(f"{separator}\n{json.dumps(record)}")
                    separator = ","
            file.write("[]\n" if separator == "[" else "\n]\n")

    def _path(self, index: int) -> Path:
        return self._videos / f"{index:06d}.json"


def order_by_size(segmenter: Segmenter, dataset: Dataset, count: int) -> list[int]:
    """Sort the first videos of a data set by the size of the network's input, so that each size compiles once."""
    sizes, is_image = dataset.video_sizes(), dataset.info.is_images
    return sorted(range(count), key=lambda i: (segmenter.config.sizes(*sizes[i][:2], is_image=is_image).padded_size, i))


def predict_dataset(
    segmenter: Segmenter,
    dataset: Dataset,
    run: RunFolder,
    count: int,
    *,
    top_k: int | None = None,
    on_result: Callable[[int, VideoResult, DatasetFrames], None] | None = None,
    is_complete: Callable[[int], bool] | None = None,
    show_progress: bool = False,
) -> int:
    """Segment the first videos of a data set that are not finished yet; this process's share of them.

    Args:
        segmenter: The model.
        dataset: The videos, or images, which go through the image model; all of its classes are the vocabulary.
        run: Where the results go.
        count: Number of videos, in the data set's order.
        top_k: Number of (track, class) pairs per video; by default the method's 50, for an image its 100.
        on_result: Called with (position in the data set, result, frames) before a video counts as finished.
        is_complete: Called with the position of a video whose results are there: whether nothing else is missing. If
            not, the video is computed again. Default: nothing is.
        show_progress: Show a progress bar with the time left.

    Returns:
        The number of videos that were computed.

    Raises:
        InputError: A frame is missing, unreadable or of another size than its annotation says.
    """
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    lengths = [length for _, _, length in dataset.video_sizes()]
    share = order_by_size(segmenter, dataset, count)[jax.process_index() :: jax.process_count()]
    todo = [index for index in share if not (run.has(index) and (is_complete is None or is_complete(index)))]
    with tqdm(
        total=sum(lengths[index] for index in share),
        initial=sum(lengths[index] for index in share) - sum(lengths[index] for index in todo),
        desc="segmenting",
        unit="frame",
        disable=not show_progress,
    ) as bar:
        for index in todo:
            frames = DatasetFrames(dataset, index)
            bar.set_postfix_str(frames.name)
            result = segmenter.predict(frames, names, top_k=top_k)
            if on_result is not None:
                on_result(index, result, frames)
            run.write(index, result.to_ytvis(frames.record.id, ids))
            bar.update(lengths[index])
    return len(todo)
