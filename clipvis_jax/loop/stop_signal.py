"""Signals that end a training run after the step that it is at."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Notes SIGTERM (a machine that is taken away) and Ctrl-C, so that a step can end and be saved.

    A second signal ends the process at once. Of several processes all stop after the same step.

    Attributes:
        is_set: Whether there was one.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self.is_set = False
        self._interrupts = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        # With several processes JAX listens for SIGTERM itself.
        if jax.process_count() == 1 and current_thread() is main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Tell whether training is to stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.is_set

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt in this block: what is done there can be done again.

        Of several processes each goes through to the end: they could not leave at the same place.
        """
        if self.is_set:
            raise KeyboardInterrupt
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def _note(self, *_: object) -> None:
        self.is_set = True
        self._restore()
        if self._interrupts:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
