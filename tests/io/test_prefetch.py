"""Items from another thread: order, errors, and no thread left behind."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from clipvis_jax.errors import InputError
from clipvis_jax.io.prefetch import prefetch


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_prefetch_keeps_items_and_order() -> None:
    items = [0, None, ValueError("an item"), (1, 2), *range(50)]
    assert list(prefetch(items, 3)) == items
    assert list(prefetch([], 1)) == []
    assert prefetch_threads() == []


def test_prefetch_works_ahead_as_far_as_it_may() -> None:
    produced: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            produced.append(i)
            yield i

    iterator = prefetch(items(), 3)
    assert next(iterator) == 0
    wait_until(lambda: len(produced) == 4)
    time.sleep(0.05)
    assert produced == [0, 1, 2, 3]
    assert next(iterator) == 1
    wait_until(lambda: len(produced) == 5)


def test_prefetch_raises_what_the_items_raise() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("frame 2 is broken")

    seen = []
    with pytest.raises(InputError, match="frame 2 is broken"):
        seen.extend(prefetch(items(), 5))
    assert prefetch_threads() == []
    iterator = prefetch(items(), 5)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(InputError, match="frame 2 is broken"):
        next(iterator)


@pytest.mark.parametrize("depth", [1, 4])
def test_prefetch_stops_with_its_consumer(depth: int) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.set()

    for number in prefetch(items(), depth):
        if number == 5:
            break
    assert prefetch_threads() == []
    assert closed.is_set(), "the video would stay open"

    iterator = prefetch(items(), depth)
    next(iterator)
    assert len(prefetch_threads()) == 1
    iterator.close()
    assert prefetch_threads() == []


def test_prefetch_does_not_wait_for_a_source_that_blocks() -> None:
    next_frame, closed = threading.Event(), threading.Event()

    def camera() -> Iterator[int]:
        try:
            yield 0
            next_frame.wait()
            yield 1
        finally:
            closed.set()

    iterator = prefetch(camera(), 2)
    assert next(iterator) == 0
    start = time.monotonic()
    iterator.close()
    assert time.monotonic() - start < 2
    (thread,) = prefetch_threads()
    assert thread.daemon
    next_frame.set()
    wait_until(lambda: not prefetch_threads())
    assert closed.is_set()


def test_prefetch_needs_room() -> None:
    with pytest.raises(ValueError, match="depth 0"):
        list(prefetch([1], 0))
