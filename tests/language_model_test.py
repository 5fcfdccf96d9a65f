# mypy: disable-error-code="arg-type, attr-defined, misc"
"""Small end-to-end language modelling."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from research.base.errors import UserError
from research.core import metrics
from research.core.tasks import LanguageModel
from research.data.pipeline import Rows as ProcessRows
from research.data.pipeline import Stream, evaluation_batches
from research.data.text.language_model import TokenRows
from research.generate import main
from research.models import MODELS
from research.runs.rundir import RunDir
from research.training import loop
from research.training.experiment import prepare
from tests import tiny


@pytest.fixture(autouse=True)
def few(monkeypatch):
    tiny.few_documents(monkeypatch)


@pytest.mark.extended
def test_the_end_of_a_run_names_what_generates(tmp_path, capsys):
    loop.train_and_evaluate(tiny.gpt(steps=1), tmp_path / "run", show=True)
    said = capsys.readouterr().out
    assert f"  generate: python -m research.generate --workdir={tmp_path}/run --prompt=TEXT" in said
    assert "research.predict" not in said
    assert main([f"--workdir={tmp_path}/run", "--prompt=The", "--max_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("The")


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["consecutive", "random"])
def test_run_learns_and_an_interrupted_one_ends_equally(blocks, tmp_path):
    config = tiny.gpt(steps=30)
    config.data.transform.blocks = blocks
    config.data.transform.stride = 12
    whole = tiny.run(config, tmp_path / "whole")
    assert tiny.run(config, tmp_path / "cut", should_stop=tiny.stop_after(14))["status"] == "preempted"
    assert 10 < RunDir(tmp_path / "cut").summary()["step"] < 30
    rest = tiny.run(config, tmp_path / "cut")
    assert rest["params_sha256"] == whole["params_sha256"]
    assert rest["metrics"] == whole["metrics"]
    losses = [line["loss"] for line in RunDir(tmp_path / "whole").metrics("validation")]
    assert len(losses) == 3
    assert losses[-1] < 0.9 * np.log(257)
    values = whole["metrics"]["validation"]
    assert values["perplexity"] == pytest.approx(np.exp(values["loss"]), rel=1e-6)
    # Each byte costs as much as its token, and the ends of documents cost without being a byte.
    examples = prepare(config).dataset.split("validation")
    ends = np.count_nonzero(examples.sequence == 256) - 1
    tokens = examples.inputs
    assert values["bits_per_byte"] == pytest.approx(values["loss"] / np.log(2) * tokens / (tokens - ends), rel=1e-6)
    lines = (tmp_path / "whole/predictions/validation.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["index"] for record in records] == list(range(len(examples)))
    labels, predictions, costs = (
        np.array([record[name] for record in records]) for name in ("label", "prediction", "loss")
    )
    assert labels[labels >= 0].tolist() == examples.sequence[1:].tolist()
    assert (labels == predictions)[labels >= 0].mean() == pytest.approx(values["accuracy"], abs=1e-9)
    assert costs[labels >= 0].mean() == pytest.approx(values["loss"], rel=1e-6)


def test_evaluation_is_exact_at_any_batch_size():
    results = []
    for batch_size in (3, 64):
        config = tiny.gpt()
        config.eval.batch_size = batch_size
        experiment = prepare(config)
        results.append(experiment.evaluate(experiment.init(), "validation")[0])
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["bits_per_byte"] == pytest.approx(results[1]["bits_per_byte"], rel=1e-6)


def _loss(module, variables, examples):
    """The mean loss over all targets, and their number."""
    total = {}
    for _, batch in evaluation_batches(Stream.unpacked(examples), batch_rows=4, rows=ProcessRows()):
        scores = LanguageModel().scores(module.apply(variables, batch, train=False), batch)
        total = metrics.add(total, scores) if total else scores
    return float(total["loss"].compute()), int(total["loss"].weight)


class Trigram(nn.Module):
    """Predicts from a token and the one before it in its segment."""

    @nn.compact
    def __call__(self, batch, *, train):
        embedded = nn.Embed(40, 8, name="own")(batch["tokens"])
        before = nn.Embed(40, 8, name="before")(batch["tokens"])
        seen = (batch["positions"] > 0)[..., None]
        x = embedded + seen * jax.numpy.roll(before, 1, axis=1)
        return {"logits": 5 * nn.Dense(40)(x)}


def _examples(row_length, stride, documents=(25, 3, 1, 40)):
    tokens = np.random.default_rng(0).integers(1, 40, sum(documents))
    starts = np.cumsum([0, *(length + 1 for length in documents)])
    sequence = np.zeros(starts[-1] + 1, np.int32)
    sequence[np.setdiff1d(np.arange(starts[-1]), starts)] = tokens
    return TokenRows(sequence, starts[:-1], True, row_length, stride, False, None)


@pytest.mark.extended
def test_overlap_gives_a_model_of_short_context_all_of_it():
    """With an overlap of one token it sees what it sees in a single long row; with none it does not."""
    module, whole = Trigram(), _examples(73, 73)
    assert len(whole) == 1
    variables = module.init(jax.random.key(0), whole.batch(np.array([[0]])), train=False)
    expected, count = _loss(module, variables, whole)
    assert count == whole.inputs == 73
    for row_length, stride in ((16, 1), (16, 7), (16, 15), (2, 1)):
        found, count = _loss(module, variables, _examples(row_length, stride))
        assert count == 73
        assert found == pytest.approx(expected, rel=1e-6)
    assert abs(_loss(module, variables, _examples(16, 16))[0] - expected) > 1e-4


@pytest.mark.extended
def test_documents_that_fit_cost_the_same_in_any_row():
    """A decoder's loss of documents in one row each, and of all in one row: segments hide the others."""
    sizes = {key: value for key, value in tiny.gpt().model.items() if key != "name"}
    module = MODELS["decoder"](**{**sizes, "vocab_size": 40, "max_positions": 64})
    together = _examples(62, 62, documents=(14, 14, 14, 15))
    alone = _examples(15, 15, documents=(14, 14, 14, 15))
    variables = module.init(jax.random.key(0), together.batch(np.array([[0]])), train=False)
    one, other = (_loss(module, variables, examples) for examples in (together, alone))
    assert (one[1], len(together)) == (together.inputs, 1)
    # All but the last document have 15 inputs and so a row of their own; the last input of that one is cut off.
    costs = []
    for examples in (together, alone):
        rows = np.arange(len(examples))[:, None]
        batch = {**examples.batch(rows), "weight": np.ones(rows.shape, np.float32)}
        found = LanguageModel().predictions(module.apply(variables, batch, train=False), batch)
        costs.append(found["loss"].ravel()[:60])
    np.testing.assert_allclose(costs[0], costs[1], rtol=1e-5)
    assert other[1] == one[1]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"row_length": 200}, "row_length is 200: model.max_positions is 16"),
        ("model", {"vocab_size": 100}, r"token id \d+ in split '\w+' is out of range: model.vocab_size is 100"),
        ("data", {"stride": 17}, "stride is 17; it must be at most row_length, 16"),
        ("data", {"blocks": "any"}, "blocks is 'any'"),
    ],
)
def test_mismatched_settings_are_one_line_errors(section, change, message, tmp_path):
    config = tiny.gpt()
    (config.data.transform if section == "data" else config.model).update(change)
    with pytest.raises(UserError, match=message):
        tiny.run(config, tmp_path)
