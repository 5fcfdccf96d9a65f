import pytest
from tqdm import tqdm

from research import reporting
from research.rundir import RunDir


class _Bar(tqdm):
    """The bar as it is of a run that takes longer than half a second."""

    def __init__(self, **options):
        super().__init__(**{**options, "delay": 0})


@pytest.mark.parametrize(("metric", "shown"), [("spearman", "test spearman=0.2500"), ("loss", "test loss=1.0000")])
def test_the_bar_shows_the_metric_that_ranks(metric, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "tqdm", _Bar)
    run = RunDir(tmp_path)
    run.start({})
    with reporting.Reporter(run, 0, 1, lambda step: 0.1, metric=metric, seed=0, show=True) as reporter:
        reporter.evaluation(1, "test", {"loss": 1.0, "spearman": 0.25, "accuracy": 0.5})
        reporter.evaluation(1, "hidden", {"loss": None, "spearman": None, "accuracy": None})
    run.close()
    bar = capsys.readouterr().err
    assert shown in bar
    assert "accuracy" not in bar
    assert "hidden" not in bar
