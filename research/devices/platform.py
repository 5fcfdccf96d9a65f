"""Machine-specific settings of the process, made by the command-line shells, and of the compiler. None at import."""

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from research.base.errors import UserError
from research.base.paths import cache_folder
from research.base.registry import lookup

_NICE = 5  # a third of the time of a thread with the usual priority, 0, where both want to run

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


# XLA CPU option sets, by the config's `compiler`. Each suits a kind of network: what makes a ResNet's step 1.4 times as
# fast makes an encoder's slower. Library fusion is for reductions only: with element-wise operations too, jaxlib 0.10.1
# rounds to bfloat16 away from zero and 0.12 rejects some programs; with products, 0.10.1 computes wrong sums; and
# neither makes a ResNet's step faster (tests/compiler_test.py).
_CPU_OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "convolutions": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}
_MEASURED = ((0, 10), (0, 11), (0, 12))  # the jaxlib versions with which these options were tested

# Releases of jaxlib that compute wrong sums on a CPU (tests/compiler_test.py), with the bug report.
_MISCOMPILING = {"0.10.2": "jax#39103"}


def check_compiler() -> None:
    """Raises UserError on a CPU with a jaxlib that is known to compute wrong results there."""
    import jax
    import jaxlib

    report = _MISCOMPILING.get(jaxlib.__version__)
    if report and jax.default_backend() == "cpu":
        raise UserError(
            f"jaxlib {jaxlib.__version__} computes wrong sums on CPUs ({report}): install another release of jax, "
            "pip install 'jax==0.10.1' with Python 3.11, pip install -U 'jax<0.13' with a later one"
        )


# XLA simplifies a program for one device in another order than one for several, which changes the rounding. Without the
# simplifier both are the same program (tests/exact_test.py).
_EXACT_OPTIONS = {"xla_disable_hlo_passes": "algsimp"}


def compiler_options(kind: str, *, exact: bool = False) -> dict[str, str] | None:
    """The `jax.jit` options that the config's `compiler` names: only on a CPU, and with a tested jaxlib.

    `exact`: with those that keep the bits of a program the same for any number of devices. Raises UserError for an
    unknown name.
    """
    import jax
    import jaxlib

    options = {**lookup(_CPU_OPTIONS, kind, "compiler"), **(_EXACT_OPTIONS if exact else {})}
    measured = tuple(map(int, jaxlib.__version__.split(".")[:2])) in _MEASURED
    return options if options and measured and jax.default_backend() == "cpu" else None


@contextlib.contextmanager
def x64(dtype: str) -> Iterator[None]:
    """Context in which a run of the config's `dtype` is compiled and computed: enables float64 in JAX if needed."""
    import jax

    # For the whole process: `jax.enable_x64` affects one thread, and other threads read and write checkpoints.
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextlib.contextmanager
def quick_random_bits() -> Iterator[None]:
    """Context in which a program that draws many random arrays compiles quickly on a GPU: with a kernel for their bits.

    The bits are the same. BERT-base's initialization compiles in 5 s instead of more than 100 s on an H100 with jax
    0.11.2; a train step with dropout, however, takes 1.7 times as long (benchmarks/results/accelerator.md).
    """
    import jax

    name = "jax_threefry_gpu_kernel_lowering"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def prepare_process() -> None:
    """Applies the process settings that make JAX faster on this machine."""
    keep_freed_memory()
    keep_compiled_programs()


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache, unless JAX_COMPILATION_CACHE_DIR names a folder, or none ("").

    CPU programs depend on the processor's instructions, so different machines with one home do not share them.
    """
    folder = str(cache_folder() / "xla" / _processor())
    if "jax" not in sys.modules:  # read at import, which takes a second: too long for --help
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
        return
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", folder)


def prefer_python() -> None:
    """Lets this process's Python threads run before XLA's on a CPU, which are busy as long as there is work.

    No effect except on Linux, where each thread has its own priority.
    """
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # the thread has ended
            if (task / "comm").read_text().startswith("tf_XLAEigen"):
                os.setpriority(os.PRIO_PROCESS, int(task.name), _NICE)


def keep_all_programs() -> None:
    """Keeps programs too that compile in less than a second, JAX's limit: for a process that compiles many of them."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """A name for the instruction set of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system. No effect except on Linux with glibc.

    XLA's CPU client allocates its buffers again for every step. glibc returns large ones at once, so each step pays for
    fresh zeroed pages: a third of the time of a small encoder's step.
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
