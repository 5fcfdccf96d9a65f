"""Settings of the process, made by the command-line shells before JAX starts; never at import."""

import ctypes
import sys

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep freed memory instead of giving it back to the system. Linux with glibc; elsewhere nothing.

    XLA's CPU client allocates its buffers anew for every step. glibc hands large ones back at once, so each step pays
    for fresh zeroed pages: a third of the time of a small encoder's step.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in (
        (_M_MMAP_MAX, 0),
        (_M_ARENA_MAX, 1),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 2**26),
    ):
        mallopt(parameter, value)
