"""Folders that one process at a time may write to; needs a POSIX system, so nothing imports it but what locks."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import output_error, prepare_output_dir


@contextmanager
def locked_folder(path: str | Path, *, who: str, option: str) -> Iterator[None]:
    """Keep other processes out of a folder; the system takes the lock away when the process ends, however it ends.

    The folder is created if it is missing. An empty file ``lock`` stays there.

    Args:
        path: The folder.
        who: What messages call the other process.
        option: The option that names the folder, or one above it.

    Raises:
        InputError: Another process is at work there, or the folder cannot be written.
    """
    lock = prepare_output_dir(path) / "lock"
    try:
        file = lock.open("a")
    except OSError as error:
        raise output_error(lock, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path}: {who} is at work there; wait for it, or choose another {option}") from error
        except OSError as error:
            raise InputError(
                f"{lock}: cannot be locked ({error.strerror}); choose a folder on another disk with {option}"
            ) from error
        yield
