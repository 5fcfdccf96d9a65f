from types import SimpleNamespace

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.devices import memory

MIB = 2**20


def _files(tmp_path, monkeypatch, group, files):
    """A machine with 100 MiB left, and limits of control groups."""
    files = {f"cgroup/{name}": text for name, text in files.items()}
    files["proc/meminfo"] = f"MemTotal: 1 kB\nMemAvailable:  {100 * 1024} kB\n"
    files["proc/self/cgroup"] = f"0::{group}\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 100),
        ({"a/b/memory.max": "max\n"}, 100),
        ({"a/b/memory.max": str(50 * MIB), "a/b/memory.current": str(20 * MIB), "a/b/memory.stat": "anon 1\n"}, 30),
        (
            {
                "a/memory.max": str(50 * MIB),
                "a/memory.current": str(20 * MIB),
                "a/memory.stat": f"inactive_file {5 * MIB}\n",
            },
            35,
        ),
    ],
)
def test_cpu_memory_is_limited_by_the_machine_and_control_groups(tmp_path, monkeypatch, files, left):
    """Divided among the devices that share it, here eight."""
    _files(tmp_path, monkeypatch, "/a/b", files)
    assert memory.available() == left * MIB // 8
    assert memory.available(held=5) == left * MIB // 8 + 5


def test_other_devices_report_their_memory(monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.available(held=5) == 7
    device.memory_stats = lambda: None
    assert memory.available() is None


def test_batch_larger_than_memory_names_its_key(tmp_path, monkeypatch):
    _files(tmp_path, monkeypatch, "/a/b", {})  # 100 MiB
    example = {"images": np.zeros((2, 512), np.float32), "weight": np.ones(2, np.float32)}  # 2052 bytes per row
    memory.check_batch(example, 51_000, 1.0, "train.batch_size")
    with pytest.raises(
        UserError, match=r"^train\.batch_size asks for batches of 52,000 rows.* at most 51,100 rows fit"
    ):
        memory.check_batch(example, 52_000, 1.0, "train.batch_size")
    memory.check_batch(example, 100_000, 0.5, "train.batch_size")  # another process makes the other half


def test_state_or_step_larger_than_memory_is_a_one_line_error(tmp_path, monkeypatch):
    """With a single seed too: otherwise the system would kill the process."""
    _files(tmp_path, monkeypatch, "/a/b", {})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UserError, match=r"this run needs 0\.04 GiB per device for the state, but 0\.01 GiB"):
        memory.check_state({"w": jax.ShapeDtypeStruct((10 * MIB,), np.float32, sharding=place)}, None)
    compiled = jax.jit(lambda x: x[:, None] * x[None, :]).lower(np.zeros(3000, np.float32)).compile()
    with pytest.raises(UserError, match=r"this run needs \S+ GiB per device for a step"):
        memory.check_step(compiled, None)
