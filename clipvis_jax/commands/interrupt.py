"""Ctrl-C while nothing is being written."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

STOPPED = "clipvis: stopped; nothing was written"
GOES_ON = "clipvis: stopped; the same command goes on from here"


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once; for blocks that write nothing.

    Python's own way, an exception, is lost or worse in the middle of imports.
    """

    def stop(*_: object) -> None:
        os.write(2, f"{STOPPED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield  # somebody else's to decide
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
