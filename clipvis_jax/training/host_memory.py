"""How the C library hands out memory, which decides on a CPU's speed more than one would think."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1
"""The largest number that ``mallopt`` takes: never give less than 2 GiB back."""


def keep_freed_memory() -> None:
    """Let the process keep large blocks that it frees from now on, to use them again. Does nothing without glibc.

    What is free already, compilers leave gigabytes behind, is given back first.

    XLA asks for gigabytes at every call on a CPU and frees them after it. By default glibc returns such blocks to the
    system and gets new ones, and the system clears them page by page: a fifth of the time of a training step.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)
