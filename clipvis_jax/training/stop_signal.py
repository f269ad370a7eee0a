"""Signals that end a training run after the step that it is at."""

import signal
from threading import current_thread, main_thread
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Notes SIGTERM (a machine that is taken away) and Ctrl-C, so that a step can end and be saved.

    A second signal ends the process at once. Of several processes all stop after the same step.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self._is_set = False
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
        return self._is_set

    def _note(self, *_: object) -> None:
        self._is_set = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
