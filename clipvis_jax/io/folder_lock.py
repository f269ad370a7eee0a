"""Folders that one process at a time may write to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import output_error, prepare_output_dir

LOCK = "lock"
"""The file that is locked. It stays in the folder, and means nothing there: the system drops a lock with its process,
however that ends."""


@contextmanager
def locked_folder(path: str | Path, *, who: str, place: Path | None = None) -> Iterator[None]:
    """Keep other processes out of a folder, which is created if it is missing.

    Args:
        path: The folder.
        who: What messages call the other process.
        place: What messages call the folder, if not by its path.

    Raises:
        InputError: Another process is at work there, or the folder cannot be written.
    """
    lock = FileLock(prepare_output_dir(path) / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{place or path}: {who} is at work there; wait for it, or choose another folder") from error
    except OSError as error:
        raise output_error(lock.lock_file, error) from error
    try:
        yield
    finally:
        lock.release()
