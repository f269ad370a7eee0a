"""Several processes that work as one program: start-up, and waiting for each other."""

import dataclasses
import secrets

from clipvis_jax.errors import InputError


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
            raise InputError("--coordinator, --num-processes and --process-id belong together; give all three or none")
        if self.auto and any(given):
            raise InputError("--distributed.auto finds the other processes itself; leave --coordinator out")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise InputError(f"--num-processes {self.num_processes}: must be 1 or more")
            if not 0 <= self.process_id < self.num_processes:
                raise InputError(f"--process-id {self.process_id}: must be between 0 and {self.num_processes - 1}")


def start_processes(config: DistributedConfig) -> None:
    """Join the other processes; to be called before anything else of JAX. Does nothing for a single process.

    Raises:
        InputError: The other processes cannot be found.
    """
    if not config.auto and config.coordinator is None:
        return
    import jax  # noqa: PLC0415 (options should answer at once)

    try:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--distributed: the processes did not find each other ({reason}); check the address"
        ) from error


def wait_for_all(name: str) -> None:
    """Wait until every process has come to the point of this name."""
    import jax  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
