import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from research.analysis.class_figures import areas
from research.analysis.curves import confusion, precision_recall, roc

# Few distinct scores, so that there are many ties.
SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def _arrays(scored):
    scores, positive = zip(*scored, strict=True)
    return np.array(scores) / 7, np.array(positive)


@settings(max_examples=200, deadline=None)
@given(scored=SCORED)
def test_roc_matches_scikit_learn(scored):
    scores, positive = _arrays(scored)
    curve = roc(scores, positive)
    if positive.all() or not positive.any():
        assert curve is None
        return
    x, y, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    # Ratios of small integers: equal except for the last digit.
    np.testing.assert_allclose(curve.x, x, rtol=1e-14)
    np.testing.assert_allclose(curve.y, y, rtol=1e-14)
    assert curve.area == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores), abs=1e-14)


@settings(max_examples=200, deadline=None)
@given(scored=SCORED)
def test_precision_recall_matches_scikit_learn(scored):
    scores, positive = _arrays(scored)
    curve = precision_recall(scores, positive)
    if not positive.any():
        assert curve is None
        return
    precision, recall, _ = sklearn.metrics.precision_recall_curve(positive, scores)
    np.testing.assert_allclose(curve.x, recall[::-1], rtol=1e-14)
    np.testing.assert_allclose(curve.y, precision[::-1], rtol=1e-14)
    assert curve.area == pytest.approx(sklearn.metrics.average_precision_score(positive, scores), abs=1e-14)


def test_several_classes_are_one_versus_rest(rng):
    labels, scores = rng.integers(0, 3, 60), rng.dirichlet(np.ones(4), 60)
    found = areas(labels, scores, roc)
    assert list(found) == [0, 1, 2]  # class 3 does not occur
    for c, curve in found.items():
        assert curve.area == pytest.approx(sklearn.metrics.roc_auc_score(labels == c, scores[:, c]), abs=1e-14)
    two = rng.dirichlet(np.ones(2), 60)
    assert list(areas(labels % 2, two, roc)) == [1]


def test_confusion_matches_scikit_learn(rng):
    labels, predictions = rng.integers(0, 4, (2, 100))
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(5))
    np.testing.assert_array_equal(confusion(labels, predictions, 5), expected)
