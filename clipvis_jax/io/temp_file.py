"""Bytes on disk instead of in memory, for as long as somebody holds on to them."""

import os
import tempfile
import weakref
from pathlib import Path

from clipvis_jax.io.files import output_error


class TempFile:
    """An append-only file without a name: the system deletes it with its last user, or with the process."""

    def __init__(self, directory: Path | None = None) -> None:
        """Create the file in ``directory`` (default: the system's folder for temporary files).

        Raises:
            InputError: The file cannot be created.
        """
        self._directory = directory or Path(tempfile.gettempdir())
        self._end = 0
        try:
            with tempfile.TemporaryFile(dir=self._directory, prefix="clipvis-") as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise output_error(self._directory, error) from error
        self._closer = weakref.finalize(self, os.close, self._descriptor)

    def append(self, data: bytes) -> int:
        """Write at the end; returns where the data begin.

        Raises:
            InputError: No space is left.
        """
        start = self._end
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, self._end)
                view = view[written:]
                self._end += written
        except OSError as error:
            raise output_error(self._directory, error) from error
        return start

    def read(self, start: int, length: int) -> bytes:
        """Read what was appended."""
        data = os.pread(self._descriptor, length, start)
        if len(data) != length:
            raise EOFError(f"temporary file in {self._directory}: {length} bytes wanted, {len(data)} found")
        return data

    def close(self) -> None:
        """Delete the file now."""
        self._closer()
