import json

from research import evaluate
from research.data import load as data
from research.training.loop import train_and_evaluate
from tests import tiny


def test_hidden_labels_are_reported_in_one_line(tmp_path, monkeypatch, capsys):
    """On stderr; stdout has only the JSON of the metrics."""
    columns = data.SOURCES["digits"][1]()
    columns["test"]["label"][:] = -1
    monkeypatch.setitem(data.SOURCES, "digits", ("sklearn", lambda: columns))
    train_and_evaluate(tiny.logistic(steps=1), tmp_path, show=False)
    capsys.readouterr()

    assert evaluate.main([f"--workdir={tmp_path}", "--split=test"]) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "predictions/test.jsonl"
    assert json.loads(out)["metrics"] == {"accuracy": None, "loss": None}
    assert err == f"no metrics: the labels of split 'test' are hidden; predictions: {path}\n"
    assert len(path.read_text().splitlines()) == len(columns["test"]["label"])

    assert evaluate.main([f"--workdir={tmp_path}", "--split=validation"]) == 0
    assert capsys.readouterr().err == ""
