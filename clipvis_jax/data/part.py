"""Some videos of a data set as a data set of their own."""

import dataclasses
import hashlib
import json
import operator
from collections.abc import Sequence
from typing import SupportsIndex

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.records import Category, Dataset, VideoRecord
from clipvis_jax.data.sampling import usable_instances
from clipvis_jax.errors import InputError

_EVERY, _MOST = 5, 50
"""Every fifth annotated video is held out, or fewer where that would be more than so many."""


class PartOfDataset:
    """The videos of a `Dataset` with some indices, in their order."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], *, name: str, info: DatasetInfo) -> None:
        """Take videos; ``name`` and ``info`` are the part's own."""
        self._dataset, self._indices = dataset, tuple(indices)
        self.name, self.info = name, info
        self.categories: Sequence[Category] = dataset.categories
        self.has_annotations = dataset.has_annotations
        self.digest = hashlib.sha256(json.dumps([dataset.digest, self._indices]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> VideoRecord:
        return self._dataset[self._indices[index]]

    def video_sizes(self) -> Sequence[tuple[int, int, int]]:
        """Return height, width and number of frames of every video."""
        sizes = self._dataset.video_sizes()
        return [sizes[index] for index in self._indices]

    def read_frame(self, index: SupportsIndex, frame: SupportsIndex) -> bytes:
        """Return the encoded image file of one frame."""
        return self._dataset.read_frame(self._indices[index], operator.index(frame))


def hold_out(dataset: Dataset) -> tuple[PartOfDataset, PartOfDataset]:
    """Divide a data set into a part to train on and one to evaluate on, the same ones every time.

    Every fifth of the videos with instances is held out; of more than 250 videos fewer, evenly spread, 50 at most.

    Raises:
        InputError: Fewer than two videos have instances.
    """
    annotated = [index for index in range(len(dataset)) if usable_instances(dataset[index].instances)]
    if len(annotated) < 2:
        raise InputError(f"{dataset.name}: {len(annotated)} videos have instances, too few to hold some out for scores")
    every = max(_EVERY, -(-len(annotated) // _MOST))
    held = annotated[every - 1 :: every] or annotated[-1:]
    trained = sorted(set(range(len(dataset))) - set(held))
    # Nothing is trained on it, whatever the whole is for.
    info = dataclasses.replace(dataset.info, purpose=None)
    return (
        PartOfDataset(dataset, trained, name=f"{dataset.name}_trained", info=dataset.info),
        PartOfDataset(dataset, held, name=f"{dataset.name}_held_out", info=info),
    )
