"""Settings of the process, made by the command-line shells before JAX computes anything; never at import."""

import ctypes
import hashlib
import platform
import sys
from pathlib import Path

from research.data.kept import cache_folder

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def prepare_process() -> None:
    """What makes JAX faster on this machine. XLA's flags are left alone: none of those tried made a step faster."""
    keep_freed_memory()
    keep_compiled_programs()


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache, unless JAX_COMPILATION_CACHE_DIR says where, or nowhere ("").

    Programs for the CPU are for this one's instructions: machines that share a home share none.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / _processor()))


def _processor() -> str:
    """A name for what programs this machine's processor can run."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


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
