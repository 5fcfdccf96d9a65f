# mypy: disable-error-code="arg-type, index"
"""Runs of several seeds: each matches its single run; summaries over the seeds."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research.analysis.leaderboard import task_runs
from research.base.errors import UserError
from research.configs import linear_diabetes, mlp_mnist
from research.core.statistics import interval, mean, means
from research.devices import memory, sharding
from research.interop import pretrained
from research.interop.export import export
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from research.training.start import restore_or_init
from research.training.trained_run import TrainedRun
from tests import tiny


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    tiny.few_sentences(monkeypatch)


def _linear(**train):
    return tiny._train(linear_diabetes.get_config("embedded"), **{"steps": 10, "batch_size": 16, **train})


def _mlp(**train):
    """With dropout."""
    config = tiny._train(mlp_mnist.get_config("embedded"), **{"steps": 10, "batch_size": 16, **train})
    config.model.hidden_sizes = (8,)
    return config


def _unpacked(**train):
    """Unpacked rows of two lengths: all seeds are padded equally, and dropout masks depend on the length."""
    config = tiny.bert(batch_size=8, **train)
    config.model.update(dropout=0.0, attention_dropout=0.0)
    config.data.transform.pad_to = (8, 64)
    return config


def _grouped_resnet(**train):
    """Batched seeds, as on accelerators; convolutional programs on a CPU compute them one after another."""
    config = tiny.resnet(**train)
    config.compiler = "default"
    return config


MAKE = {
    "linear": _linear,
    "mlp": _mlp,
    "resnet": tiny.resnet,
    "grouped_resnet": _grouped_resnet,
    "mixed": tiny.mixed_resnet,
    "packed": tiny.bert,
    "unpacked": _unpacked,
    "mlm": tiny.mlm,
}


def _with_seeds(config, seed=3, seeds=2):
    config.seed, config.train.seeds = seed, seeds
    return config


def _trained(config, steps=4):
    """The state after some steps, and the loss of each step."""
    experiment = prepare(config)
    state, losses = experiment.init(), []
    for batch in tiny.batches(experiment, steps):
        state, scores = experiment.train_step(
            state, sharding.put_batch(batch, experiment.mesh, axis=experiment.batch_axis)
        )
        losses.append(np.asarray(scores["loss"].total) / np.asarray(scores["loss"].weight))
    return jax.device_get(state), np.array(losses)


@pytest.mark.extended
@pytest.mark.parametrize("name", MAKE)
def test_batches_of_a_seed_match_its_single_run(name, monkeypatch):
    """Order, augmentation and masks; except that unpacked text is padded to the longest of all seeds."""
    tiny.few_documents(monkeypatch)
    together = tiny.batches(prepare(_with_seeds(MAKE[name](accumulate=2), seeds=3)), 10)
    for k in range(3):
        alone = tiny.batches(prepare(_with_seeds(MAKE[name](accumulate=2), 3 + k, None)), 10)
        for batch, expected in zip(together, alone, strict=True):
            assert batch.keys() == expected.keys()
            for key, array in expected.items():
                found = batch[key][k]
                if found.shape != array.shape:
                    assert (name, found.shape[0]) == ("unpacked", len(array))
                    assert not found[:, array.shape[1] :].any()
                    found = found[:, : array.shape[1]]
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("linear", {}),
        pytest.param("mlp", {}, marks=pytest.mark.slow),
        pytest.param("mlp", {"accumulate": 2, "ema_decay": 0.5}, marks=pytest.mark.extended),
        pytest.param("resnet", {}, marks=pytest.mark.slow),
        pytest.param("grouped_resnet", {}, marks=pytest.mark.slow),
        pytest.param("packed", {}, marks=pytest.mark.extended),
        pytest.param("unpacked", {}, marks=pytest.mark.slow),
    ],
)
def test_training_of_a_seed_matches_its_single_run(name, train):
    """Parameters, batch statistics and averages.

    Measured over ten steps: at most 8e-7, for the linear model 6e-7 of the largest entry, because XLA sums in a
    different order."""
    together, losses = _trained(_with_seeds(MAKE[name](**train)))
    alone, expected = _trained(_with_seeds(MAKE[name](**train), 4, None))
    np.testing.assert_allclose(losses[:, 1], expected, rtol=1e-5)
    for part in ("params", "model_state", "average"):

        def close(found, wanted):
            np.testing.assert_allclose(found[1], wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))

        jax.tree.map(close, getattr(together, part), getattr(alone, part))
    assert all(np.abs(x[0] - x[1]).max() > 1e-3 for x in jax.tree.leaves(together.params) if x[0].ndim > 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed", "resnet"])
def test_one_and_eight_devices_train_seeds_equally(name, monkeypatch):
    losses, make_mesh = {}, sharding.make_mesh
    for count in (1, 8):
        devices = jax.devices()[:count]
        monkeypatch.setattr("research.devices.sharding.make_mesh", lambda *_, d=devices: make_mesh(devices=d))
        _, losses[count] = _trained(_with_seeds(MAKE[name]()))
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-5)


def test_rules_do_not_count_the_seed_axis():
    config = _with_seeds(tiny.logistic())
    config.mesh.update(fsdp=4, rules=(("linear/kernel", ("fsdp",)),))
    experiment = prepare(config)
    kernel = experiment.init().params["linear"]["kernel"]
    assert kernel.shape == (2, 64, 10)
    assert kernel.addressable_shards[0].data.shape == (2, 16, 10)


def _run(config, workdir, **options):
    return train_and_evaluate(config, workdir, show=False, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Seeds 3, 4 and 5 of an MLP, evaluated twice."""
    path = tmp_path_factory.mktemp("seeds")
    config = _with_seeds(_mlp(ema_decay=0.5), seeds=3)
    config.eval.every_steps = 5
    _run(config, path)
    return RunDir.open(path)


@pytest.mark.extended
def test_summary_has_means_and_intervals(run, tmp_path):
    """Measured: the losses of a seed are within 2e-7 of those of its single run; its predictions are equal."""
    summary = run.summary()
    assert (summary["seed"], summary["seeds"]) == (3, 3)
    assert summary["param_count"] == 64 * 8 + 8 + 8 * 10 + 10
    metrics, intervals = summary["metrics"]["validation"], summary["intervals"]["validation"]
    assert metrics.keys() == intervals.keys() == {"loss", "accuracy", "ema_loss", "ema_accuracy"}
    for name, value in metrics.items():
        values = intervals[name]["values"]
        assert value == intervals[name]["mean"] == pytest.approx(np.mean(values))
        assert intervals[name]["low"] < value < intervals[name]["high"]
    lines = run.metrics("validation")
    assert [line["step"] for line in lines] == [5, 10]
    assert lines[1]["values"] == {name: intervals[name]["values"] for name in metrics}
    assert summary["best"]["value"] in [line["accuracy"] for line in lines]
    assert (run.plots / "training_curve.png").read_bytes().startswith(b"\x89PNG")

    config = _with_seeds(_mlp(ema_decay=0.5), 5, None)
    config.eval.every_steps = 5
    alone = _run(config, tmp_path)
    assert "seeds" not in alone
    assert "values" not in RunDir(tmp_path).metrics("validation")[0]
    for split in ("validation", "test"):
        found = {name: band["values"][2] for name, band in summary["intervals"][split].items()}
        assert found == pytest.approx(alone["metrics"][split], rel=1e-5)
        for record, expected in zip(run.predictions(split), RunDir(tmp_path).predictions(split), strict=True):
            assert (record["index"], record["label"]) == (expected["index"], expected["label"])
            assert record["prediction"][2] == expected["prediction"]
            np.testing.assert_allclose(record["scores"][2], expected["scores"], atol=1e-5)
            assert np.shape(record["scores"]) == (3, 10)


def test_run_of_several_seeds_is_evaluated_again(run):
    found = TrainedRun(run, "last").evaluate("validation")
    assert found["metrics"] == run.summary()["metrics"]["validation"]
    assert found["intervals"] == run.summary()["intervals"]["validation"]


@pytest.mark.extended
def test_correlations_are_computed_per_seed(monkeypatch):
    tiny.tfds(monkeypatch)
    config = _with_seeds(tiny.bert_glue_task("stsb"), seeds=2)
    config.eval.batch_rows = 8
    config.model.initializer_range = 0.5
    experiment = prepare(config)
    metrics, records = experiment.evaluate(experiment.init(), "validation", predictions=True)
    labels = [record["label"] for record in records]
    for k in range(2):
        predictions = [record["prediction"][k] for record in records]
        assert metrics["pearson"][k] == pytest.approx(scipy.stats.pearsonr(predictions, labels).statistic, abs=1e-9)
    assert metrics["pearson"][0] != metrics["pearson"][1]


@pytest.mark.extended
@pytest.mark.parametrize(
    "make", [_mlp, *(pytest.param(make, marks=pytest.mark.slow) for make in (tiny.bert, tiny.mixed_resnet))]
)
def test_interrupted_run_ends_like_the_uninterrupted_one(make, tmp_path):
    def asked_after(steps):
        asked = iter(range(1, 10**6))
        return lambda: next(asked) >= steps

    configs = [_with_seeds(make(steps=8, ema_decay=0.9)) for _ in range(2)]
    whole = _run(configs[0], tmp_path / "whole")
    half = _run(configs[1], tmp_path / "half", should_stop=asked_after(3))
    assert (half["status"], half["step"]) == ("preempted", 3)
    rest = _run(configs[1], tmp_path / "half")
    assert rest["params_sha256"] == whole["params_sha256"] != half["params_sha256"]
    assert rest["intervals"] == whole["intervals"]


def test_pretrained_weights_are_shared_and_fresh_ones_differ():
    """Also if a leaf is sharded over devices and donated."""
    config = _with_seeds(_mlp(), seeds=3)
    config.init_from = "somewhere"
    config.mesh.update(fsdp=4, rules=(("dense_0/kernel", ("fsdp",)),))
    experiment = prepare(config)

    def load_variables(variables):
        kernel = variables["params"]["dense_0"].pop("kernel")
        made = jax.make_array_from_callback(kernel.shape, kernel.sharding, lambda index: np.ones((64, 8), "f")[index])
        variables["params"]["dense_0"]["kernel"] = made
        kernel.delete()
        return variables

    state, _ = restore_or_init(experiment, SimpleNamespace(steps=[]), load_variables)
    fresh = experiment.init()
    np.testing.assert_array_equal(state.params["dense_0"]["kernel"], 1.0)
    tiny.assert_trees_equal(state.params["classifier"], fresh.params["classifier"])
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, fresh)
    assert all(jax.tree.leaves(same))


def test_loss_that_is_not_finite_names_the_seed(tmp_path, monkeypatch):
    config = _with_seeds(_linear(steps=5), seeds=3)

    def spoilt(*arguments):
        state, progress = restore_or_init(*arguments)
        params = jax.tree.map(lambda x: x.at[1].set(np.nan), state.params)
        return dataclasses.replace(state, params=params), progress

    monkeypatch.setattr("research.training.loop.restore_or_init", spoilt)
    with pytest.raises(
        UserError, match="the training loss between steps 0 and 5 is nan with seed 4: training diverged"
    ):
        _run(config, tmp_path)


@pytest.mark.parametrize(
    ("seed", "seeds", "message"),
    [
        (0, 0, "train.seeds is 0"),
        (2**32 - 2, 3, r"seed=4294967294 with train.seeds=3 goes up to 4294967296; the largest seed is 4294967295"),
    ],
)
def test_invalid_numbers_of_seeds_are_one_line_errors(seed, seeds, message):
    with pytest.raises(UserError, match=message):
        prepare(_with_seeds(tiny.logistic(), seed, seeds))


@pytest.mark.extended
def test_largest_seeds_match_single_runs():
    found = prepare(_with_seeds(_mlp(), 2**32 - 2)).init().params
    expected = prepare(_with_seeds(_mlp(), 2**32 - 1, None)).init().params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, atol=1e-6), found, expected)


def test_commands_for_one_seed_reject_several(run, tmp_path):
    (tmp_path / "run").mkdir()
    config = {**run.config(), "data": {"name": "glue/cola"}}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    (tmp_path / "run/checkpoints").mkdir()
    start = tiny.bert()
    start.init_from = str(tmp_path / "run")
    for what, call in {
        "the leaderboard": lambda: task_runs([tmp_path / "run"]),
        "an export": lambda: export(tmp_path / "run", tmp_path / "out"),
        "init_from": lambda: pretrained.resolve_init_from(start, (), tmp_path / "W"),
    }.items():
        with pytest.raises(UserError, match=f"is a run of 3 seeds and {what} takes one: .* --config.seed=3"):
            call()


@pytest.mark.extended
def test_too_many_seeds_for_memory_name_the_number_that_fits(tmp_path, monkeypatch):
    """Fewer fit with an evaluation batch, which is the larger one here; the number in the message does fit."""
    monkeypatch.setattr(memory, "available", lambda held=0: 400_000)
    with pytest.raises(UserError, match=r"train.seeds=1000 needs \S+ GiB per device for the state, but 0.00"):
        prepare(_with_seeds(_mlp(), seeds=1000))
    monkeypatch.setattr("research.training.experiment.memory.check_state", lambda *_: None)
    with pytest.raises(UserError, match=r"GiB per device for a step, .*: at most train.seeds=\d+ fits") as caught:
        _run(_with_seeds(_mlp(), seeds=100), tmp_path / "many")
    most = int(str(caught.value).split("train.seeds=")[2].split()[0])
    assert 1 <= most < 100
    assert not RunDir(tmp_path / "many").metrics()
    assert _run(_with_seeds(_mlp(steps=1), seeds=most), tmp_path / "most")["status"] == "completed"


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_interval_matches_scipy(values):
    found = interval(values)
    assert found["mean"] == mean(values) == pytest.approx(np.mean(values))
    spread = scipy.stats.sem(values)
    if spread > 0:
        expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)
        assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert found["low"] == found["high"] == found["mean"]


def test_one_value_or_undefined_values_have_no_interval():
    assert interval([0.5]) == {"values": [0.5], "mean": 0.5, "low": None, "high": None}
    assert interval([0.5, None]) == {"values": [0.5, None], "mean": None, "low": None, "high": None}
    assert interval([0.5, np.inf])["high"] is None
    assert means({"a": 0.5, "b": None, "c": [0.5, 1.0]}) == {"a": 0.5, "b": None, "c": 0.75}
