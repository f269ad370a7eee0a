"""What Ctrl-C does to a command."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType

from clipvis_jax.distributed import end_all

STOPPED = "clipvis: stopped; nothing was written"
GOES_ON = "clipvis: stopped; the same command goes on from here"


class CtrlC:
    """Handler of Ctrl-C that raises KeyboardInterrupt, as Python's own does, and remembers it.

    Native code in which it is raised may turn it into an error of its own: numpy makes a TypeError of it.
    """

    def __init__(self) -> None:
        """Begin with ``pressed`` false."""
        self.pressed = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, and remember."""
        self.pressed = True
        signal.default_int_handler(signal_number, frame)


@contextmanager
def remembering_ctrl_c() -> Iterator[CtrlC]:
    """Let a ``CtrlC`` handle Ctrl-C for a while, and hand it out."""
    handler = CtrlC()
    with _handling(handler):
        yield handler


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once; for blocks that write nothing.

    Python's own way, an exception, is lost or worse in the middle of imports.
    """

    def stop(*_: object) -> None:
        end_all("stopped", 130, STOPPED)
        # Where Python began without stderr, 2 may be the number of an opened file.
        if sys.__stderr__ is not None:
            with suppress(OSError):
                os.write(2, f"{STOPPED}\n".encode())
        os._exit(130)

    with _handling(stop):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C by ``handler``, unless it is somebody else's to decide."""
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler or isinstance(before, CtrlC)
    if not ours or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
