"""Printing that cannot fail: what nobody reads, or no disk has room for, is no reason to stop a job."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


class _Unfailing:
    """A stream that goes on into nothing where it or its pipe is closed, or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Point the file descriptor at nothing: what is buffered goes there when Python ends, without an error."""
        # A stream in memory or a closed one has no descriptor.
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())


@contextmanager
def unfailing_printing() -> Iterator[None]:
    """Let nothing that is printed in the block fail: for a closed pipe, a full disk, a closed stream or an encoding."""
    streams = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding lacks, as Latin-1 a dash, is printed as its number; stderr does so by itself.
        with suppress(ValueError):  # it is closed
            sys.stdout.reconfigure(errors="backslashreplace")
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        # Python has no stream where the descriptor was closed before it began.
        sys.stdout, sys.stderr = (_Unfailing(stream or nothing) for stream in streams)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
