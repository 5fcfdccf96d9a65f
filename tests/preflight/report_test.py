"""`python -m research.preflight`: the report, its advice, and the exit code."""

import dataclasses
import json
from typing import Any

import jax
import pytest

from research.base.errors import UserError
from research.configs import bert_mlm
from research.preflight import __main__ as command
from research.preflight import topology
from research.preflight.advice import advice
from research.preflight.chips import CHIPS, chip_of
from research.preflight.collectives import Traffic
from research.preflight.compilation import Memory, Program, compile_step, exhausted
from research.preflight.flops import Flops
from research.preflight.largest import largest
from research.preflight.report import Report
from research.preflight.shapes import with_shapes
from research.preflight.topology import Topology, open_topology
from tests import tiny

GIB = 2.0**30


def program(**changes):
    memory = Memory(1 * GIB, 2 * GIB, 0, 0.5 * GIB, 0.5 * GIB, 0, 4 * GIB, 0)
    fields: dict[str, Any] = {
        "memory": memory,
        "refused": None,
        "state_bytes": 3 * GIB,
        "flops": Flops(8 * 197e12, 2 * 197e12),
        "rows": 64,
        "row_tokens": 512,
        "blocks": 1,
        "steps": 1800,
        "parameter_count": 10,
        "has_rules": True,
        "traffic": Traffic({"all-reduce": 200e9}, {"all-reduce": 1}, 0),
        "moved": 2 * 819e9,
        "seconds": 1.0,
    }
    return Program(**(fields | changes))


def report(found, **changes):
    slice_ = Topology("v5e:2x2", jax.devices()[:4], CHIPS["v5e"])
    fields = {"limit": 16 * GIB, "steps": found.steps, "price": 1.5, "advice": "use less"}
    return Report("bert", slice_, found, **(fields | changes))


def test_the_bound_is_the_largest_of_three_times():
    found = report(program())
    assert found.fits
    assert found.needed == 8 * GIB
    assert found.seconds == pytest.approx({"compute": 2.0, "memory": 2.0, "interconnect": 1.0})
    slower = report(program(moved=4 * 819e9))
    assert slower.bounds["step_seconds"] == pytest.approx(4.0)
    assert slower.bounds["mfu"] == pytest.approx(0.75 * 2 / 4)  # a quarter is computed again
    assert slower.bounds["tokens_per_second"] == pytest.approx(64 * 512 / 4)
    assert slower.bounds["hours"] == pytest.approx(2.0)
    assert slower.bounds["cost"] == pytest.approx(2 * 4 * 1.5)
    assert json.loads(slower.json())["received"] == {"all-reduce": 200e9}


def test_the_text_says_what_does_not_fit_and_what_to_change():
    text = report(program(), limit=6 * GIB).text()
    assert "does not fit: needs 8.00 GiB, 6.00 GiB are available; use less" in text
    refused = report(program(refused=(20 * GIB, 15.75 * GIB), traffic=None, moved=None))
    assert not refused.fits
    assert "needs at least 20.00 GiB, 15.75 GiB are available" in refused.text()


def memory(state, temporaries):
    return Memory(state * GIB / 3, 2 * state * GIB / 3, 0, 0, 0, 0, temporaries * GIB, 0)


@pytest.mark.parametrize(
    ("found", "changes", "words"),
    [
        (program(memory=memory(12, 4), state_bytes=12 * GIB), {}, "mesh.fsdp=8 mesh.rules=fsdp"),
        (program(memory=memory(12, 4), state_bytes=12 * GIB), {"mesh.tensor": 2}, "mesh.fsdp=4 mesh.rules=fsdp_tensor"),
        (program(memory=memory(12, 4), state_bytes=12 * GIB, has_rules=False), {}, "list mesh.rules"),
        (program(memory=memory(12, 4), state_bytes=96 * GIB), {}, "more devices"),
        (program(memory=memory(1, 9)), {}, "model.remat=True model.scan=True"),
        (program(memory=memory(1, 9)), {"model.remat": True}, "train.accumulate=2"),
        (program(memory=memory(1, 9)), {"model.remat": True, "train.accumulate": 8}, "train.batch_size below 64"),
        (program(memory=memory(1, 9)), {"model.remat": True, "train.batch_size": 8}, "mesh.tensor larger"),
    ],
)
def test_advice_names_the_key(found, changes, words):
    config = bert_mlm.get_config("embedded")
    config.train.batch_size = 64
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    assert words in advice(config, found, 8)


def test_messages_of_the_compiler():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.19G of 15.75G hbm. Exceeded by 5.44G."
    assert exhausted(used) == (21.19 * GIB, 15.75 * GIB)
    assert exhausted("RESOURCE_EXHAUSTED: Allocation (size=300) would exceed memory (size=200) :: %s0") == (300, 200)
    assert exhausted("INTERNAL: something else") is None


@pytest.mark.parametrize("most", [1, 2, 3, 7, 15, 16, 100, 1000])
@pytest.mark.parametrize("start", [1, 5, 64])
def test_the_largest_batch_is_found(most, start):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= most

    found = largest(fits, start, 2**20)
    assert found <= most <= found + max(1, found // 16)
    assert len(tried) == len(set(tried)) <= 25


def test_no_batch_fits():
    assert largest(lambda n: False, 4, 100) == 0


@pytest.mark.parametrize("name", ["v5e", "v5e:2", "cpu:0", "cpu:2:h100", "gpu:2:k80", "tpu:8", ""])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(UserError, match="topology"):
        open_topology(name)


def test_a_missing_libtpu_names_its_extra(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        open_topology("v5e:16x16")


def test_chips_are_known_by_their_kind():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("TPU v5") is CHIPS["v5p"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("cpu") is None


def test_data_that_is_not_here_is_replaced():
    config = bert_mlm.get_config("base")
    found, notes, known = with_shapes(config, ())
    assert found.data.name == "python_docs"
    assert found.data.transform.row_length == config.data.transform.row_length
    assert "wikitext" in notes[0]
    assert not known  # its epochs have another number of steps


@pytest.mark.extended
def test_the_memory_of_a_step_on_cpus():
    config = tiny.mlm()
    config.mesh.update(data=2, fsdp=2, rules="fsdp")
    found = compile_step(config, Topology("cpu:4", jax.devices()[:4], None))
    assert found.memory.optimizer == pytest.approx(2 * found.memory.parameters, rel=0.01)
    assert 4 * found.parameter_count / 2 <= found.memory.parameters < 4 * found.parameter_count
    assert found.row_tokens == 16
    assert found.memory.temporaries > 0
    assert set(found.traffic.received) >= {"all-gather", "all-reduce"}
    half = dataclasses.replace(found.memory, temporaries=0)
    assert half.total < found.memory.total


@pytest.mark.extended
def test_the_command(capsys):
    assert command.main(["--config=bert_mlm:embedded", "--topology=cpu:2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["devices"] == 2
    assert values["fits"]
    assert values["flops"] > 0
    assert set(values["received"]) == {"all-reduce"}
    assert values["seconds"] == {}
