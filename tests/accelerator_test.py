# mypy: disable-error-code="arg-type"
"""Tests what could fail silently in benchmarks/accelerator.sh: operation counts, deadlines, output, stored losses."""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accelerator
import accelerator_attention
import accelerator_checks
import accelerator_speed
import bert_finetune
import resnet_train
from parts import Deadline, deadlines, json_line, run_part
from turns import Results, Side, SideError

from research.base.registry import build
from research.configs import bert_sst2, resnet_cifar10
from research.models import MODELS

# ---- operations


def _shapes(config, batch):
    """The shapes of the parameters, and the module, of a config's model."""
    module = build(MODELS, config, "model", dtype=jnp.float32)
    batch = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in batch.items()}
    return module, jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False)), batch


def test_flops_per_token_are_six_per_layer_weight():
    model = bert_sst2.get_config("base").model.to_dict() | bert_finetune.ENCODERS["base"]
    text = dict.fromkeys(("tokens", "positions", "type_ids", "segments"), ((1, 8), jnp.int32))
    _, variables, _ = _shapes(model, {**text, "starts": ((1, 1), jnp.int32)})
    layers = [tree for name, tree in variables["params"]["encoder"].items() if name.startswith("layer_")]
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers) if len(leaf.shape) == 2)
    assert bert_finetune.flops_per_token("base") == 6 * weights


def _multiply_adds(jaxpr):
    """Multiply-adds of the convolutions and products of a jaxpr, including nested ones."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * inner
        total += sum(_multiply_adds(inner) for inner in jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_multiply_adds_of_resnets(network):
    """The paper's table gives two digits."""
    config = resnet_cifar10.get_config("resnet18" if network == "resnet18" else "resnet20").model.to_dict()
    config |= {"name": "resnet50"} if network == "resnet50" else {}
    size = resnet_train.NETWORKS[network][0]
    module, variables, batch = _shapes(
        config, {"images": ((1, size, size, 3), jnp.uint8), "weight": ((1,), jnp.float32)}
    )
    jaxpr = jax.make_jaxpr(lambda variables: module.apply(variables, batch, train=False))(variables)
    assert 6 * _multiply_adds(jaxpr.jaxpr) == pytest.approx(resnet_train.flops_per_image(network), rel=0.01)


def test_figures_of_a_contender():
    """Two rounds of 4 steps; 16 tokens and 4 examples per step, 100 FLOP per token, at a peak of 1e4 FLOP/s."""
    results = Results()
    ours, peer = ("ours", "packed"), ("peer", "dynamic")
    common = {"examples": 16.0, "tokens": 64, "waited": 0.5, "parameters": 7, "loss": 0.5}
    for seconds, memory in ((2.0, 3e9), (4.0, 5e9)):
        results.of[ours].append({**common, "seconds": seconds, "memory": memory, "flops_by_xla": 12_800.0})
        results.of[peer].append({**common, "seconds": 2 * seconds, "memory": 0})
    found = accelerator_speed.row(results, ours, steps=4, flops=100.0, peak=1e4)
    assert found["examples_per_second"] == pytest.approx((8 + 4) / 2)
    assert (found["lowest"], found["highest"]) == (4, 8)
    assert found["tokens_per_second"] == pytest.approx((32 + 16) / 2)
    assert found["mfu"] == pytest.approx(24 * 100 / 1e4)
    assert found["step_ms"] == pytest.approx(750)
    assert found["examples_per_step"] == 4
    assert found["peak_memory_gb"] == 5
    assert found["waited_for_data"] == pytest.approx(1 / 6)
    assert found["flops_by_xla_over_needed"] == pytest.approx(2)
    assert accelerator_speed.row(results, peer, steps=4, flops=100.0, peak=None)["mfu"] is None
    assert accelerator_speed.ratios(results, {"ours": ours, "peer": peer}) == {"ours": {"peer": pytest.approx(2)}}


# ---- deadlines


def test_unused_time_passes_to_the_next_part():
    ends = deadlines({"a": 10, "b": 30, "c": 20}, limit=120)
    assert ends == {"a": 20, "b": 80, "c": 120}
    now = [5.0]
    deadline = Deadline.after(10, clock=lambda: now[0])
    now[0] = 12.0
    assert deadline.remaining == 3
    now[0] = 16.0
    assert deadline.remaining == -1


def test_budgets_of_the_parts_fit_eight_minutes():
    assert set(accelerator.BUDGETS) == set(accelerator.FUNCTIONS)
    assert sum(accelerator.BUDGETS.values()) + accelerator.KEEPING <= 8 * 60


def _python(code):
    return [sys.executable, "-c", code]


def _run_part(code, tmp_path, seconds=30.0):
    lines = []
    ended = run_part(_python(code), Deadline.after(seconds), lines.append, tmp_path / "log")
    return ended, lines


def test_part_over_its_deadline_is_terminated_with_its_children(tmp_path, monkeypatch):
    """The deadline passes after the part has printed the id of its child process; its output is kept."""
    timers, lines = [], []

    class Timer:
        def __init__(self, seconds, function):
            self.seconds, self.pass_deadline = seconds, function
            timers.append(self)

        def start(self): ...

        def cancel(self): ...

    def emit(line):
        lines.append(line)
        if "child" in line:
            timers[0].pass_deadline()

    monkeypatch.setattr("parts.threading.Timer", Timer)
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print('{"child": %d}' % child.pid, flush=True)
child.wait()
"""
    ended = run_part(_python(code), Deadline.after(200.0), emit, tmp_path / "log")
    assert ended == "over its budget"
    assert lines == [{"child": lines[0]["child"]}, {"status": "over its budget"}]
    assert 190 < timers[0].seconds <= 200
    _await_end(lines[0]["child"])


def _await_end(pid, patience=30.0):
    """Waits until a process has exited, reaped or not."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if status == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} still runs")


def test_part_without_time_left_is_not_started(tmp_path):
    ended, lines = _run_part(f"open({str(tmp_path / 'ran')!r}, 'w')", tmp_path, seconds=1.0)
    assert (ended, [line["status"] for line in lines]) == ("skipped", ["skipped"])
    assert not (tmp_path / "ran").exists()


# ---- lines


def test_crash_is_reported_in_a_line_and_keeps_earlier_output(tmp_path, capfd):
    code = "import sys, os; print('noise'); print('[1]'); print('{\"a\": 1}', flush=True); sys.exit('no memory')"
    ended, lines = _run_part(code, tmp_path)
    assert ended == "failed"
    assert lines[0] == {"a": 1}
    assert (lines[1]["status"], lines[1]["exit_code"]) == ("failed", 1)
    assert "no memory" in lines[1]["stderr"]
    assert capfd.readouterr().err.split() == ["noise", "[1]"]  # not JSON objects


def test_exception_is_reported_by_the_part_itself(tmp_path):
    benchmarks = str(Path(accelerator.__file__).parent)
    code = f"""
import sys; sys.path.insert(0, {benchmarks!r})
from parts import serve_part
def part(emit):
    print("a library's print")
    emit({{"b": float("nan")}})
    raise ValueError("of this kind")
sys.exit(serve_part(part))
"""
    ended, lines = _run_part(code, tmp_path)
    assert ended == "failed"
    assert lines[0] == {"b": "nan"}
    assert lines[1]["error"] == "ValueError: of this kind"
    assert len(lines) == 2
    assert "a library's print" in (tmp_path / "log").read_text()


def test_lines_are_strict_json():
    line = {"a": [math.nan, (1, math.inf)], 128: {"b": 0.5}}
    assert json.loads(json_line(line), parse_constant=pytest.fail) == {"a": ["nan", [1, "inf"]], "128": {"b": 0.5}}


def test_failed_part_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """Later parts receive the peak found by the first; the file has the printed lines."""
    commands = []

    def command(name, deadline, arguments, known):
        commands.append((name, dict(known)))
        return _python({"environment": "print('{\"peak_flops\": 2.5}')", "bert": "raise SystemExit(3)"}.get(name, ""))

    monkeypatch.setattr(accelerator, "_command", command)
    out = tmp_path / "results" / "lines.jsonl"
    arguments = argparse.Namespace(parts="environment,bert,attention", out=out, minutes=2.0, rehearse=True)
    ends = accelerator.run_all(arguments)
    assert ends == {"environment": "done", "bert": "failed", "attention": "done"}
    assert commands == [("environment", {}), ("bert", {"peak_flops": 2.5}), ("attention", {"peak_flops": 2.5})]
    printed = capsys.readouterr().out
    assert printed == out.read_text()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["part"] for line in lines] == ["start", "environment", "bert", "end"]
    assert lines[-1]["parts"] == ends


SIDE = """
import sys; sys.path.insert(0, {benchmarks!r})
from turns import serve
def make(arguments):
    if sys.argv[1] == "--serve=lame":
        raise ImportError("no torch")
    def measure(setting, steps):
        print("a library's print")
        if setting == "crash":
            sys.exit(3)
        return {{"seconds": steps / 0 if setting == "wrong" else 2.0}}
    return measure
serve(make, None)
"""


def test_side_reports_its_error(tmp_path):
    script = tmp_path / "side.py"
    script.write_text(SIDE.format(benchmarks=str(Path(accelerator.__file__).parent)))
    side, lame = Side(str(script), "ours"), Side(str(script), "lame")
    assert side.measure("fine", 1) == {"seconds": 2.0}
    with pytest.raises(SideError, match="ZeroDivisionError"):
        side.measure("wrong", 1)
    assert side.measure("fine", 1) == {"seconds": 2.0}
    with pytest.raises(SideError, match="exit code 3"):
        side.measure("crash", 1)
    with pytest.raises(SideError, match="exit code 3"):
        side.measure("fine", 1)
    with pytest.raises(SideError, match="ImportError: no torch"):
        lame.measure("fine", 1)
    side.close()
    lame.close()


# ---- correctness

SLOW_TO_COMPILE = ("bert_sst2:embedded", "resnet_digits")


@pytest.mark.parametrize(
    "name", ["mlp_mnist:embedded", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TO_COMPILE)]
)
def test_stored_losses_match_a_cpu(name):
    """The first three of 20 steps. Measured: up to 7e-7 between numbers of threads and JAX versions."""
    stored = json.loads(accelerator_checks.LOSSES.read_text())["runs"][name]
    assert len(stored["loss"]) == accelerator_checks.STEPS
    found = accelerator_checks.trajectory(accelerator_checks._configs()[name], steps=3)
    assert found["inputs"] == stored["inputs"][:3]
    far = accelerator_checks.differences(found, stored)
    assert far["loss"] < 1e-5
    assert far["grad_norm"] < 1e-4


def test_wrong_step_is_detected():
    stored = {"loss": [2.0, 1.0, 0.5], "grad_norm": [1.0, 1.0, 1.0]}
    found = {"loss": [2.0, 1.01], "grad_norm": [1.0, 0.8]}
    assert accelerator_checks.differences(found, stored) == {
        "loss": pytest.approx(0.01),
        "grad_norm": pytest.approx(0.2),
    }


def test_packed_segments_are_consecutive_texts(rng):
    segments = accelerator_attention.packed_segments(4, 64, rng)
    for row in segments:
        numbers, lengths = np.unique(row[row > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (np.diff(row[: lengths.sum()]) >= 0).all()
        assert not row[lengths.sum() :].any()
    assert (segments > 0).mean() > 0.7


@pytest.mark.extended
def test_alternative_attention_gives_the_same_result():
    """In float32, with the same parameters; measured difference: 4e-7. Without the segments the result differs."""
    inputs = accelerator_attention._inputs(2, 32, heads=2, width=16)
    ours, other = (jax.jit(accelerator_attention.gradients(name, 2, jnp.float32)) for name in ("ours", "xla"))
    params, x, segments, cotangent = inputs
    expected, found = ours(*inputs), other(*inputs)
    blind = other(params, x, jnp.ones_like(segments), cotangent)
    near, far = (accelerator_attention._distances(outputs, expected, segments) for outputs in (found, blind))
    assert max(near.values()) < 1e-5
    assert min(far.values()) > 1e-2
