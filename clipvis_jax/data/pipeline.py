"""Training batches: an endless stream that the seed alone decides.

Worker processes, the number of processes and restarts change nothing: batch k holds the same examples in the same
order and with the same augmentation, and of every batch a process gets its own contiguous share. Grain runs the
workers; the order is `ExampleOrder`'s.
"""

import dataclasses
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.read_ahead import BatchStream, State
from clipvis_jax.data.records import Dataset, VideoRecord
from clipvis_jax.data.sampling import ExampleOrder, example_rng, make_example_order, usable_instances
from clipvis_jax.data.transforms import LargeScaleJitter, ShortSideResize
from clipvis_jax.errors import InputError

_STRIDE = 32
"""The network's coarsest feature map has one pixel for so many of the input."""


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """What training batches are made of.

    Attributes:
        batch_size: Frames in a batch, over all processes.
        image_size: Height and width of the network's input, multiples of 32.
        augmentation: How frames are moved, scaled and cut.
        max_instances: Places for instances per frame. Where there are more, the largest are kept.
        repeat_threshold: Classes in a smaller share of the videos are repeated; 0 repeats nothing.
        max_unreadable: How many frames may turn out to be unreadable, per process, before training stops.
        num_workers: Processes that prepare batches; 0 prepares them in a thread of this one.
        batches_ahead: How many batches each worker keeps ready.
    """

    batch_size: int = 16
    image_size: tuple[int, int] = (1024, 1024)
    augmentation: LargeScaleJitter | ShortSideResize = LargeScaleJitter()
    max_instances: int = 100
    repeat_threshold: float = 0.001
    max_unreadable: int = 100
    num_workers: int = 2
    batches_ahead: int = 2

    def __post_init__(self) -> None:
        if any(size < _STRIDE or size % _STRIDE for size in self.image_size):
            raise InputError(f"data.image_size {self.image_size}: give a height and a width that {_STRIDE} divides")
        for name, low in (
            ("batch_size", 1),
            ("max_instances", 1),
            ("max_unreadable", 0),
            ("num_workers", 0),
            ("batches_ahead", 1),
        ):
            if getattr(self, name) < low:
                raise InputError(f"data.{name} {getattr(self, name)}: give at least {low}")
        if not 0 <= self.repeat_threshold <= 1:
            raise InputError(f"data.repeat_threshold {self.repeat_threshold}: give a share from 0 to 1")


class HostBatch(NamedTuple):
    """Frames of a process's share of a batch with their instances, before a task puts it on the devices.

    Attributes:
        image: Augmented RGB frames.
        masks_packed: Masks, eight pixels of a row to the byte, first pixel highest; zeros in places not taken.
        valid: Whether a place holds an instance; those that do come first.
        valid_size: Height and width of what the network takes for the picture; beyond, it sees zeros.
        video: Index of each example's video in the data set.
        frame: Index of the frame in its video.
    """

    image: UInt8[np.ndarray, "b h w 3"]
    masks_packed: UInt8[np.ndarray, "b n h w8"]
    valid: Bool[np.ndarray, "b n"]
    valid_size: Int[np.ndarray, "b 2"]
    video: Int[np.ndarray, " b"]
    frame: Int[np.ndarray, " b"]


class TrainIterator(BatchStream[HostBatch]):
    """The stream of a process's shares of all batches; made by `make_train_iterator`.

    Its state has what was found broken so far, by this process.

    Attributes:
        num_cut_off: How many instances found no place so far.
        category_ids: The classes that are trained on.
    """

    def __init__(self, source: "_BatchSource", digest: str) -> None:
        fingerprint = {
            "data": digest,
            "seed": source.order.seed,
            "batch_size": source.config.batch_size,
            "examples": len(source.order.videos),
            "repeat_threshold": source.config.repeat_threshold,
        }
        config = source.config
        super().__init__(source, fingerprint, num_workers=config.num_workers, batches_ahead=config.batches_ahead)
        self._config = config
        self._unreadable: set[tuple[int, int]] = set()
        self.num_cut_off = 0
        self.category_ids = source.order.category_ids

    def get_state(self) -> State:
        """Return where the stream is and what was found broken."""
        broken = {"unreadable": sorted(list(frame) for frame in self._unreadable), "cut_off": self.num_cut_off}
        return super().get_state() | broken

    def set_state(self, state: State) -> None:
        """Go to where a stream of the same data, seed and batch size was.

        Raises:
            InputError: The state belongs to another stream.
        """
        super().set_state(state)
        self._unreadable = {(video, frame) for video, frame in state["unreadable"]}
        self.num_cut_off = int(state["cut_off"])

    def _take(self, raw: dict[str, Any]) -> HostBatch:
        """Report what is broken, and pad masks to their full number of places, which workers leave to us.

        Raises:
            InputError: More frames than allowed cannot be read.
        """
        self._report(raw)
        # Copied, so that the workers' shared memory goes at once and not when the caller lets go of the batch.
        image, num_instances, valid_size, video, frame = (
            np.array(raw[key]) for key in ("image", "num_instances", "valid_size", "video", "frame")
        )
        masks = raw["masks_packed"]
        places = self._config.max_instances
        padded = np.zeros((len(masks), places, *masks.shape[2:]), np.uint8)
        padded[:, : masks.shape[1]] = masks
        return HostBatch(image, padded, np.arange(places) < num_instances[:, None], valid_size, video, frame)

    def _report(self, raw: dict[str, Any]) -> None:
        """Warn of what is broken in a batch, each frame once; stop if it is too much."""
        limit = self._config.max_unreadable
        for video, frame, reason in raw["skipped"]:
            if (video, frame) not in self._unreadable:
                self._unreadable.add((video, frame))
                if len(self._unreadable) > limit:
                    raise InputError(f"more than {limit} frames cannot be used, the last: {reason}")
                warnings.warn(f"skipped a frame, the next usable one stands in: {reason}", stacklevel=3)
        if raw["cut_off"] and not self.num_cut_off:
            places = self._config.max_instances
            warnings.warn(
                f"a frame has more instances than the {places} places of max_instances, and the smallest are left out "
                "(said once)",
                stacklevel=3,
            )
        self.num_cut_off += raw["cut_off"]


def make_train_iterator(
    dataset: Dataset, config: PipelineConfig, *, seed: int = 0, process_index: int = 0, process_count: int = 1
) -> TrainIterator:
    """Make the stream of training batches of one process; see `TrainIterator`.

    Args:
        dataset: The data; it is pickled for the worker processes.
        config: What the batches are made of.
        seed: Decides the order of examples and all augmentation; 0 or more.
        process_index: Which share of every batch to make.
        process_count: Into how many shares a batch is divided.

    Raises:
        InputError: The processes do not divide the batch, or there is nothing to train on.
    """
    if config.batch_size % process_count:
        raise InputError(f"data.batch_size {config.batch_size}: give a multiple of the {process_count} processes")
    if not dataset.has_annotations:
        raise InputError(f"{dataset.name}: has no annotations; give a data set to train on")
    order = make_example_order(
        dataset, seed=seed, repeat_threshold=config.repeat_threshold, show_progress=process_index == 0
    )
    share = config.batch_size // process_count
    return TrainIterator(_BatchSource(dataset, config, order, process_index * share, share), dataset.digest)


class _Example(NamedTuple):
    """A frame and its masks, not yet padded."""

    image: UInt8[np.ndarray, "h w 3"]
    masks_packed: UInt8[np.ndarray, "n h w8"]
    valid_size: tuple[int, int]
    video: int
    frame: int
    num_cut_off: int


@dataclasses.dataclass(frozen=True)
class _BatchSource:
    """All shares of one process by their number, as grain reads them; workers get a copy.

    Attributes:
        start: Where the share starts in a batch.
        share: How many examples of a batch it holds.
    """

    dataset: Dataset
    config: PipelineConfig
    order: ExampleOrder
    start: int
    share: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a share as arrays, with lists of what was skipped and how much was cut off."""
        first = int(index) * self.config.batch_size + self.start
        skipped: list[tuple[int, int, str]] = []
        examples = [self._example(first + i, skipped) for i in range(self.share)]
        num_instances = np.array([len(example.masks_packed) for example in examples], np.int32)
        height, width = self.config.image_size
        masks_packed = np.zeros((self.share, max(num_instances.max(), 1), height, width // 8), np.uint8)
        for example, masks in zip(examples, masks_packed, strict=True):
            masks[: len(example.masks_packed)] = example.masks_packed
        return {
            "image": np.stack([example.image for example in examples]),
            "masks_packed": masks_packed,
            "num_instances": num_instances,
            "valid_size": np.array([example.valid_size for example in examples], np.int32),
            "video": np.array([example.video for example in examples], np.int32),
            "frame": np.array([example.frame for example in examples], np.int32),
            "skipped": skipped,
            "cut_off": sum(example.num_cut_off for example in examples),
        }

    def _example(self, position: int, skipped: list[tuple[int, int, str]]) -> _Example:
        """Make the example at a position of the stream, or of the next video that can be used."""
        rng = example_rng(self.order.seed, position)
        for attempt in range(self.config.max_unreadable + 1):
            video = self.order.replacement(position, attempt)
            record = self.dataset[video]
            # Matches the authors' code: all frames are equally likely, those without instances too.
            frame = int(rng.integers(record.length))
            try:
                return self._view(rng, record, video, frame)
            except InputError as error:
                skipped.append((video, frame, str(error)))
        raise InputError(f"{len(skipped)} frames in a row cannot be used, the last: {skipped[-1][2]}")

    def _view(self, rng: np.random.Generator, record: VideoRecord, video: int, frame: int) -> _Example:
        """Read and augment a frame.

        Raises:
            InputError: It cannot be used.
        """
        pixels = decode_frame(self.dataset, video, frame, record)
        view = self.config.augmentation.draw(rng, (record.height, record.width), self.config.image_size)
        try:
            masks = [
                view.mask(mask)
                for instance in usable_instances(record.instances)
                if (mask := instance.masks[frame]) is not None
            ]
        except InputError as error:
            raise InputError(f"{self.dataset.name}: {record.file_names[frame]}: {error}") from error
        # Differs from the authors' code: they keep an outline that is too thin to cover a pixel, as an empty mask.
        masks = [mask for mask in masks if mask.any()]
        num_cut_off = max(len(masks) - self.config.max_instances, 0)
        if num_cut_off:
            areas = [int(np.bitwise_count(mask).sum()) for mask in masks]
            largest = np.argsort(areas, kind="stable")[num_cut_off:]
            masks = [masks[i] for i in np.sort(largest)]
        height, width = self.config.image_size
        packed = np.stack(masks) if masks else np.zeros((0, height, width // 8), np.uint8)
        return _Example(view.frame(pixels), packed, view.valid_size, video, frame, num_cut_off)
