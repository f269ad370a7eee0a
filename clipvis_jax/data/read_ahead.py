"""Items of a source ahead of their use, in a thread or in worker processes, always in the source's order."""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any, Protocol, runtime_checkable

import grain
from absl import flags


@runtime_checkable
class Source(Protocol):
    """Items by their number; can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def read_ahead(source: Source, *, num_workers: int, items_ahead: int) -> grain.DatasetIterator:
    """Start to read a source from its first item.

    Args:
        source: What to read; pickled for the workers, so what it returns must follow from the number alone.
        num_workers: Processes that read; 0 reads in a thread of this one.
        items_ahead: How many items each of them keeps ready.

    Returns:
        An iterator to be closed, also at the program's end: grain's own clean-up comes too late then.
    """
    items = grain.MapDataset.source(source)
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
