"""Batches ahead of their use, from a thread or worker processes, always in the same order; they resume anywhere."""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import grain
from absl import flags

from clipvis_jax.errors import InputError

Batch = TypeVar("Batch")
Stream = TypeVar("Stream", bound="BatchStream")

State = dict[str, Any]
"""Where a stream is: JSON."""


@runtime_checkable
class Source(Protocol):
    """Items by their number; can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class BatchStream(Iterator[Batch]):
    """An endless iterator over the batches of a source.

    Close it, or use it as a context, so that worker processes and shared memory go at once. Its state is the number
    of batches handed out; it fits any number of workers and processes. A caller that fetches ahead must keep the state
    that belongs to the batch it works on.
    """

    def __init__(self, source: Source, fingerprint: State, *, num_workers: int, batches_ahead: int) -> None:
        """Begin with the first batch; workers start when it is asked for.

        Args:
            source: The batches by number, see ``read_ahead``.
            fingerprint: What they follow from; a state that goes with another is refused.
            num_workers: Processes that make batches; 0 makes them in a thread of this one.
            batches_ahead: How many batches each of them keeps ready.
        """
        self._source = source
        self._fingerprint = fingerprint
        self._options = {"num_workers": num_workers, "items_ahead": batches_ahead}
        self._next_batch = 0
        self._running: list[grain.DatasetIterator] = []  # none or one
        # For programs that end without `close`: grain's own clean-up comes too late then.
        weakref.finalize(self, _close, self._running)

    def __next__(self) -> Batch:
        """Return the next batch."""
        if not self._running:
            self._running.append(read_ahead(self._source, self._next_batch, **self._options))
        try:
            batch = self._take(next(self._running[0]))
        except BaseException:
            self.close()
            raise
        self._next_batch += 1
        return batch

    @abstractmethod
    def _take(self, raw: Any) -> Batch:
        """Make a batch of what the source gives, whose arrays may lie in the workers' shared memory."""

    def __enter__(self: Stream) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        _close(self._running)

    def get_state(self) -> State:
        """Return where the stream is, as JSON: `set_state` with it makes the next batch the same again."""
        return {**self._fingerprint, "batches": self._next_batch}

    def set_state(self, state: State) -> None:
        """Go to where a stream with the same fingerprint was.

        Raises:
            InputError: The state belongs to another stream.
        """
        for name, value in self._fingerprint.items():
            if state.get(name) != value:
                raise InputError(
                    f"data state: '{name}' was {state.get(name)!r} when it was saved and is {value!r} now; "
                    "resume with the same data and settings, or start a new run from the saved parameters"
                )
        self.close()
        self._next_batch = int(state["batches"])


def _close(running: list[grain.DatasetIterator]) -> None:
    while running:
        running.pop().close()


def read_ahead(source: Source, first: int = 0, *, num_workers: int, items_ahead: int) -> grain.DatasetIterator:
    """Start to read a source.

    Args:
        source: What to read; pickled for the workers, so what it returns must follow from the number alone.
        first: The number of the first item.
        num_workers: Processes that read; 0 reads in a thread of this one.
        items_ahead: How many items each of them keeps ready.

    Returns:
        An iterator to be closed, also at the program's end: grain's own clean-up comes too late then.
    """
    items = grain.MapDataset.source(source).slice(slice(first, None))
    if num_workers == 0:
        return iter(items.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=items_ahead)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its workers
    return iter(
        items.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=items_ahead),
            worker_init_fn=_init_worker,
        )
    )


def _init_worker(worker: int, num_workers: int) -> None:
    """Make a worker depend on its parent alone."""
    # Signals for the whole group (Ctrl-C, preemption) are the parent's to answer: it may still need items.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The accelerator is the parent's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    """Wait for the parent's end, which a killed one cannot announce; grain's workers would stay for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
