"""Chains of methods from the command line, and what the result is good for."""

import json

import numpy as np
import pytest

from research.base.errors import UserError
from research.compress.__main__ import main
from research.core.pruning import zeros
from research.inference.folder import Folder
from research.inference.model import open_model
from research.inference.predictor import Predictor
from research.interop.export import export
from research.runs.certificate import read_certificate
from research.runs.rundir import RunDir
from research.serve.model import ServedModel
from tests.serve.conftest import LIMITS, TEXTS, answer_all

pytestmark = pytest.mark.extended


def test_chain_trains_once_and_is_a_run(workdir, tmp_path, capsys):
    folder = tmp_path / "small"
    command = [f"--workdir={workdir}", "--checkpoint=last", f"--to={folder}", "--epochs=0.1", "--learning_rate=0.001"]
    methods = ["--method=vocab", "--method=layers=2", "--method=ffn=0.5", "--method=int8"]
    assert main([*command, *methods]) == 0
    assert "batches of 16 × 32" in capsys.readouterr().out
    run = RunDir.open(folder)
    certificate = read_certificate(run)
    assert certificate["methods"] == ["vocab", "layers=2", "ffn=0.5", "int8"]
    assert certificate["parameters"]["compressed"] < certificate["parameters"]["original"]
    tuned = RunDir.open(tmp_path / "small-tuned")
    assert tuned.config()["data"]["soft_labels"] == str(tmp_path / "small-tuned-soft_labels.jsonl")
    assert (tuned.config()["model"]["num_layers"], tuned.config()["model"]["mlp_size"]) == (2, 32)
    assert tuned.config()["model"]["vocab_size"] == run.config()["model"]["vocab_size"] < 2000
    expected = Predictor.open(folder).predict({"sentence": TEXTS})

    served = ServedModel.open("small", run)
    assert (served.compute, list(served.warm_up(LIMITS)) != []) == ("int8", True)
    answers, _ = answer_all(served, served.encode({"sentence": TEXTS}))
    # Products of integers are exact; the rest is in float32, in batches of another shape.
    found = np.array([answer.values["scores"] for answer in answers])
    np.testing.assert_allclose(found, [record["scores"] for record in expected], atol=1e-5)

    export(folder, tmp_path / "exported")
    weights = Folder.open(tmp_path / "exported").model(dtype="float32").variables
    kernel = weights["params"]["encoder"]["layer_0"]["mlp_in"]["kernel"]
    model = open_model(run)
    integers = np.asarray(model.variables["params"]["encoder"]["layer_0"]["mlp_in"]["kernel"])
    scales = np.asarray(model.variables["scales"]["encoder"]["layer_0"]["mlp_in"]["kernel"])
    np.testing.assert_array_equal(np.asarray(kernel), integers * scales)

    with pytest.raises(UserError, match="in int8 already"):
        main([f"--workdir={folder}", "--method=layers=1", f"--to={tmp_path / 'again'}"])
    with pytest.raises(UserError, match="exists already"):
        main([*command, *methods])


def test_pruned_run_has_the_zeros_asked_for(workdir, tmp_path):
    folder = tmp_path / "sparse"
    assert main([f"--workdir={workdir}", "--method=prune=0.8", f"--to={folder}", "--epochs=0.05"]) == 0
    certificate = read_certificate(RunDir.open(folder))
    assert certificate["zeros"] == pytest.approx(0.8, abs=0.01)
    assert zeros(open_model(RunDir.open(folder)).variables["params"]) == certificate["zeros"]


def test_student_reads_the_inputs_as_its_teacher(workdir, tmp_path):
    student = tmp_path / "student.py"
    lines = (
        "from tests import tiny",
        "PRESETS = ('embedded',)",
        "FULL = 'embedded'",
        "get_config = lambda p: tiny.bert(steps=1)",
    )
    student.write_text("\n".join(lines), encoding="utf-8")
    folder = tmp_path / "small"
    command = [f"--workdir={workdir}", "--method=distill", f"--student={student}", f"--to={folder}", "--epochs=0.05"]
    assert main(command) == 0
    certificate = read_certificate(RunDir.open(folder))
    config = RunDir.open(folder).config()
    assert config["model"]["num_layers"] == 1
    assert config["data"]["transform"]["max_length"] == RunDir.open(workdir).config()["data"]["transform"]["max_length"]
    assert certificate["parameters"]["compressed"] * 2 < certificate["parameters"]["original"]
    assert json.loads((folder / "summary.json").read_text())["compressed"]["methods"] == ["distill"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "^--method is missing"),
        (["--method=int8", "--epochs=-1"], "^--epochs is -1; it must be at least 0$"),
        (["--method=int8", "--soft_weight=2"], "^--soft_weight is 2; it must be 0 to 1$"),
        (["--method=int8", "--hidden_weight=inf"], "^--hidden_weight is inf; it must be at least 0$"),
        (["--method=int8", "--unlabelled=x.txt"], "^--unlabelled is for training again, which needs a method that"),
        (["--method=layers=1", "--epochs=0", "--hidden_weight=1"], "^--hidden_weight is for training again"),
        (["--method=layers=1", "--column=a=b"], "^--column is for --unlabelled=FILE; give that too$"),
        (["--method=layers=1", "--unlabelled=x", "--column=ab"], "^--column=ab is not of the form INPUT=COLUMN$"),
        (["--method=onnx", "--method=int8"], "^--method=onnx writes files for ONNX Runtime instead of a run"),
    ],
)
def test_invalid_flags_are_one_line(workdir, flags, message):
    with pytest.raises(UserError, match=message):
        main([f"--workdir={workdir}", *flags])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text + "\nso so,maybe",
            "has other classes than .*: now maybe, no, yes, when .* no, yes; give it",
        ),
        (lambda text: text.replace("yes", "oui"), r"has other classes than .*: now no, oui, when .* no, yes; give it"),
        (lambda text: text.replace("number 7", "number 8"), r"texts\.csv has changed since the run began: its finger"),
    ],
)
def test_data_of_other_labels_is_refused_before_anything_is_trained(own, change, message):
    file = own / "texts.csv"
    before = file.read_text()
    file.write_text(change(before))
    try:
        with pytest.raises(UserError, match=message):
            main([f"--workdir={own / 'run'}", "--method=layers=1", "--soft_weight=0", f"--to={own / 'small'}"])
    finally:
        file.write_text(before)
    assert not list(own.glob("small*"))
