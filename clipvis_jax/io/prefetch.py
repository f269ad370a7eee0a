"""Do the work of an iterator in another thread, some items ahead."""

from collections.abc import Generator, Iterable
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

_ITEM = TypeVar("_ITEM")


def prefetch(items: Iterable[_ITEM], depth: int) -> Generator[_ITEM, None, None]:
    """Produce up to `depth` items (at least 1) ahead in a background thread.

    An exception in `items` is raised here, after the items before it. When this iterator is closed or
    dropped, the thread ends after the item that it is working on. Closing waits for that, but half a second at most:
    a camera or a network share may never give its next item. Such a thread keeps no program from ending.
    """
    if depth < 1:
        raise ValueError(f"depth {depth}: must be 1 or more")
    free_slots = Semaphore(depth)
    stop = Event()
    # An item comes in a tuple of one; at the end comes None or the exception that ended the items.
    produced: SimpleQueue[tuple[_ITEM] | BaseException | None] = SimpleQueue()

    def produce() -> None:
        end: BaseException | None = None
        try:
            iterator = iter(items)
            while free_slots.acquire() and not stop.is_set():
                produced.put((next(iterator),))
        except StopIteration:
            pass
        except BaseException as error:  # raised again by the consumer
            end = error
        produced.put(end)

    # A daemon: neither an iterator that is still referenced nor a source that blocks may keep the interpreter alive.
    thread = Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(message := produced.get(), tuple):
            free_slots.release()
            yield message[0]
        if message is not None:
            raise message
    finally:
        stop.set()
        free_slots.release()
        thread.join(timeout=0.5)
