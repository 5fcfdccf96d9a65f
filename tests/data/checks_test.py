import numpy as np
import pytest

from research.base.errors import UserError
from research.data.checks import check_inputs, check_labels
from research.data.examples import ArrayExamples, BagExamples, Ragged, TextExamples


@pytest.mark.parametrize(
    ("labels", "training", "message"),
    [
        ([0, 1, 2], True, "label 2 of example 2 of split 's' is out of range: model.num_classes is 2"),
        ([0, -1], True, "a hidden label"),
        ([0, -2], False, "label -2 of example 1"),
        ([0.0, 1.0], True, "a classifier needs integers"),
        ([0.0, 2.0**31], True, "label 2147483648.0 of example 1 of split 's' is out of range"),
    ],
)
def test_invalid_labels_are_named(labels, training, message):
    with pytest.raises(UserError, match=message):
        check_labels("s", np.array(labels), 2, training=training)


def test_hidden_labels_may_be_evaluated():
    check_labels("test", np.array([-1, -1]), 2, training=False)


def test_a_regression_label_must_be_finite():
    with pytest.raises(UserError, match=r"label of split 's' holds nan at \[1\]"):
        check_labels("s", np.array([0.0, np.nan]), None, training=True)


IDS = Ragged.of([[1, 2], [9]], np.int32)
LABELS = np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            TextExamples(IDS, IDS, LABELS, (4,), 4),
            "token id 9 in split 's' is out of range: model.vocab_size is 9",
        ),
        (
            BagExamples(IDS, IDS, LABELS, (4,), 4),
            "feature id 9 in split 's' is out of range: model.num_features is 5",
        ),
        (
            ArrayExamples({"features": np.array([[0.0], [np.inf]]), "labels": LABELS}),
            r"holds inf at \[1, 0\]",
        ),
    ],
)
def test_invalid_inputs_are_named(examples, message):
    with pytest.raises(UserError, match=message):
        check_inputs("s", examples, vocab_size=9, max_positions=8, num_features=5)


def test_valid_inputs_pass():
    check_inputs("s", TextExamples(IDS, IDS, LABELS, (4,), 4), vocab_size=10, max_positions=2, num_features=None)


def test_example_longer_than_max_positions_is_named():
    with pytest.raises(UserError, match=r"an example of 2 tokens: model.max_positions is 1"):
        check_inputs("s", TextExamples(IDS, IDS, LABELS, (4,), 4), vocab_size=10, max_positions=1, num_features=None)
