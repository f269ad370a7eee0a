"""Several processes that work as one program: start-up, waiting for each other, and ending together.

They meet at the coordinator, a service of process 0 that keeps keys and values, and not through their devices: these
give up on each other when one comes later than another (CPU devices after 30 seconds, when they first meet).
"""

import atexit
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing import active_children
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any

from tqdm import tqdm

from clipvis_jax.errors import InputError

_PATIENCE_S = 300
"""For how long a process looks for process 0; JAX waits as long for all of them."""

_WATCH_S = 1
"""How often a process asks whether another has failed."""

_FAREWELL_S = 10
"""For how long process 0, without which nobody learns of an error, waits for the others to have read one."""

_ERROR = "clipvis/error/"
_ENDED = "clipvis/ended/"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How processes find each other.

    Attributes:
        auto: Ask the surroundings: TPU pods, SLURM, Open MPI and Kubernetes are recognised by JAX.
        coordinator: HOST:PORT of process 0, where nothing is recognised.
        num_processes: Number of processes, with ``coordinator``.
        process_id: This process's number, from 0, with ``coordinator``.
    """

    auto: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(given) != all(given):
            raise InputError(
                "distributed: coordinator, num_processes and process_id belong together; give all three or none"
            )
        if self.auto and any(given):
            raise InputError("distributed.auto True: finds the other processes itself; leave coordinator out")
        if self.coordinator is not None and _address(self.coordinator) is None:
            raise InputError(f"distributed.coordinator {self.coordinator}: give HOST:PORT of process 0")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise InputError(f"distributed.num_processes {self.num_processes}: must be 1 or more")
            if not 0 <= self.process_id < self.num_processes:
                raise InputError(
                    f"distributed.process_id {self.process_id}: must be between 0 and {self.num_processes - 1}"
                )


def start_processes(config: DistributedConfig) -> None:
    """Join the other processes; to be called before anything else of JAX. Does nothing for a single process.

    From then on this process ends when another one calls ``end_all``.

    Raises:
        InputError: The other processes cannot be found.
    """
    if not config.auto and config.coordinator is None:
        return
    if config.coordinator is not None and config.process_id != 0:
        _find(config.coordinator)
    import jax  # noqa: PLC0415 (options should answer at once)

    try:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        advice = "give the coordinator instead" if config.auto else "check the coordinator"
        raise InputError(f"distributed: the processes did not find each other ({reason}); {advice}") from error
    # Devices look for each other now, while all processes are here: they wait for two minutes.
    if jax.process_count() > 1:
        _watch_others()


def _address(coordinator: str) -> tuple[str, int] | None:
    """Take HOST:PORT apart; None if it is not that."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):([0-9]{1,5})", coordinator)
    if match is None or not 0 < int(match[2]) < 2**16:
        return None
    return match[1].strip("[]"), int(match[2])


def _find(coordinator: str) -> None:
    """Wait until process 0 answers. JAX would end the program with a C++ stack trace if it did not.

    Raises:
        InputError: It does not.
    """
    address = _address(coordinator)
    assert address is not None
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(address, timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or error
                raise InputError(
                    f"distributed.coordinator {coordinator}: process 0 does not answer there ({reason}); start it, "
                    "or check the address"
                ) from error
        time.sleep(0.5)


def wait_for_all(name: str) -> None:
    """Wait until every process has come to the point of this name, for any time.

    Also needed before the first program in which the devices of several processes talk to each other: a process that
    finds it in its cache of compiled programs is far ahead of the others.

    Raises:
        InputError: Another process has come to a point of another name.
    """
    import jax  # noqa: PLC0415

    if jax.process_count() > 1:
        _exchange(name, "here")


def largest_of_all(number: int) -> int:
    """Return the largest of all processes' numbers; each waits until all have asked."""
    import jax  # noqa: PLC0415

    return number if jax.process_count() == 1 else max(map(int, _exchange("largest", str(int(number)))))


def _coordinator() -> Any:
    """Return the connection to the coordinator, for which JAX has no public name; orbax takes the same one."""
    from jax._src import distributed  # noqa: PLC0415

    return distributed.global_state.client


_meetings = itertools.count()


def _exchange(name: str, text: str) -> list[str]:
    """Return what every process gives at this point, by their numbers; waits for all, for any time.

    All processes have to come to the same points in the same order. Unlike a barrier of the coordinator it can be
    left by Ctrl-C.

    Raises:
        InputError: Another process has come to a point of another name.
    """
    import jax  # noqa: PLC0415

    coordinator, folder, pause = _coordinator(), f"clipvis/{next(_meetings)}/", 0.001
    coordinator.key_value_set(f"{folder}{jax.process_index()}", json.dumps([name, text]))
    while True:
        given = {int(key.rpartition("/")[2]): json.loads(value) for key, value in coordinator.key_value_dir_get(folder)}
        for number, (other, _) in given.items():
            if other != name:
                raise InputError(
                    f"distributed: process {number} is at '{other}', and process {jax.process_index()} at '{name}'; "
                    "start all with the same options and the same version"
                )
        if len(given) == jax.process_count():
            return [text for _, (_, text) in sorted(given.items())]
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


_is_watching = Event()
_has_ended = Event()
_ending = Lock()
"""Taken, for good, by the thread that ends the process because of an error."""


def end_all(reason: str, code: int, line: str | None = None) -> None:
    """End this process because of an error, and all others, which print the reason; returns if there are no others.

    They end wherever they are: devices that wait for each other cannot be interrupted. Not by Python's own end, where
    JAX waits until all processes have come to theirs. From here on Ctrl-C ends this process at once.

    Args:
        reason: What the others say of this process.
        code: Exit code of this process; 130 if the user stops it. That of the others is 130 then, too, otherwise 2.
        line: What this process prints. None: that another one has failed, stopped or is gone, of which the error that
            is being handled is a consequence, or else its traceback.
    """
    if not _is_watching.is_set():
        return
    import jax  # noqa: PLC0415

    if current_thread() is main_thread():
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    _ending.acquire()
    try:
        text = line
        if line is None and "gloo" in reason.lower():
            reason = f"lost another process ({reason}); see what that one says"
            text = f"clipvis: error: {reason}"
        with suppress(RuntimeError):  # it is raised if there is an error already, or the coordinator is gone
            _coordinator().key_value_set(f"{_ERROR}first", f"{jax.process_index()} {code} {reason}")
        with suppress(RuntimeError):
            if line is None and (earlier := _failure_elsewhere()) is not None:
                code, text = earlier
        _take_leave(text or traceback.format_exc())
    finally:
        os._exit(code)  # whatever fails


def _take_leave(text: str) -> None:
    """Print a text, and let the others learn of the error; returns in process 0 when they have."""
    import jax  # noqa: PLC0415

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()  # the text gets a line of its own
    with suppress(OSError, ValueError, RuntimeError):  # it is closed, or Ctrl-C came while something was printed
        print(text.rstrip(), file=sys.stderr, flush=True)  # noqa: T201 (a traceback has lines)
        sys.stdout.flush()
    for child in active_children():
        child.kill()
    if jax.process_index() > 0:
        _coordinator().key_value_set(f"{_ENDED}{jax.process_index()}", "read")
        return
    # Without process 0 nobody could read the error, and JAX would end them with a C++ stack trace.
    end = time.monotonic() + _FAREWELL_S
    while len(_coordinator().key_value_dir_get(_ENDED)) < jax.process_count() - 1 and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)


def _failure_elsewhere() -> tuple[int, str] | None:
    """Return this process's exit code and line if another one was the first to fail, or to be stopped."""
    import jax  # noqa: PLC0415

    for _, text in _coordinator().key_value_dir_get(_ERROR):
        number, code, reason = text.split(" ", 2)
        if int(number) != jax.process_index():
            is_stopped = int(code) == 130
            return (130 if is_stopped else 2), f"clipvis: {'' if is_stopped else 'error: '}process {number}: {reason}"
    return None


def _watch_others() -> None:
    """Ask from now on, in a thread, whether another process has failed, and then end this one."""

    def watch() -> None:
        while not _has_ended.wait(_WATCH_S):
            with suppress(RuntimeError):
                failure = _failure_elsewhere()
                if failure is not None:
                    code, line = failure
                    _ending.acquire()
                    try:
                        _take_leave(line)
                    finally:
                        os._exit(code)

    def stop() -> None:
        _has_ended.set()
        thread.join()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    atexit.register(stop)  # before JAX closes the connection
    _is_watching.set()
