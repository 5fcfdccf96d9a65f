"""Strict settings for every test: eight CPU devices, no implicit rank promotion, no network."""

import gc
import os
import socket

os.environ.pop("JAX_PLATFORMS", None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["HF_HUB_OFFLINE"] = "1"
# Eight devices on few cores wait for each other, on a busy machine longer than XLA's default timeout.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_warn_stuck_timeout_seconds=300 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Disables most XLA optimizations in the quick and the extended tests, and those in a browser.

    They run each small program once or twice, so that compilation would take most of their time. The other marked tests
    run programs compiled as for users.
    """
    quick = any(part in config.getoption("markexpr") for part in ("not slow", "extended", "browser"))
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))  # for child processes
    jax.config.update("jax_disable_most_optimizations", quick)


def pytest_collection_finish():
    """Tracing makes many objects, and the libraries' stay to the end: the garbage collector need not look at these, nor
    as often as usual. It took a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _compile_once(tmp_path_factory):
    """Many tests compile the same small programs: all processes of a session share them.

    So do several sessions whose environment names the same folder, $RESEARCH_TEST_CACHE. A program's key there has the
    versions of JAX and XLA, the options and the devices. A file that another process is still writing does not
    decompress, and the program is compiled once more.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in the session's
        session = session.parent
    folder = os.environ.get("RESEARCH_TEST_CACHE", str(session / "xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keeps the cache separate from the user's."""
    os.environ["RESEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Makes connections to other machines fail at once."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests have no network, but connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory):
    """A decoder of 32 positions, as transformers saves it, with a template for chats."""
    from tests.interop import tiny_decoder

    path = tmp_path_factory.mktemp("decoder") / "llama"
    tiny_decoder.write_chat(path)
    return path


@pytest.fixture(scope="session")
def generator(decoder_folder):
    from research.inference.generate import Generator

    return Generator.open(decoder_folder)
