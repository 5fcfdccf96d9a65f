# mypy: disable-error-code="arg-type"
"""Students: where they start, what they learn from, and which of them are refused."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.compress import student as module
from research.compress import teaching
from research.compress.__main__ import main
from research.compress.methods import METHODS
from research.compress.run import Compression
from research.compress.tuning import Tuning
from research.inference.model import open_model
from research.inference.predictor import Predictor
from research.interop.export import export
from research.runs.rundir import RunDir
from research.training.trained_run import TrainedRun
from tests import tiny
from tests.compress.conftest import config, own_config


@pytest.fixture(scope="session")
def small(own, tmp_path_factory):
    """A run of one layer as wide as those of `own`, with the same tokenizer."""
    made = own_config(own)
    made.seed = 5
    folder = tmp_path_factory.mktemp("student") / "small"
    tiny.run(made, folder)
    return folder


@pytest.fixture(scope="session")
def other(own, tmp_path_factory):
    """A run whose tokenizer has fewer pieces."""
    made = own_config(own, vocab_size=60)
    made.data.transform.vocab_size = 60
    folder = tmp_path_factory.mktemp("student") / "other"
    tiny.run(made, folder)
    return folder


@pytest.fixture
def compression(own):
    return Compression(TrainedRun(RunDir.open(own / "run"), "last"), "last", say=lambda line: None)


def student_from(folder, **model):
    made = config()
    made.init_from = str(folder)
    made.model.update(model)
    return made


def distilled(compression, student, said=None):
    context = dataclasses.replace(compression._context, student=student, trains=True)
    if said is not None:
        context = dataclasses.replace(context, say=said.append)
    return METHODS["distill"].apply(compression.original, None, context)


@pytest.mark.extended
@pytest.mark.parametrize("form", ["run", "folder"])
def test_student_starts_from_its_weights(compression, small, tmp_path, form):
    folder = small
    if form == "folder":
        folder = tmp_path / "exported"
        export(small, folder)
    said = []
    found = distilled(compression, student_from(folder), said)
    expected = jax.device_get(open_model(RunDir.open(small)).variables)["params"]
    assert found.config.model.num_layers == 1
    for part in ("encoder", "pooler"):
        tiny.assert_trees_equal(found.variables["params"][part], expected[part])
    assert np.any(found.variables["params"]["classifier"]["kernel"] != expected["classifier"]["kernel"])
    assert any("fresh: classifier" in line for line in said)
    assert isinstance(found.variables["params"]["pooler"]["kernel"], np.ndarray)


@pytest.mark.extended
def test_weights_for_other_inputs_are_refused(compression, own, small, other, tmp_path):
    with pytest.raises(UserError, match=r"other are for another vocabulary: only \d+ of the run's \d+ tokens have the"):
        distilled(compression, student_from(other))
    with pytest.raises(UserError, match=r"^the student has ([\d,]+) parameters and the run \1; it must be smaller$"):
        distilled(compression, student_from(own / "run"))
    with pytest.raises(UserError, match=r"^pretrained weights: .* is not a folder"):
        distilled(compression, student_from(tmp_path / "none"))
    short, run = student_from(small, max_positions=16), compression.original.config
    with pytest.raises(UserError, match=r"small have 16 positions, and the run reads up to \d+ tokens; start from"):
        module._take(compression.original.but().config, short, run)


def test_what_another_encoder_learned_is_refused(tmp_path):
    """Without a tokenizer every file of the encoder counts."""
    run, assets = tmp_path / "run", tmp_path / "assets"
    for folder in (run / "checkpoints" / "1", run / "assets", assets):
        folder.mkdir(parents=True)
        (folder / "bag.json").write_text("[1]")
    (run / "config.json").write_text("{}")
    (assets / "samples.json").write_text("{}")
    context = SimpleNamespace(tokenizer=None, assets=assets)
    module._check_same_inputs(student_from(run), None, context)
    (assets / "bag.json").write_text("[2]")
    with pytest.raises(UserError, match=r"read in another way: assets/bag\.json differs from the run's"):
        module._check_same_inputs(student_from(run), None, context)


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"unlabelled": "x"}, "regression", "^--unlabelled is for runs of task 'classification'"),
        ({"hidden_weight": 1.0}, "regression", "^--hidden_weight is for runs of task 'classification'"),
        ({"unlabelled": "x", "soft_weight": 0.0}, "classification", "^--unlabelled adds to the run's predictions"),
    ],
)
def test_tuning_that_has_no_effect_is_refused(options, task, message):
    Tuning().check(task)
    with pytest.raises(UserError, match=message):
        Tuning(**options).check(task)


def test_hidden_states_of_another_size_are_refused():
    narrow, source = config(), SimpleNamespace(config=config())
    teaching.check_hidden(source, narrow)
    narrow.model.hidden_size = 16
    with pytest.raises(UserError, match=r"the run's model\.hidden_size is 32, and that of the network to train 16"):
        teaching.check_hidden(source, narrow)
    narrow.model.name = "bert_mlm"
    with pytest.raises(UserError, match=r"these are bert and bert_mlm$"):
        teaching.check_hidden(source, narrow)


@pytest.mark.extended
def test_hidden_states_are_those_of_the_run(compression, tmp_path):
    """By its pooler and head they give its predictions, to float16's rounding."""
    network, path = compression.original, tmp_path / "states.npy"
    soft = tmp_path / "soft.jsonl"
    teaching.write_soft_labels(compression.source, soft)
    teaching.write_hidden(compression.source, {"soft_labels": str(soft), "unlabelled": None}, path, lambda line: None)
    states, params = np.load(path), network.variables["params"]
    pooled = np.tanh(states.astype(np.float32) @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    logits = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = [json.loads(line)["scores"] for line in soft.read_text().splitlines()]
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), expected, atol=2e-3)
    assert states.dtype == np.float16


@pytest.mark.extended
def test_student_learns_from_further_texts_and_hidden_states(own, small, tmp_path, capsys):
    texts = ["a superb film", "", "dull and long"]
    (tmp_path / "more.csv").write_text("review\n" + "".join(f'"{text}"\n' for text in texts))
    student = tmp_path / "student.py"
    lines = (
        "from tests.compress.student_test import student_from",
        "PRESETS = ('embedded',)",
        "FULL = 'embedded'",
        f"get_config = lambda p: student_from({str(small)!r})",
    )
    student.write_text("\n".join(lines), encoding="utf-8")
    folder = tmp_path / "made"
    command = [f"--workdir={own / 'run'}", "--checkpoint=last", "--method=distill", f"--student={student}"]
    command += [f"--to={folder}", "--epochs=0.5", "--hidden_weight=2", "--column=text=review"]
    with pytest.raises(UserError, match=r"row 0 \(counting from 0\) of .*more\.csv: it has no column 'text'"):
        main([*command[:-1], f"--unlabelled={tmp_path / 'more.csv'}"])
    assert main([*command, f"--unlabelled={tmp_path / 'more.csv'}"]) == 0
    assert "MB" in capsys.readouterr().out
    tuned = RunDir.open(tmp_path / "made-tuned")
    data, task = tuned.config()["data"], tuned.config()["task"]
    assert (task["hidden_weight"], np.load(data["soft_hidden"]).shape[1]) == (2.0, 32)
    with open(data["unlabelled"], encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert [record["text"] for record in records] == texts
    expected = Predictor.open(own / "run").predict({"text": texts})
    np.testing.assert_allclose(
        [record["scores"] for record in records], [record["scores"] for record in expected], atol=1e-5
    )
    trained = TrainedRun(tuned, "last")
    assert len(np.load(data["soft_hidden"])) == len(trained.dataset().split("train")) + 3
    assert len(trained.streams()("train").members) == len(trained.dataset().split("train"))

    shutil.rmtree(folder)
    before = tuned.metrics()
    assert main([*command, f"--unlabelled={tmp_path / 'more.csv'}"]) == 0  # nothing is trained again
    assert tuned.metrics() == before
    shutil.rmtree(folder)
    (tmp_path / "more.csv").write_text("review\nanother film\n")
    with pytest.raises(UserError, match=r"made-tuned holds another config's run: .*data\.unlabelled"):
        main([*command, f"--unlabelled={tmp_path / 'more.csv'}"])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"", "has no inputs$"), (b"caf\xe9\n", r"^line 1 of .* is not UTF-8"), (None, "can't be read")],
)
def test_unreadable_further_inputs_are_one_line(compression, tmp_path, contents, message):
    path = tmp_path / "more.txt"
    if contents is not None:
        path.write_bytes(contents)

    def write():
        teaching.digest_of(str(path), {})
        teaching.write_unlabelled(compression.source, str(path), {}, tmp_path / "out.jsonl", lambda line: None)

    with pytest.raises(UserError, match=message):
        write()
    assert not (tmp_path / "out.jsonl").exists()
