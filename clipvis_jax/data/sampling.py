"""The order of training examples: which video stands at which position of an endless stream.

An epoch holds every usable video once, or more often where its classes are rare (repeat-factor sampling, LVIS paper,
appendix B.2), in an order of its own. Position, video and epoch follow from the seed alone, so that any process can
start anywhere.
"""

import bisect
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from clipvis_jax.data.records import Dataset, Instance
from clipvis_jax.errors import InputError

_EPOCH = 1
"""Keeps the random numbers of epochs apart from those of `example_rng`."""
_EXAMPLE = 2

_DELAY = 3
"""Seconds before a progress bar appears."""


class ExampleOrder:
    """An endless stream of videos; each epoch is shuffled on its own.

    Attributes:
        videos: Indices of the videos that are drawn from, ascending.
        repeat_factors: How often each of them occurs in an epoch, on average; at least 1. Fractions are rounded up
            or down at random, anew in every epoch, so epochs differ a little in length.
        seed: The seed of everything random.
        category_ids: The classes that these videos show.
    """

    def __init__(
        self,
        videos: Int[np.ndarray, " n"],
        repeat_factors: Float[np.ndarray, " n"],
        seed: int,
        category_ids: frozenset[int] = frozenset(),
    ) -> None:
        if len(videos) == 0:
            raise InputError("there is no video to train on")
        self.videos = videos
        self.repeat_factors = repeat_factors
        self.seed = seed
        self.category_ids = category_ids
        self._ends: list[int] = []
        self._epoch = -1
        self._epoch_ranks = np.zeros(0, int)

    def __getitem__(self, position: int) -> int:
        """Return the index of the video at a position of the stream, counted from 0."""
        return int(self.videos[self._rank(position)])

    def replacement(self, position: int, attempt: int) -> int:
        """Return what stands in for a video that cannot be used: the ``attempt``-th usable one after it.

        The data set is a circle: its first video follows its last.
        """
        return int(self.videos[(self._rank(position) + attempt) % len(self.videos)])

    def epoch(self, index: int) -> Int[np.ndarray, " length"]:
        """Return the videos of an epoch in their order."""
        return self.videos[self._shuffled_ranks(index)]

    def _rank(self, position: int) -> int:
        """Return the place of a position's video among the usable ones."""
        while not self._ends or self._ends[-1] <= position:
            length = int(self._repeats(len(self._ends)).sum())
            self._ends.append(length + (self._ends[-1] if self._ends else 0))
        epoch = bisect.bisect_right(self._ends, position)
        if epoch != self._epoch:
            self._epoch, self._epoch_ranks = epoch, self._shuffled_ranks(epoch)
        return int(self._epoch_ranks[position - self._ends[epoch]])  # counted from the epoch's end

    def _repeats(self, epoch: int) -> Int[np.ndarray, " n"]:
        whole = np.floor(self.repeat_factors)
        draws = _epoch_rng(self.seed, epoch).random(len(whole))
        return (whole + (draws < self.repeat_factors - whole)).astype(int)

    def _shuffled_ranks(self, epoch: int) -> Int[np.ndarray, " length"]:
        rng = _epoch_rng(self.seed, epoch)
        rng.random(len(self.videos))  # those of `_repeats`
        return rng.permutation(np.repeat(np.arange(len(self.videos)), self._repeats(epoch)))


def make_example_order(
    dataset: Dataset, *, seed: int, repeat_threshold: float, show_progress: bool = True
) -> ExampleOrder:
    """Find the usable videos of a data set and how often to repeat each. Decodes no mask, but reads all records.

    Args:
        dataset: Videos with annotations; images are videos of one frame.
        seed: The seed of everything random.
        repeat_threshold: Classes in a smaller share of the usable videos are repeated; 0 repeats nothing.
        show_progress: Show a progress bar if it takes long.

    Raises:
        InputError: No video is usable.
    """
    videos, categories = [], []
    videos_seen = tqdm(
        range(len(dataset)),
        desc="looking for instances to train on",
        unit=" videos",
        delay=_DELAY,
        disable=not show_progress,
    )
    for index in videos_seen:
        present = {instance.category_id for instance in usable_instances(dataset[index].instances)}
        if present:
            videos.append(index)
            categories.append(present)
    if not videos:
        raise InputError(f"{dataset.name}: no video has an instance to train on; is it a test set?")
    factors = repeat_factors(categories, repeat_threshold)
    return ExampleOrder(np.asarray(videos), factors, seed, frozenset(c for present in categories for c in present))


def usable_instances(instances: Iterable[Instance]) -> list[Instance]:
    """Return the instances to train on: no crowds, none without any mask."""
    return [
        instance for instance in instances if not instance.is_crowd and any(mask is not None for mask in instance.masks)
    ]


def repeat_factors(categories: Sequence[Collection[int]], threshold: float) -> Float[np.ndarray, " n"]:
    """Return how often to repeat each video: as often as the rarest of its classes, max(1, sqrt(threshold / share)).

    Args:
        categories: The classes that occur in each video, each once.
        threshold: The share of videos from which on a class is repeated no more.
    """
    counts = Counter(category for present in categories for category in present)
    of_class = {
        category: max(1.0, math.sqrt(threshold * len(categories) / count)) for category, count in counts.items()
    }
    return np.array([max((of_class[category] for category in present), default=1.0) for present in categories], float)


def example_rng(seed: int, position: int) -> np.random.Generator:
    """Return the random numbers of the example at a position of the stream."""
    return np.random.default_rng([_EXAMPLE, seed, position])


def _epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([_EPOCH, seed, epoch])
