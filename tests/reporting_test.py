import math

import pytest
from matplotlib.figure import Figure
from tqdm import tqdm

from research.runs import reporting
from research.runs.rundir import RunDir
from research.training import loop
from research.training.loop import train_and_evaluate
from tests import tiny


class _Bar(tqdm):
    """The progress bar of a run that takes longer than half a second."""

    def __init__(self, **options):
        super().__init__(**{**options, "delay": 0})


@pytest.mark.parametrize(("metric", "shown"), [("spearman", "test spearman=0.2500"), ("loss", "test loss=1.0000")])
def test_progress_bar_shows_the_ranking_metric(metric, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "tqdm", _Bar)
    run = RunDir(tmp_path)
    run.start({})
    with reporting.Reporter(run, 0, 1, lambda step: 0.1, metric=metric, check=lambda *_: None, show=True) as reporter:
        reporter.evaluation(1, "test", {"loss": 1.0, "spearman": 0.25, "accuracy": 0.5})
        reporter.evaluation(1, "hidden", {"loss": None, "spearman": None, "accuracy": None})
    run.close()
    bar = capsys.readouterr().err
    assert shown in bar
    assert "accuracy" not in bar
    assert "hidden" not in bar


def _curve(folder, monkeypatch, metric, lines):
    """The curve's axes, {ylabel: {split: ys}}, or None where there is none."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    run = RunDir(folder)
    run.start({})
    for line in lines:
        run.append_metrics(line)
    reporting.plot_training_curve(run, metric)
    run.close()
    axes = [axis for figure in figures for axis in figure.axes]
    return {axis.get_ylabel(): {line.get_label(): list(line.get_ydata()) for line in axis.lines} for axis in axes}


def test_curve_shows_finite_values_only(tmp_path, monkeypatch):
    """A metric without any value has no axes."""
    lines = [
        {"step": step, "split": split, "loss": None if split == "hidden" else 1.0, "r2": r2, "perplexity": perplexity}
        for step, perplexity in ((1, math.inf), (2, 5.0))
        for split, r2 in (("train", None), ("hidden", None))
    ]
    loss = {"train": [1.0, 1.0]}
    assert _curve(tmp_path / "r2", monkeypatch, "r2", lines) == {"loss": loss}
    both = {"train": [5.0], "hidden": [5.0]}
    assert _curve(tmp_path / "perplexity", monkeypatch, "perplexity", lines) == {"loss": loss, "perplexity": both}
    assert _curve(tmp_path / "none", monkeypatch, "r2", [line for line in lines if line["split"] == "hidden"]) == {}


def test_the_best_checkpoint_is_named_if_it_is_not_the_last(tmp_path, monkeypatch, capsys):
    values = iter([0.5, 0.9, 0.7, 0.9])  # of two runs: the best is the second of three, and the only one
    monkeypatch.setattr(loop, "ranking_metric", lambda *_: next(values))
    for steps, named in ((6, True), (2, False)):
        config = tiny.logistic(steps=steps)
        config.eval.every_steps = 2
        train_and_evaluate(config, tmp_path / str(steps))
        lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("best: ")]
        assert [line.split(";")[0] for line in lines] == (["best: accuracy 0.9000 at step 4"] if named else [])


def test_paths_are_shown_from_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_and_evaluate(tiny.logistic(steps=2), "runs/a b")
    out = capsys.readouterr().out
    assert str(tmp_path) not in out
    assert " -> runs/a b\n" in out
    assert "--workdir='runs/a b' --input=FILE" in out
