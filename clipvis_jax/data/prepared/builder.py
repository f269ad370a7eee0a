"""The tensorflow-datasets builders: what the records hold, and how a data set becomes records."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from clipvis_jax.data.prepared.record_text import video_to_text
from clipvis_jax.data.records import Dataset, VideoRecord

ANNOTATIONS, IMAGES = SPLITS = ("annotations", "images")
"""The splits: one record per video, and one per frame. So annotations can be read without images, and single frames
without their videos. What is published as a split (train, val) is a data set of its own here."""

FEATURES = tfds.features.FeaturesDict({"text": tfds.features.Text(), "image": tfds.features.Text()})
"""Of every record. Text takes any bytes; the features for images and videos need TensorFlow to be written."""

Features = dict[str, Any]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Ask no store for what it knows of the data set, which is nothing; it would leave an empty folder."""


class PreparedBuilder(tfds.core.GeneratorBasedBuilder):
    """Base of the builders. Files go to a folder named after the data set.

    ``text`` of an annotation is a video with its instances (see `video_to_text`), of an image its file name. ``image``
    of an image is the whole file, of an annotation nothing.
    """

    VERSION = tfds.core.Version("1.0.0")
    level: ClassVar[str]

    def __init__(self, dataset: Dataset, data_dir: epath.Path) -> None:
        """Take the data set, and the folder below which everything is to be written."""
        self.dataset = dataset
        # A name may come from a file's, as ".." from "...json": it names a folder below, whatever it is.
        name = re.sub(r"^\.|[^\w.-]", "_", dataset.name)
        super().__init__(data_dir=data_dir / name, file_format="array_record")

    def annotation(self, video: VideoRecord) -> Features:
        """Return the features of a video's record."""
        return {"text": video_to_text(video), "image": b""}

    def images(self, index: int, video: VideoRecord) -> Iterator[Features]:
        """Return the features of the records of a video's frames."""
        for frame, name in enumerate(video.file_names):
            yield {"text": name, "image": self.dataset.read_frame(index, frame)}

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"{self.dataset.name}, {self.level}, as clipvis_jax prepares it.",
            features=FEATURES,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Features]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Features]]:
        number = 0
        for index in range(len(self.dataset)):
            video = self.dataset[index]
            for features in [self.annotation(video)] if split == ANNOTATIONS else self.images(index, video):
                yield number, features
                number += 1


class ClipvisVideos(PreparedBuilder):
    """Whole videos."""

    level = "videos"


class ClipvisFrames(PreparedBuilder):
    """Annotated frames, as videos of one frame; see `clipvis_jax.data.annotated_frames`."""

    level = "frames"


BUILDERS = {builder.level: builder for builder in (ClipvisVideos, ClipvisFrames)}
"""The builders by level."""
