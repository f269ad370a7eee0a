"""Several processes that work as one program: start-up, and waiting for each other."""

import dataclasses
import re
import secrets
import socket
import time

from clipvis_jax.errors import InputError

_HOUR_MS = 3_600_000

_PATIENCE_S = 300
"""For how long a process looks for process 0; JAX waits as long for all of them."""


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
    """Wait until every process has come to the point of this name."""
    import jax  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def wait_for_compilation(name: str) -> None:
    """Wait until every process has compiled the program of this name; for each name once.

    One that finds the program in its cache is far ahead of the others, and CPU devices give up on each other after 30
    seconds. So only the coordinator is asked here, no device.
    """
    import jax  # noqa: PLC0415
    from orbax.checkpoint import multihost  # noqa: PLC0415

    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"compiled {name}", timeout_ms=_HOUR_MS)


def common_random_name() -> str:
    """Return eight random characters, the same in all processes; each waits until all have asked."""
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    name = secrets.token_bytes(4)
    if jax.process_count() > 1:
        name = np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(name, np.uint8))).tobytes()
    return name.hex()


def largest_of_all(number: int) -> int:
    """Return the largest of all processes' numbers, which fit into 32 bits; each waits until all have asked."""
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
