# mypy: disable-error-code="operator"
import dataclasses

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from research.base.errors import UserError
from research.core.state import averaged
from research.data import load as data
from research.devices import sharding
from research.training.experiment import prepare
from research.training.streams import split_streams
from tests import tiny


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(tiny.bert, marks=pytest.mark.extended),
        pytest.param(tiny.resnet, marks=pytest.mark.extended),
        tiny.logistic,
    ],
)
def test_evaluation_is_exact_at_any_batch_size(make, monkeypatch):
    tiny.few_sentences(monkeypatch)
    results = []
    for batch_size in (7, 64, 1000):
        config = make()
        config.eval.update(batch_size=batch_size, batch_rows=batch_size)
        experiment = prepare(config)
        results.append(experiment.evaluate(experiment.init(), "validation", predictions=True))
    (metrics, records), *others = results
    labels = experiment.dataset.split("validation").labels
    assert [record["index"] for record in records] == list(range(len(labels)))
    assert [record["label"] for record in records] == labels.tolist()
    predictions = [record["prediction"] for record in records]
    assert metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=1e-12)
    for other_metrics, other_records in others:
        assert other_metrics["accuracy"] == metrics["accuracy"]
        # float32 logits differ by rounding between shapes, about 1e-7 relative.
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
        np.testing.assert_allclose(
            [record["scores"] for record in other_records],
            [record["scores"] for record in records],
            atol=1e-6,
        )


@pytest.mark.extended
def test_correlations_are_computed_on_the_whole_split(monkeypatch):
    """Over several batches, equal to SciPy's for the written predictions; none if labels are hidden."""
    tiny.tfds(monkeypatch)
    config = tiny.bert_glue_task("stsb")
    config.eval.batch_rows = 8
    config.model.initializer_range = 0.5  # so that predictions differ without training
    experiment = prepare(config)
    state = experiment.init()
    assert len(experiment.streams("validation").rows) > 8
    metrics, records = experiment.evaluate(state, "validation", predictions=True)
    assert experiment.evaluate(state, "validation") == (metrics, [])
    columns = [[record[name] for record in records] for name in ("prediction", "label")]
    # The loss was summed on the device, so equality shows that each prediction has its own label.
    assert metrics["loss"] == pytest.approx(sklearn.metrics.mean_squared_error(*columns), rel=1e-5)
    assert metrics["pearson"] == pytest.approx(scipy.stats.pearsonr(*columns).statistic, abs=1e-9)
    assert metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(*columns).statistic, abs=1e-9)
    labels = experiment.dataset.split("validation").labels
    assert [record["index"] for record in records] == list(range(len(labels)))
    assert columns[1] == labels.tolist()
    assert set(experiment.evaluate(state, "test")[0].values()) == {None}


def test_split_with_hidden_labels_has_predictions_but_no_metrics():
    experiment = prepare(tiny.logistic())
    images = experiment.dataset.split("test")
    object.__setattr__(images, "labels", np.full_like(images.labels, -1))
    metrics, records = experiment.evaluate(experiment.init(), "test", predictions=True)
    assert metrics == {"accuracy": None, "loss": None}
    assert len(records) == len(experiment.dataset.split("test"))


@pytest.mark.parametrize("metric", ["accuracy", "ema_accuracy"])
def test_average_and_parameters_are_both_evaluated(metric):
    """The predictions come from the parameters that `eval.metric` ranks."""
    config = tiny.logistic()
    config.train.ema_decay = 0.5
    config.eval.metric = metric
    experiment = prepare(config)
    state = experiment.init()
    for batch in tiny.batches(experiment, 2):
        state, _ = experiment.train_step(state, sharding.put_batch(batch, experiment.mesh))
    metrics, records = experiment.evaluate(state, "validation", predictions=True)
    config.train.ema_decay, config.eval.metric = 0.0, "accuracy"
    plain = prepare(config)
    alone, records_alone, of_mean, records_of_mean = (
        part
        for of in (state, averaged(state, 0.5))
        for part in plain.evaluate(dataclasses.replace(of, average={}), "validation", predictions=True)
    )
    assert metrics == alone | {f"ema_{name}": value for name, value in of_mean.items()}
    assert metrics["ema_loss"] != metrics["loss"]
    assert records == (records_of_mean if metric == "ema_accuracy" else records_alone)
    assert records_of_mean != records_alone


def test_missing_average_cannot_rank():
    config = tiny.logistic()
    config.eval.metric = "ema_accuracy"
    with pytest.raises(UserError, match=r"eval.metric is 'ema_accuracy'.*train.ema_decay is 0.*it must be above 0"):
        prepare(config)


def test_other_dataset_is_evaluated_completely_after_training_on_a_part(tmp_path):
    config = tiny.logistic()
    config.data.train_fraction = 0.1
    experiment = prepare(config, tmp_path)
    size = len(experiment.dataset.split("train"))
    assert len(experiment.streams("train").rows) == round(0.1 * size)
    other = data.load(config.data, encoder=data.open_encoder(config.data, tmp_path)[0])
    assert len(split_streams(config, other, training=False)("train").rows) == size
