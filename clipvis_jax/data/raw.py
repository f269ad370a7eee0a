"""A data set as it is published: an annotation file and a folder of images."""

import dataclasses
import operator
import os
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from clipvis_jax.data.annotation_index import index_annotations
from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.formats import COCO, Format
from clipvis_jax.data.image_folder import ImageFolder
from clipvis_jax.data.json_file import signature
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.errors import InputError


class RawDataset:
    """A `Dataset` of an annotation file and an image folder, ready for random access.

    Opening reads and checks the file once and keeps only where its records lie; they are parsed when they are asked
    for. Memory stays small whatever the file's size. It can be pickled: worker processes open the file again
    without reading it all.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        *,
        annotation_format: Format | None = None,
        name: str | None = None,
        info: DatasetInfo | None = None,
        drop_frequencies: Collection[str] = (),
        show_progress: bool = False,
    ) -> None:
        """Read and check the annotation file. The image folder is not looked at, see `check_images`.

        Args:
            annotations: The annotation file.
            images: The folder that the file names of frames start from.
            annotation_format: The format that the file must have; told from its keys if not given.
            name: What messages and reports call the data set; default: the file's name without its suffix.
            info: What is known of the data set; its ``media`` follows the format.
            drop_frequencies: Leave out the instances of classes with one of these frequencies (``r``, ``c``, ``f``).
            show_progress: Show a progress bar if reading takes more than some seconds.

        Raises:
            InputError: The file cannot be used; see `clipvis_jax.data.annotation_index.index_annotations`.
        """
        self.name = name or annotations.stem
        self.path = annotations
        self.images = ImageFolder(images)
        self._index = index_annotations(annotations, annotation_format, drop_frequencies, show_progress=show_progress)
        self._last_video: tuple[int, VideoRecord] | None = None
        self._descriptor: int | None = None
        self.format = self._index.format
        self.info = dataclasses.replace(info or DatasetInfo(), media="images" if self.format is COCO else "videos")
        self.categories = self._index.categories
        self.has_annotations = self._index.has_annotations
        self.digest = self._index.digest

    def __len__(self) -> int:
        return len(self._index.video_places)

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        row = self._row(index)
        video = self._video(row)
        first, stop = self._index.first_instance[row : row + 2].tolist()
        if self.format.read_instance is None:
            # BURST numbers the tracks of each video; ours count through the file. Not from 0, as in the authors'
            # conversion: their evaluator takes that id for "none".
            instances = [
                dataclasses.replace(instance, id=first + number) for number, instance in enumerate(video.instances, 1)
            ]
        else:
            instances = [
                self.format.read_instance(self._load(place), f"{self.path}: an annotation of video {video.id}")[1]
                for place in self._index.instance_places[first:stop].tolist()
            ]
        return dataclasses.replace(video, instances=tuple(instances))

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video, without reading the videos."""
        return [(height, width, length) for height, width, length in self._index.sizes.tolist()]

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return the encoded image file of one frame.

        Raises:
            InputError: It is missing or cannot be read.
        """
        video = self._video(self._row(index))
        return self.images.read(video.file_names[frame], f"frame {operator.index(frame)} of video {video.id}")

    def check_images(self) -> None:
        """Make sure that the image folder exists.

        Raises:
            InputError: It does not.
        """
        self.images.check()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}

    def _row(self, index: SupportsIndex) -> int:
        return range(len(self))[index]  # IndexError beyond the end, which also ends a for loop

    def _video(self, row: int) -> VideoRecord:
        """Return a video's record; the last one is kept, since the frames of a video are read one after another."""
        last = self._last_video
        if last is None or last[0] != row:
            text = self._load(self._index.video_places[row].tolist())
            last = self._last_video = row, self.format.read_video(text, f"{self.path}: {self.format.videos}")
        return last[1]

    def _load(self, place: Sequence[int]) -> bytes:
        start, stop = place
        return os.pread(self._open(), stop - start, start)

    def _open(self) -> int:
        """Return the descriptor of the annotation file, opened once per process."""
        # Not mapped into memory: a file that is cut short meanwhile would end the process.
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            if signature(self._descriptor) != self._index.signature:
                raise InputError(f"{self.path}: has changed since it was opened; start again")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        return self._descriptor
