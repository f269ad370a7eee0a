"""A data set of videos as a data set of single frames."""

import dataclasses
from array import array
from collections.abc import Sequence
from typing import SupportsIndex

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.records import Category, Dataset, Instance, VideoRecord


class AnnotatedFrames:
    """The annotated frames of a `Dataset`, each as a video of one frame; such videos are numbered from 1.

    Only frames with a mask are there, and of each only the instances that have a mask in it.
    """

    def __init__(self, dataset: Dataset) -> None:
        """Look for annotated frames in all videos."""
        self.dataset = dataset
        self._places = array("q")  # index of the video and number of the frame, by turns
        for index in range(len(dataset)):
            video = dataset[index]
            for frame in range(video.length):
                if any(instance.masks[frame] is not None for instance in video.instances):
                    self._places.extend((index, frame))
        self._last: tuple[int, VideoRecord | None] = (-1, None)

    @property
    def name(self) -> str:
        """The data set's."""
        return self.dataset.name

    @property
    def info(self) -> DatasetInfo:
        """The data set's."""
        return self.dataset.info

    @property
    def categories(self) -> Sequence[Category]:
        """The data set's."""
        return self.dataset.categories

    @property
    def has_annotations(self) -> bool:
        """The data set's."""
        return self.dataset.has_annotations

    @property
    def digest(self) -> str:
        """The data set's."""
        return self.dataset.digest

    def __len__(self) -> int:
        return len(self._places) // 2

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        row = range(len(self))[index]
        video_index, frame = self.place(row)
        last_index, video = self._last
        if video is None or last_index != video_index:
            video = self.dataset[video_index]
            self._last = video_index, video
        instances = (_in_frame(instance, frame) for instance in video.instances if instance.masks[frame] is not None)
        return dataclasses.replace(video, id=row + 1, file_names=(video.file_names[frame],), instances=tuple(instances))

    def place(self, index: SupportsIndex) -> tuple[int, int]:
        """Return the video and the frame in it that an index means."""
        row = range(len(self))[index]
        return self._places[2 * row], self._places[2 * row + 1]

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames (1) of every frame."""
        sizes = self.dataset.video_sizes()
        return [(*sizes[video][:2], 1) for video in self._places[::2]]

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return the encoded image file; the only ``frame`` is 0."""
        video_index, place = self.place(index)
        return self.dataset.read_frame(video_index, range(place, place + 1)[frame])


def _in_frame(instance: Instance, frame: int) -> Instance:
    return dataclasses.replace(
        instance,
        masks=(instance.masks[frame],),
        boxes=None if instance.boxes is None else (instance.boxes[frame],),
        areas=None if instance.areas is None else (instance.areas[frame],),
    )
