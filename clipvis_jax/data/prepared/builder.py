"""The tensorflow-datasets builders: what a record holds, and how a data set becomes records."""

import abc
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from clipvis_jax.data.prepared.record_text import video_to_text
from clipvis_jax.data.records import Dataset, Instance, VideoRecord

SPLIT = "data"
"""The only split: what is published as a split is a data set of its own. (The name "all" is reserved.)"""

Example = tuple[VideoRecord, dict[str, Any]]
"""A record as it is to be read back, and the features that hold it."""


class PreparedBuilder(tfds.core.GeneratorBasedBuilder):
    """Base of the builders. Files go to a folder named after the data set."""

    VERSION = tfds.core.Version("1.0.0")
    level: ClassVar[str]

    def __init__(self, dataset: Dataset, data_dir: epath.Path) -> None:
        """Take the data set, and the folder below which everything is to be written."""
        self.dataset = dataset
        super().__init__(data_dir=data_dir / re.sub(r"[^\w.-]", "_", dataset.name), file_format="array_record")

    @abc.abstractmethod
    def features(self) -> tfds.features.FeaturesDict:
        """Say what a record holds."""

    @abc.abstractmethod
    def examples_of(self, index: int) -> Iterator[Example]:
        """Turn one video into records."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.dataset.name}, {self.level}, as clipvis_jax prepares it.",
            features=self.features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        examples = (example for index in range(len(self.dataset)) for example in self.examples_of(index))
        for number, (_, features) in enumerate(examples):
            yield number, features


class ClipvisVideos(PreparedBuilder):
    """One record per video: ``video`` is its text (see `video_to_text`), ``frames`` are its image files."""

    level = "videos"

    def features(self) -> tfds.features.FeaturesDict:
        """Say what a record holds."""
        # Text takes any bytes. tensorflow-datasets' own features for images and videos need TensorFlow to be written.
        return tfds.features.FeaturesDict(
            {"video": tfds.features.Text(), "frames": tfds.features.Sequence(tfds.features.Text())}
        )

    def examples_of(self, index: int) -> Iterator[Example]:
        """Turn one video into one record."""
        video = self.dataset[index]
        frames = [self.dataset.read_frame(index, frame) for frame in range(video.length)]
        yield video, {"video": video_to_text(video), "frames": frames}


class ClipvisFrames(PreparedBuilder):
    """One record per annotated frame, a video of one frame: ``video`` is its text, ``image`` its image file.

    Videos count from 1; only instances that have a mask in the frame are kept, and only frames that have one.
    """

    level = "frames"

    def features(self) -> tfds.features.FeaturesDict:
        """Say what a record holds."""
        return tfds.features.FeaturesDict({"video": tfds.features.Text(), "image": tfds.features.Text()})

    def examples_of(self, index: int) -> Iterator[Example]:
        """Turn one video into as many records as it has annotated frames."""
        video = self.dataset[index]
        for frame in range(video.length):
            single = _single_frame(video, frame)
            if single.instances:
                image = self.dataset.read_frame(index, frame)
                yield single, {"video": video_to_text(single), "image": image}


BUILDERS = {builder.level: builder for builder in (ClipvisVideos, ClipvisFrames)}
"""The builders by level."""


def _single_frame(video: VideoRecord, frame: int) -> VideoRecord:
    instances = (_in_frame(instance, frame) for instance in video.instances if instance.masks[frame] is not None)
    return dataclasses.replace(video, file_names=(video.file_names[frame],), instances=tuple(instances))


def _in_frame(instance: Instance, frame: int) -> Instance:
    return dataclasses.replace(
        instance,
        masks=(instance.masks[frame],),
        boxes=None if instance.boxes is None else (instance.boxes[frame],),
        areas=None if instance.areas is None else (instance.areas[frame],),
    )
