# mypy: disable-error-code="attr-defined"
"""Small complete runs: their files, resuming, and how they end."""

import json
import os

import numpy as np
import pytest
from sklearn.metrics import r2_score

from research.base.errors import DivergedError, UserError
from research.config import load
from research.configs import linear_diabetes
from research.configs.defaults import image
from research.data import load as data
from research.inference.evaluation import evaluate
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.stopping import stalled
from tests import tiny


@pytest.fixture(autouse=True)
def few(monkeypatch):
    tiny.few_sentences(monkeypatch)


def test_files_of_a_run(tmp_path):
    summary = tiny.run(tiny.bert(steps=10), tmp_path / "run", note="why")
    run = RunDir.open(tmp_path / "run")
    assert run.summary() == summary
    assert summary["status"] == "completed"
    assert summary["step"] == 10
    batches = tiny.batches(prepare(tiny.bert(steps=10)), 10)
    assert summary["examples_seen"] == sum(batch["weight"].sum() for batch in batches)
    assert summary["preset_note"] == "why"
    assert summary["data"]["source"] == "embedded"
    assert len(summary["params_sha256"]) == 64
    assert summary["throughput"]["tokens_per_second"] > summary["throughput"]["examples_per_second"] > 0
    assert 0 <= summary["throughput"]["data_wait_fraction"] <= 1
    places = sum(batch["segments"].size for batch in batches)
    tokens = sum(np.count_nonzero(batch["segments"]) for batch in batches)
    assert summary["throughput"]["token_efficiency"] == tokens / places
    assert summary["throughput"]["mfu"] is None  # the peak of this machine is unknown
    assert [(line["step"], line["split"]) for line in run.metrics()] == [
        (5, "train"),
        (5, "validation"),
        (10, "train"),
        (10, "validation"),
    ]
    assert summary["metrics"]["validation"] == {
        key: value for key, value in run.metrics("validation")[-1].items() if key not in ("step", "split")
    }
    records = [json.loads(line) for line in (run.path / "predictions/validation.jsonl").read_text().splitlines()]
    assert np.mean([r["label"] == r["prediction"] for r in records]) == summary["metrics"]["validation"]["accuracy"]
    assert set(records[0]) == {"index", "label", "prediction", "scores"}
    assert (run.plots / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert any(path.name.startswith("events.out.tfevents") for path in run.tensorboard.iterdir())
    assert (run.assets / "tokenizer.json").is_file()
    kept = {int(path.name) for path in run.checkpoints.iterdir() if path.is_dir()}
    assert kept == {10, summary["best"]["step"]}


@pytest.mark.parametrize(
    "make",
    [tiny.logistic, *(pytest.param(make, marks=pytest.mark.extended) for make in (tiny.bert, tiny.mixed_resnet))],
)
def test_interrupted_run_ends_like_the_uninterrupted_one(make, tmp_path):
    """With dropout, mixup, batch statistics, momentum, averaged parameters, the end of an epoch, and evaluations."""
    whole = tiny.run(make(steps=20, ema_decay=0.9), tmp_path / "whole")
    config = make(steps=20, ema_decay=0.9)
    half = tiny.run(config, tmp_path / "half", should_stop=tiny.stop_after(10))
    assert (half["status"], half["step"]) == ("preempted", 10)
    rest = tiny.run(config, tmp_path / "half")
    assert rest["status"] == "completed"
    assert rest["params_sha256"] == whole["params_sha256"]
    assert rest["params_sha256"] != half["params_sha256"]
    for split in ("train", "validation"):
        assert RunDir(tmp_path / "half").metrics(split) == RunDir(tmp_path / "whole").metrics(split)
    assert rest["best"] == whole["best"]
    assert rest["metrics"]["validation"]["ema_loss"] != rest["metrics"]["validation"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.bert, tiny.mixed_resnet])
def test_interrupted_run_ends_like_the_uninterrupted_one_fully_optimized(make, tmp_path):
    """The quick tests disable most of XLA's optimizations."""
    assert os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"
    test_interrupted_run_ends_like_the_uninterrupted_one(make, tmp_path)


def test_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    whole = tiny.run(tiny.logistic(steps=30), tmp_path / "whole")
    config = tiny.logistic(steps=30)
    config.checkpoint.every_steps = 15
    calls = iter(range(100))

    def crash():
        if next(calls) == 28:  # after step 29: metrics of step 20 are written, step 15 is saved
            raise RuntimeError("power cut")
        return False

    with pytest.raises(RuntimeError, match="power cut"):
        tiny.run(config, tmp_path / "cut", should_stop=crash)
    failed = RunDir(tmp_path / "cut").summary()
    assert (failed["status"], failed["reason_code"], failed["step"]) == ("failed", "error", 20)
    rest = tiny.run(config, tmp_path / "cut")
    assert rest["params_sha256"] == whole["params_sha256"]
    steps = [line["step"] for line in RunDir(tmp_path / "cut").metrics("train")]
    assert steps == [5, 10, 15, 20, 25, 30]  # without duplicates


@pytest.fixture
def power_cut(monkeypatch):
    """Evaluation fails until the fixture's `undo` is called."""

    def fail(*_, **__):
        raise RuntimeError("power cut")

    monkeypatch.setattr("research.training.experiment.evaluate", fail)
    return monkeypatch


@pytest.mark.extended
@pytest.mark.parametrize("every_steps", [0, 20])
def test_failed_evaluation_does_not_lose_training(every_steps, power_cut, tmp_path):
    """Neither the final evaluation nor one during training, which the resumed run then makes."""
    config = tiny.logistic(steps=30)
    config.eval.every_steps = every_steps
    with pytest.raises(RuntimeError, match="power cut"):
        tiny.run(config, tmp_path / "cut")
    with Checkpoints(tmp_path / "cut/checkpoints", metric="accuracy", mode="max", writable=False) as checkpoints:
        assert checkpoints.steps == [every_steps or 30]
    power_cut.undo()
    rest, whole = tiny.run(config, tmp_path / "cut"), tiny.run(config, tmp_path / "whole")
    for key in ("params_sha256", "metrics", "best", "examples_seen"):
        assert rest[key] == whole[key], key
    assert RunDir(tmp_path / "cut").metrics() == RunDir(tmp_path / "whole").metrics()


def test_evaluation_can_be_interrupted(monkeypatch, tmp_path):
    """At step 20 and at the end; the state is saved, and the rest of the run is unaffected."""
    config = tiny.logistic(steps=30)
    config.eval.update(every_steps=20, batch_size=64)  # several batches
    whole = tiny.run(config, tmp_path / "whole")
    asking, stops = [], iter([True, False, True])  # at step 20; again at step 20; at the end

    def watched(*arguments, **options):
        asking.append(next(stops, False))
        try:
            return evaluate(*arguments, **options)
        finally:
            asking.pop()

    monkeypatch.setattr("research.training.experiment.evaluate", watched)
    for step in (20, 30):
        summary = tiny.run(config, tmp_path / "run", should_stop=lambda: any(asking))
        assert (summary["status"], summary["step"], summary["metrics"]) == ("preempted", step, {})
    rest = tiny.run(config, tmp_path / "run")
    assert (rest["status"], rest["params_sha256"]) == ("completed", whole["params_sha256"])
    assert (rest["metrics"], rest["best"]) == (whole["metrics"], whole["best"])
    assert RunDir(tmp_path / "run").metrics() == RunDir(tmp_path / "whole").metrics()


def test_undefined_metric_is_an_error_before_training(monkeypatch, rng, tmp_path):
    x = rng.standard_normal((20, 2))
    columns = {"features": x, "label": x[:, 0]}
    equal = {"features": x, "label": np.full(20, 3.0)}
    monkeypatch.setitem(
        data.SOURCES, "equal", ("embedded", lambda: {"train": columns, "validation": equal, "test": columns})
    )
    for metric in ("r2", "pearson", "spearman"):
        config = load("configs/linear_diabetes.py", ["data.name=equal", f"eval.metric={metric}"]).config
        config.eval.splits = ("validation",)
        with pytest.raises(UserError, match=f"eval.metric is '{metric}'"):
            tiny.run(config, tmp_path / metric)
        config.eval.splits = ("test", "validation")
        config.train.update(steps=2, epochs=None)
        summary = tiny.run(config, tmp_path / f"{metric}-last")
        assert (summary["status"], summary["metrics"]["validation"][metric]) == ("completed", None)


def test_r_squared_and_labels_are_precise_far_from_zero(monkeypatch, rng, tmp_path):
    """Labels of more than 31 bits, in float64; R² matches scikit-learn's for the written predictions."""
    x = rng.standard_normal((100, 2))
    labels = np.rint(3e9 + x @ [5e8, -3e8] + 1e8 * rng.standard_normal(100)).astype(np.int64)
    columns = {"features": x, "label": labels}
    monkeypatch.setitem(
        data.SOURCES, "large", ("embedded", lambda: dict.fromkeys(("train", "validation", "test"), columns))
    )
    config = load("configs/linear_diabetes.py:closed_form", ["data.name=large", "dtype=float64"]).config
    config.eval.splits = ("test",)
    summary = tiny.run(config, tmp_path)
    records = RunDir(tmp_path).predictions("test")
    assert [record["label"] for record in records] == labels.tolist()
    expected = r2_score(labels, [record["prediction"] for record in records])
    assert expected > 0.9
    assert summary["metrics"]["test"]["r2"] == pytest.approx(expected, abs=1e-9)


def test_completed_run_is_left_unchanged(tmp_path):
    summary = tiny.run(tiny.logistic(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert tiny.run(tiny.logistic(), tmp_path) == summary
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_stop_requested_at_the_last_step_changes_nothing(tmp_path):
    config = tiny.logistic(steps=3)
    config.eval.batch_size = 512  # a single batch, after which nothing is left to stop
    assert tiny.run(config, tmp_path, should_stop=tiny.stop_after(3))["status"] == "completed"


def test_equal_evaluations_have_one_best_which_is_kept(tmp_path):
    config = tiny.logistic(steps=20)
    config.optimizer.learning_rate = 0.0
    config.eval.every_steps = 5
    summary = tiny.run(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", metric="accuracy", mode="max", writable=False) as checkpoints:
        assert summary["best"]["step"] == checkpoints.best_step == 20


def test_rejected_config_does_not_lock_its_workdir(tmp_path):
    config = tiny.logistic()
    config.model.num_classes = 9
    with pytest.raises(UserError):
        tiny.run(config, tmp_path)
    assert tiny.run(tiny.logistic(), tmp_path)["status"] == "completed"


def test_changed_data_is_an_error(tmp_path, monkeypatch):
    config = tiny.logistic()
    tiny.run(config, tmp_path, should_stop=tiny.stop_after(5))
    columns = data.SOURCES["digits"][1]()
    columns["train"]["label"][0] = 3
    monkeypatch.setitem(data.SOURCES, "digits", ("sklearn", lambda: columns))
    with pytest.raises(UserError, match="dataset digits has changed since the run began"):
        tiny.run(config, tmp_path)


def test_seed_determines_the_run(tmp_path):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = tiny.logistic(steps=3)
        config.seed = seed
        hashes.append(tiny.run(config, tmp_path / name)["params_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("batch", "steps"), [pytest.param({"batch_size": 32}, 13, marks=pytest.mark.slow), ({"batch_rows": 9}, 11)]
)
def test_each_epoch_sees_every_example_once(tmp_path, batch, steps):
    """Unpacked: 12 full batches and one of 16. Packed: 46 rows per epoch, 10 full batches and one of 2."""
    summary = tiny.run(tiny.bert(epochs=2.0, steps=None, **batch), tmp_path)
    assert (summary["step"], summary["examples_seen"]) == (steps, 400)


@pytest.fixture
def slow_data(monkeypatch):
    """Half of the time is spent waiting for data, and the check applies from the start."""
    monkeypatch.setattr("research.devices.throughput.Throughput.data_wait_fraction", 0.5)
    monkeypatch.setattr("research.training.stopping.SETTLED_SECONDS", 0.0)


@pytest.mark.parametrize(("log_every", "saved"), [(8, 8), (100, 12)])
def test_run_that_waits_too_long_for_data_fails_and_loses_nothing(tmp_path, slow_data, log_every, saved):
    """Detected at step 8, when it logs, or at the end. With a higher limit the same run resumes."""
    config = tiny.logistic(steps=12, log_every=log_every, max_data_wait_fraction=0.01)
    with pytest.raises(UserError, match=r"waiting for data; train.max_data_wait_fraction is 0.01: raise data.workers"):
        tiny.run(config, tmp_path)
    run = RunDir.open(tmp_path)
    assert run.summary()["status"] == "failed"
    with Checkpoints(run.checkpoints, metric="accuracy", mode="max", writable=False) as checkpoints:
        assert checkpoints.steps[-1] == saved
    config.train.max_data_wait_fraction = 1.0
    assert (tiny.run(config, tmp_path)["status"], RunDir.open(tmp_path).summary()["step"]) == ("completed", 12)


def test_preempted_run_does_not_check_its_data_wait(tmp_path, slow_data):
    config = tiny.logistic(steps=8, max_data_wait_fraction=0.01)
    assert tiny.run(config, tmp_path, should_stop=tiny.stop_after(3))["status"] == "preempted"


def test_run_within_the_data_wait_limit_completes(tmp_path, slow_data):
    assert tiny.run(tiny.logistic(steps=30, max_data_wait_fraction=0.5), tmp_path)["status"] == "completed"


def test_time_limit_stops_the_run_and_the_same_command_resumes(tmp_path):
    config = tiny.logistic(steps=20, max_minutes=1e-9)
    first = tiny.run(config, tmp_path)
    assert (first["status"], first["step"]) == ("stopped_early", 1)
    assert first["metrics"]["validation"]["accuracy"] is not None
    config.train.max_minutes = 10.0
    assert tiny.run(config, tmp_path)["step"] == 20
    assert (
        tiny.run(tiny.logistic(steps=20), tmp_path / "whole")["params_sha256"]
        == RunDir(tmp_path).summary()["params_sha256"]
    )


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_early_stopping_by_any_metric(metric, tmp_path):
    config = tiny.logistic(steps=100)
    config.optimizer.learning_rate = 0.0  # nothing ever improves
    config.eval.update(every_steps=5, metric=metric, mode="min" if metric == "loss" else "max", patience=2)
    summary = tiny.run(config, tmp_path)
    assert (summary["status"], summary["step"]) == ("stopped_early", 15)
    assert summary["best"]["step"] == 15  # the last of equals
    assert tiny.run(config, tmp_path) == summary  # it is finished: the same command does not resume it


def test_stalled_counts_from_the_best():
    class Section:
        patience, mode, min_delta = 2, "max", 0.1

    history = [(1, 0.5), (2, 0.55), (3, 0.7), (4, 0.75), (5, 0.79)]
    assert [stalled(tuple(history[:n]), Section) for n in range(6)] == [
        False,
        False,
        False,
        False,
        False,
        True,
    ]
    Section.patience = 0
    assert not stalled(tuple(history), Section)


def test_loss_that_is_not_finite_stops_the_run_before_saving(tmp_path):
    config = load("configs/linear_diabetes.py").config
    config.optimizer.learning_rate = 1e6
    config.checkpoint.every_steps = 100
    with pytest.raises(UserError, match=r"training diverged; lower optimizer.learning_rate \(here 1e\+06\)"):
        tiny.run(config, tmp_path)
    assert RunDir(tmp_path).summary()["status"] == "failed"
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


def test_parameter_that_is_not_finite_is_never_saved(tmp_path):
    """Although the loss of that step was still finite."""
    config = load("configs/linear_diabetes.py").config
    config.optimizer.update(name="sgd", learning_rate=1e38, momentum=0.0)
    config.checkpoint.every_steps = 1
    with pytest.raises(DivergedError, match="learning_rate"):
        tiny.run(config, tmp_path)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 5, "epochs": 1.0}}, "give one of the two"),
        ({"train": {"batch_size": 0}}, "^train.batch_size is 0"),
        ({"train": {"steps": 0}}, "^train.steps is 0"),
        ({"eval": {"metric": "f1"}}, r"eval.metric 'f1' is unknown; known: accuracy, loss"),
        ({"eval": {"mode": "best"}}, "eval.mode is 'best'"),
        ({"eval": {"splits": ("validaton",)}}, "did you mean 'validation'"),
        ({"model": {"num_classes": 9}}, "label 9 of example .* model.num_classes is 9"),
        (
            {"model": {"nam_classes": 9}},
            "model.nam_classes is not a key of 'logistic'; did you mean 'num_classes'",
        ),
        ({"seed": -1}, "^seed is -1.* 0 to 4294967295"),
        ({"train": {"ema_decay": 1.0}}, "^train.ema_decay is 1.0.* 0 to 0.999999$"),
        ({"optimizer": {"freeze": "nothing"}}, "^optimizer.freeze='nothing' finds no parameter; some of the 2 are "),
        ({"optimizer": {"layer_decay": 0.9}}, "^optimizer.layer_decay=0.9 needs parameters named"),
        ({"optimizer": {"decay_exclude": "("}}, "is not a valid regular expression"),
        ({"optimizer": {"warmup_fraction": 1.5}}, "^optimizer.warmup_fraction is 1.5"),
        ({"train": {"steps": None, "epochs": float("nan")}}, "^train.epochs is nan"),
        ({"mesh": {"fsdp": 0}}, "^mesh.fsdp is 0"),
        ({"data": {"transform": {"inputs": ()}}}, r"^data.transform.inputs is \(\)"),
        ({"dtype": "float16"}, "dtype is 'float16'; known: float32, bfloat16, float64"),
        ({"init_from": "some/model"}, "init_from='some/model' is not resolved: .*`load_variables`"),
        ({"mesh": {"data": 3}}, "there are 8 devices"),
    ],
)
def test_invalid_configs_are_one_line_errors(change, message, tmp_path):
    config = tiny.logistic(steps=5)
    config.update(change)
    with pytest.raises(UserError, match=message) as caught:
        tiny.run(config, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({}, "model 'logistic' needs 'features', but data.transform 'image' provides images, labels"),
        ({"flpi": True}, r"data.transform.augment.flpi is not a key of 'augment'; did you mean 'flip'\?"),
    ],
)
def test_invalid_images_are_one_line_errors(augment, message, tmp_path):
    config = tiny.logistic(steps=5)
    config.data.transform = image(channels=1)
    config.data.transform.inputs = ("features",)
    config.data.transform.augment.update(augment)
    with pytest.raises(UserError, match=message):
        tiny.run(config, tmp_path)


def test_only_classifiers_train_on_mixed_images(tmp_path):
    config = tiny.logistic(steps=5)
    config.data.transform = image(channels=1)
    config.data.transform.inputs = ("features",)
    config.data.transform.augment.mixup = 0.2
    config.task = {"name": "regression", "hidden_label": None}
    with pytest.raises(UserError, match="mixes the labels of two examples, which task 'regression' does not take"):
        tiny.run(config, tmp_path)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (tiny.bert, {"num_heads": 3}, "model.num_heads=3 does not divide model.hidden_size=16"),
        (tiny.resnet, {"block": "basik"}, "model.block is 'basik'; known: basic, bottleneck"),
        (tiny.resnet, {"stem": "large"}, "model.stem is 'large'; known: imagenet, small"),
    ],
)
def test_invalid_model_is_a_one_line_error(make, change, message, tmp_path):
    config = make()
    config.model.update(change)
    with pytest.raises(UserError, match=message):
        tiny.run(config, tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_a_one_line_error(bad, tmp_path, monkeypatch):
    columns = data.SOURCES["diabetes"][1]()
    columns["train"]["features"][3, 4] = bad
    monkeypatch.setitem(data.SOURCES, "diabetes", ("sklearn", lambda: columns))
    with pytest.raises(UserError, match=rf"features of split 'train' holds {bad} at \[3, 4\]"):
        tiny.run(linear_diabetes.get_config(), tmp_path)


def test_token_without_an_embedding_is_a_one_line_error(tmp_path):
    config = tiny.bert()
    config.model.vocab_size = 500
    with pytest.raises(UserError, match=r"token id \d+ in split '\w+' is out of range: model.vocab_size is 500"):
        tiny.run(config, tmp_path)


@pytest.mark.slow
def test_fsdp_gives_the_same_parameters_up_to_rounding(tmp_path):
    plain = tiny.bert(steps=5)
    sharded = tiny.bert(steps=5)
    sharded.mesh.update(fsdp=4, rules=(("mlp_(in|out)/kernel", ("fsdp",)),))
    losses = [
        tiny.run(config, tmp_path / name)["metrics"]["validation"]["loss"]
        for name, config in (("plain", plain), ("sharded", sharded))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    experiment = prepare(sharded)
    kernel = experiment.init().params["encoder"]["layer_0"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 32)


@pytest.mark.extended
def test_linear_diabetes_matches_the_closed_form(tmp_path):
    config = linear_diabetes.get_config()
    tiny.run(config, tmp_path)
    experiment = prepare(config)
    with Checkpoints(tmp_path / "checkpoints", metric="loss", mode="min") as checkpoints:
        state, _ = checkpoints.restore(experiment.state, checkpoints.steps[-1])
    train = experiment.dataset.split("train").columns
    design = np.column_stack([train["features"], np.ones(len(train["labels"]))]).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, train["labels"].astype(np.float64), rcond=None)
    linear = state.params["linear"]
    found = np.concatenate([np.ravel(linear["kernel"]), np.ravel(linear["bias"])])
    np.testing.assert_allclose(found, solution, rtol=1e-4)
