"""Printing that cannot fail or be forged.

What nobody reads, or no disk has room for, is no reason to stop a job. Names of files and classes come from anywhere:
none begins a line of its own, moves the cursor or turns the writing.
"""

import io
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipvis_jax.errors import printable, without_controls

_PROGRESS = re.compile(r"\r|(\x1b\[A)+")
"""What a progress bar moves the cursor by: in front of a text, or alone."""
_COLOR = re.compile(r"(\x1b\[[0-9;]{0,15}m)")
"""What a help text is coloured by, on a terminal."""


def print_lines(*lines: str, file: Any = None) -> None:
    """Print lines to a stream, by default stdout; what would break or control them is escaped."""
    for line in lines:
        print(printable(line), file=file)


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
    caption: str = "",
) -> None:
    """Print a table; whatever its texts hold, they are nothing but text on a line.

    Args:
        title: The line above it.
        headings: Of the columns.
        rows: The cells.
        left: The headings of columns that are aligned to the left, not to the right.
        caption: The text below it.
    """
    from rich.console import Console  # noqa: PLC0415 (help needs no tables)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    def text(cell: str) -> Text:
        return Text(printable(cell))  # brackets are no markup

    table = Table(title=text(title), caption=text(caption), title_justify="left", caption_justify="left")
    for heading in headings:
        table.add_column(text(heading), justify="left" if heading in left else "right")
    for row in rows:
        table.add_row(*map(text, row))
    # Without colours nothing but text is written.
    Console(color_system=None).print(table)


class _SafeStream:
    """A stream that goes on into nothing where it or its pipe is closed, or its disk is full, and escapes controls."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(self._escaped(text))
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

    def _escaped(self, text: str) -> str:
        """Escape controls, but for those of progress bars and of colours on a terminal."""
        if text.isprintable():
            return text
        bar = _PROGRESS.match(text)
        start = bar.end() if bar and (bar[0] == "\r" or bar.end() == len(text)) else 0
        stop = len(text) - (text.endswith("\r") and len(text) > start)
        parts = _COLOR.split(text[start:stop]) if self.isatty() else [text[start:stop]]
        parts[::2] = map(without_controls, parts[::2])
        return text[:start] + "".join(parts) + text[stop:]

    def _give_up(self) -> None:
        """Point the file descriptor at nothing: what is buffered goes there when Python ends, without an error."""
        # A stream in memory or a closed one has no descriptor.
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())


@contextmanager
def safe_printing() -> Iterator[None]:
    """Let nothing that is printed in the block fail, for a pipe, a disk or an encoding, or control the terminal."""
    streams = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding lacks, as Latin-1 a dash, is printed as its number; stderr does so by itself.
        with suppress(ValueError):  # it is closed
            sys.stdout.reconfigure(errors="backslashreplace")
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        # Python has no stream where the descriptor was closed before it began.
        sys.stdout, sys.stderr = (_SafeStream(stream or nothing) for stream in streams)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
