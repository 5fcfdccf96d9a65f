# mypy: disable-error-code="attr-defined"
import contextlib
import os
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import jaxlib
import pytest

from research.base.errors import UserError
from research.devices.platform import (
    check_compiler,
    compiler_options,
    keep_compiled_programs,
    prefer_python,
    quick_random_bits,
)
from research.training.experiment import prepare
from research.training.program import Program
from tests import tiny


@pytest.fixture(autouse=True)
def _restore():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_cached_per_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs()
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(f"{tmp_path}/xla/")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr("research.devices.platform._processor", lambda: "another")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/xla/another" != folder


@pytest.mark.parametrize("own", ["", "/somewhere"])
def test_setting_of_the_user_is_kept(own):
    jax.config.update("jax_compilation_cache_dir", own)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == own


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_python_runs_before_xla():
    jax.local_devices()  # starts XLA's threads
    prefer_python()
    priorities: dict[str, set[int]] = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        priorities.setdefault(name, set()).add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), 0)
    assert priorities.pop("tf_XLAEigen") == {5}
    assert set.union(*priorities.values()) == {0}


def test_compiler_accepts_the_options():
    """XLA raises an error for an option that this jaxlib does not have."""
    options = compiler_options("convolutions")
    assert options
    x = jnp.ones((2, 4, 4, 3))
    convolved = jax.jit(lambda x: jax.lax.conv(x, jnp.ones((2, 4, 3, 3)), (1, 1), "SAME"), compiler_options=options)
    assert convolved(x).shape == (2, 2, 4, 3)
    assert not compiler_options("default")


def test_other_devices_have_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options("convolutions") is None


def test_unknown_compiler_setting_names_the_nearest():
    with pytest.raises(UserError, match="compiler 'convolution' is unknown; did you mean 'convolutions'"):
        compiler_options("convolution")


def test_compiler_that_computes_wrong_sums_is_rejected(monkeypatch):
    """The message says what to install. Programs for a GPU do not use the CPU compiler."""
    monkeypatch.setattr(jaxlib, "__version__", "0.10.2")
    with pytest.raises(UserError, match=r"jaxlib 0\.10\.2 .*jax==0\.10\.1"):
        prepare(tiny.logistic())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_compiler()


@pytest.mark.parametrize("release", ["0.10.1", "0.11.2", "0.12.0.1"])
def test_other_compilers_are_accepted(monkeypatch, release):
    monkeypatch.setattr(jaxlib, "__version__", release)
    check_compiler()


def test_untested_jaxlib_has_no_options(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "0.13.0")
    assert compiler_options("convolutions") is None


def _programs_for_a_gpu(context):
    def program():  # a new function each time, as `jit` keeps what it has traced
        return jax.random.normal(jax.random.key(0), (4,))

    call = jax.export.DisabledSafetyCheck.custom_call("cu_threefry2x32_ffi")
    with context:
        return jax.export.export(jax.jit(program), platforms=["cuda"], disabled_checks=[call])().mlir_module()


def test_random_bits_of_initialization_are_a_kernel_on_gpus():
    assert "@cu_threefry2x32" in _programs_for_a_gpu(quick_random_bits())
    assert "@cu_threefry2x32" not in _programs_for_a_gpu(contextlib.nullcontext())  # the setting is as before


def test_a_run_is_initialized_with_them():
    seen = []
    experiment = prepare(tiny.logistic())
    program = Program(lambda: seen.append(jax.config.jax_threefry_gpu_kernel_lowering), len, None, None)
    init, _ = program.compiled(experiment.mesh, None)
    init()
    assert seen == [True]
    assert not jax.config.jax_threefry_gpu_kernel_lowering
