import json

import pytest
import scipy.stats

from research import config, ladder
from research.analysis import figures
from research.analysis.ladder import LADDERS, Ladder, Rung, run_ladder, table
from research.base.errors import UserError
from research.training.loop import train_and_evaluate


@pytest.mark.parametrize("name", LADDERS)
def test_every_rung_evaluates_the_split_of_its_ladder(name):
    """On the same data, with the same number of classes."""
    of_name = LADDERS[name]
    assert next(iter(of_name.rungs)) == "majority"
    loaded = [config.load(rung.config, rung.overrides).config for rung in of_name.rungs.values()]
    assert len({experiment.data.name for experiment in loaded}) == 1
    assert len({experiment.model.num_classes for experiment in loaded}) == 1
    assert all(of_name.split in experiment.eval.splits for experiment in loaded)


RUNGS = {
    "majority": Rung("configs/majority.py"),
    "broken": Rung("configs/resnet_digits.py"),
    "logistic": Rung("configs/logistic_digits.py:embedded", ("train.steps=30",)),
}


def _train(rung, seeds, workdir):
    if "resnet" in rung.config:
        raise ValueError("no | such\nmodel")
    of_seeds = [] if "majority" in rung.config else [f"train.seeds={seeds}"]
    return train_and_evaluate(config.load(rung.config, [*rung.overrides, *of_seeds]).config, workdir, show=False)


@pytest.mark.extended
def test_ladder_measures_its_runs_and_continues_after_a_failure(tmp_path, monkeypatch):
    said = []
    rows, failed = run_ladder(Ladder("test", RUNGS), tmp_path, seeds=2, train=_train, say=said.append)
    assert [row["rung"] for row in rows] == list(RUNGS)
    assert failed == ["broken"]
    majority, broken, logistic = rows
    assert broken == {"rung": "broken", "failed": "no | such model"}
    assert (majority["parameters"], logistic["parameters"]) == (10, 650)
    assert logistic["size_mib"] == 650 * 4 / 2**20
    summary = json.loads((tmp_path / "logistic-2-seeds/summary.json").read_text())
    assert summary["seeds"] == 2
    assert logistic["accuracy"] == summary["intervals"]["test"]["accuracy"]
    assert len(logistic["accuracy"]["values"]) == 2
    # A solver takes no seeds.
    summary = json.loads((tmp_path / "majority-2-seeds/summary.json").read_text())
    accuracy = summary["metrics"]["test"]["accuracy"]
    assert majority["accuracy"] == {"values": [accuracy], "mean": accuracy, "low": None, "high": None}
    assert (majority["optimum"], logistic["optimum"]) == (True, False)
    assert logistic["accuracy"]["mean"] > majority["accuracy"]["mean"]
    assert majority["examples"] == 360
    assert all(value > 0 for row in (majority, logistic) for value in row["latency_ms"].values())
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith(f"| majority | {accuracy:.4f} (one optimum) | 10 |")
    best = logistic["accuracy"]["mean"]
    assert f"within ± {scipy.stats.norm.ppf(0.975) * (best * (1 - best) / 360) ** 0.5:.4f}" in lines[-1]
    assert lines[3] == "| broken | failed: no / such model | | | | | |"
    assert lines[4].startswith(f"| logistic | {logistic['accuracy']['mean']:.4f} ± ")
    assert {line.count("|") for line in lines[:5]} == {8}
    assert "the mean of 2 seeds, ± 95 % by Student's t; one optimum, where a solver" in lines[-1]
    assert "mean of" not in table([majority], "test")
    assert "optimum" not in table([logistic], "test")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert "rung 2 of 3: broken, configs/resnet_digits.py" in said

    def again(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("research.training.loop._train", again)
    assert run_ladder(Ladder("test", RUNGS), tmp_path, seeds=2, train=_train, say=said.append) == (rows, failed)


def _row(name, **values):
    accuracy = {"values": [0.5], "mean": 0.5, "low": None, "high": None}
    row = {"rung": name, "accuracy": accuracy, "optimum": False, "examples": 10, "parameters": 1, "size_mib": 1.0}
    return row | {"train_seconds": 1.0, "latency_ms": {"one": 1.0, "batch": 1.0}, "device": "cpu"} | values


def test_rows_of_other_rungs_are_kept(tmp_path):
    """In the ladder's order, rungs of an older ladder last. A rung that fails now keeps its earlier measurement."""
    before = [_row("gone"), _row("last"), {"rung": "middle", "failed": "then"}, _row("first")]
    (tmp_path / "table.json").write_text(json.dumps(before))

    def train(*_):
        raise UserError("now")

    ladder = Ladder("test", {name: Rung("a") for name in ("first", "middle", "new", "last")})
    rows, _ = run_ladder(ladder, tmp_path, names=["middle", "last"], seeds=1, train=train, say=lambda text: None)
    assert rows == [_row("first"), {"rung": "middle", "failed": "now"}, _row("last"), _row("gone")]
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    written = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in written[2:6]] == ["| first", "| middle", "| last", "| gone"]
    assert {path.name for path in tmp_path.iterdir()} == {"table.json", "table.md", "ladder.png"}
    (tmp_path / "table.json").write_text("[{")
    with pytest.raises(UserError, match=r"table\.json can't be read"):
        run_ladder(ladder, tmp_path, names=["middle"], seeds=1, train=train, say=lambda text: None)
    assert (tmp_path / "table.json").read_text() == "[{"


def test_unknown_time_is_a_dash():
    """For example in a resumed run with nothing left to train."""
    rows = [_row("one"), _row("other", train_seconds=None)]
    assert table(rows, "test").splitlines()[2:4] == [
        "| one | 0.5000 | 1 | 1.0 s | 1 | 1.00 ms | 1.00 ms |",
        "| other | 0.5000 | 1 | – | 1 | 1.00 ms | 1.00 ms |",
    ]
    (axis,) = figures.ladder(rows, split="test").axes
    assert [text.get_text() for text in axis.texts] == ["one"]


def test_interrupted_run_is_an_error(tmp_path):
    def train(*_):
        return {"status": "preempted", "reason": "asked to stop"}

    (row,), _ = run_ladder(Ladder("test", {"one": Rung("a")}), tmp_path, seeds=1, train=train, say=lambda text: None)
    assert "is preempted: asked to stop" in row["failed"]


def test_user_error_becomes_a_row(tmp_path):
    def train(*_):
        raise UserError("needs weights")

    (row,), _ = run_ladder(Ladder("test", {"one": Rung("a")}), tmp_path, seeds=1, train=train, say=lambda text: None)
    assert row == {"rung": "one", "failed": "needs weights"}


@pytest.mark.slow
def test_command_prints_one_table(tmp_path, monkeypatch, capsys):
    """Solvers take no seeds; the weights of the last rung are unavailable here."""
    rungs = {
        "majority": Rung("configs/majority.py:embedded"),
        "logistic": Rung("configs/logistic_digits.py:embedded", ("train.steps=2",)),
        "pretrained": Rung("configs/bert_sst2.py:minilm"),
    }
    monkeypatch.setitem(LADDERS, "digits", Ladder("test", rungs))
    flags = ["--dataset=digits", "--seeds=1", f"--out={tmp_path}", f"--init_from={tmp_path / 'none'}"]
    assert ladder.main(flags) == 0
    written = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.endswith(written)
    assert "| majority | 0.1028 (one optimum) |" in written
    assert "| logistic | 0." in written
    assert "±" not in written.split("Accuracy:")[0]
    assert "| pretrained | failed: " in written
    assert ladder.main([*flags, "--rungs=pretrained"]) == 1
    with pytest.raises(UserError, match="--seeds is 0"):
        ladder.main(["--dataset=digits", "--seeds=0"])
