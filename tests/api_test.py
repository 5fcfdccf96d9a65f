"""The project from Python: each call does what the command does, on the same files."""

from pathlib import Path

import numpy as np
import pytest

import research
from research import api
from research.base.errors import UserError
from research.config import LoadedConfig
from research.configs import linear_diabetes
from research.data import load as data
from research.runs.rundir import RunDir
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    steps = {"train.steps": 20, "eval.every_steps": 10}
    return research.fit("configs/linear_diabetes.py", workdir=folder, show=False, learning_rate=0.05, **steps)


def test_fit_is_the_command(run):
    assert run.summary["status"] == "completed"
    assert run.config.optimizer.learning_rate == 0.05
    assert (run.config.train.steps, run.config.train.epochs) == (20, None)
    assert run.metrics == RunDir.open(run.workdir).summary()["metrics"]
    history = run.history
    split = run.config.eval.splits[0]
    np.testing.assert_array_equal(history[split]["step"], [10, 20])
    assert history[split]["loss"][-1] == run.metrics[split]["loss"]
    assert history["train"]["loss"].dtype == np.float64


def test_inputs_of_every_form_are_predicted_alike(run, tmp_path):
    split = run.config.eval.splits[0]
    features = data.raw({"name": "diabetes", "data_dir": None})[split]["features"][:5]
    expected = run.predict({"features": features})
    assert len(expected) == 5
    assert run.predict(features) == run.predict(list(features)) == expected

    class DataFrame(dict):
        """What pandas' and polars' have in common."""

        columns = ("features",)

        def to_dict(self):
            return dict(self)

    assert run.predict(DataFrame(features=features)) == expected
    assert run.predict([{"features": row, "other": 1} for row in features]) == expected
    assert run.predict([]) == []
    with pytest.raises(UserError, match=r"row 1 \(counting from 0\) has no column 'features'; it has x"):
        run.predict([{"features": features[0]}, {"x": features[0]}])
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"features": {row.tolist()}}}\n' for row in features))
    for found in (run.predict(path), run.predict(str(path))):
        assert [record["prediction"] for record in found] == [record["prediction"] for record in expected]
    with pytest.raises(UserError, match="for one text give a list"):
        run.predict("a fine film")
    with pytest.raises(UserError, match="'features'"):
        run.predict({"x": features})


def test_the_rest_is_what_the_commands_do(run, tmp_path):
    split = run.config.eval.splits[0]
    evaluation = run.evaluate(split)
    assert evaluation["metrics"] == run.metrics[split]
    (path,) = run.plot("residuals")
    assert path.is_file()
    with pytest.raises(UserError, match="class"):
        run.plot("roc")
    with pytest.raises(UserError, match="linear"):
        run.export(tmp_path / "out")
    assert research.open_run(run.workdir).metrics == run.metrics
    with pytest.raises(UserError, match="not a run directory"):
        research.open_run(tmp_path)
    with pytest.raises(UserError, match=f"; did you mean {run.workdir.name!r}"):
        research.open_run(f"{run.workdir}x")


def test_runs_are_compared(run, tmp_path):
    """A config is taken too, and is not changed; the table has what differs."""
    config = linear_diabetes.get_config()
    other = research.fit(config, workdir=tmp_path, show=False, steps=10, weight_decay=0.25)
    assert config.train.steps != 10
    assert other.config.train.epochs is None
    rows = research.compare(run, other)
    assert [row["step"] for row in rows] == [20, 10]
    assert [row["optimizer.weight_decay"] for row in rows] == [run.config.optimizer.weight_decay, 0.25]
    assert "optimizer.name" not in rows[0]
    split = run.config.eval.splits[0]
    assert rows[0][f"{split}/loss"] == run.metrics[split]["loss"]
    assert all(str(row["step"]) in line for row, line in zip(rows, repr(rows).splitlines()[1:], strict=True))
    assert rows._repr_html_().count("<tr>") == 3
    assert "data:image/png;base64," in run._repr_html_()
    assert str(run.workdir) in repr(run)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"learning_rat": 1}, "learning_rate"),
        ({"train.step": 1}, "train.steps"),
        ({"learning_rate": "x"}, "learning_rate"),
        ({"Cx": 1}, r"did you mean 'optimizer\.C'"),
    ],
)
@pytest.mark.parametrize("config", ["configs/linear_diabetes.py", linear_diabetes.get_config()], ids=["file", "config"])
def test_misspelt_key_is_a_one_line_error(config, overrides, key, tmp_path):
    with pytest.raises(UserError, match=key):
        research.fit(config, workdir=tmp_path / "run", show=False, **overrides)
    assert not (tmp_path / "run").exists()


def test_names_that_may_be_several_keys():
    keys = {"optimizer.learning_rate", "data.transform.name", "model.name", "seed", "train.seeds"}
    known = dict.fromkeys(keys)
    assert api._key("lr", known) == api._key("learning_rate", known) == "optimizer.learning_rate"
    assert api._key("seed", known) == "seed"
    with pytest.raises(UserError, match=r"model\.name"):
        api._key("name", known)


def test_seeds_have_histories_too(tmp_path):
    run = research.fit(tiny.logistic(steps=5, seeds=2), workdir=tmp_path, show=False)
    assert run.history["validation"]["loss"].shape == run.history["validation"]["step"].shape


def test_default_workdirs_differ(tmp_path, monkeypatch):
    """Also of runs that start within the same second."""
    monkeypatch.chdir(tmp_path)
    loaded = LoadedConfig(tiny.logistic(), Path("x.py"), None, frozenset())
    folders = []
    for _ in range(3):
        folders.append(api._new_workdir(loaded))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("x-") for folder in folders)
