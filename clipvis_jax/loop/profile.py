"""A trace of some steps of a training, by JAX's profiler: what the devices and the host do when."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax


class StepProfile:
    """Traces the steps of a range into a folder, which TensorBoard's profile plugin and xprof read."""

    def __init__(self, folder: Path, steps: range | None) -> None:
        """Take the folder, and the steps, numbered from 1; None: trace nothing."""
        self._folder, self._steps, self._is_running = folder, steps or range(0), False

    def __enter__(self) -> "StepProfile":
        return self

    def begin(self, step: int) -> None:
        """Call before a step's batch is asked for."""
        if step in self._steps and not self._is_running:
            jax.profiler.start_trace(self._folder)
            self._is_running = True

    def end(self, step: int, outputs: Any) -> None:
        """Call after a step, with what it computes."""
        if self._is_running and step + 1 not in self._steps:
            jax.block_until_ready(outputs)
            self._stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_running:  # the training ended within the range
            self._stop()

    def _stop(self) -> None:
        self._is_running = False
        jax.profiler.stop_trace()
