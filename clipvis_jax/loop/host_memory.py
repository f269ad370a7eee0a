"""How the C library hands out memory, which decides on a CPU's speed more than one would think.

XLA asks for gigabytes at every step on a CPU and frees them after it. By default glibc returns such blocks to the
system and gets new ones, and the system clears them page by page: a fifth of the time of a step.
"""

import ctypes
import sys

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1
"""The largest number that ``mallopt`` takes: never give less than 2 GiB back."""


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, to use it again, if it computes on CPUs and has glibc.

    Call it once JAX may start its devices (``distributed.start_processes``), before anything is computed. New threads
    share one arena from then on: those of single threads are small, and given back all the same.
    """
    if jax.default_backend() == "cpu" and (library := _glibc()):
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Give back what is free now: compilers leave gigabytes behind."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
