import pytest

from research.base.errors import UserError
from research.config import load
from research.configs import bert_mlm
from research.training.limits import check_values, key_ranges

DIGITS = "configs/logistic_digits.py:embedded"
BERT = "configs/bert_sst2.py:embedded"
CANCER = "configs/logistic_breast_cancer.py:embedded"


@pytest.mark.parametrize(
    ("spec", "override"),
    [
        (DIGITS, "optimizer.b1=1"),
        (DIGITS, "optimizer.b2=1.5"),
        (DIGITS, "optimizer.b1=-0.1"),
        (DIGITS, "optimizer.eps=-1e-8"),
        (DIGITS, "optimizer.eps=0"),
        (DIGITS, "optimizer.momentum=1"),
        (DIGITS, "optimizer.end_fraction=-3"),
        (DIGITS, "optimizer.end_fraction=1.5"),
        (DIGITS, "optimizer.clip_norm=0"),
        (DIGITS, "optimizer.layer_decay=0"),
        (DIGITS, "optimizer.learning_rate=inf"),
        (DIGITS, "optimizer.tolerance=nan"),
        (DIGITS, "optimizer.drops=(0.5, 1.5)"),
        (DIGITS, "optimizer.weight_decay=1e400"),
        (DIGITS, "data.transform.std=(0.0,)"),
        (DIGITS, "data.transform.mean=(nan,)"),
        (DIGITS, "data.transform.mean=()"),
        (DIGITS, "data.train_fraction=0"),
        (DIGITS, "train.max_minutes=0"),
        (DIGITS, "train.max_minutes=inf"),
        (DIGITS, "train.steps=0"),
        (DIGITS, "train.steps=2147483648"),
        (DIGITS, "train.batch_size=-2"),
        (DIGITS, "train.epochs=inf"),
        (DIGITS, "eval.min_delta=-1"),
        (DIGITS, "eval.patience=-1"),
        (DIGITS, "mesh.data=0"),
        (CANCER, "optimizer.C=0"),
        (CANCER, "optimizer.C=inf"),
        (CANCER, "task.class_weight=('a', 'b')"),
        (CANCER, "task.class_weight=(1, None)"),
        (CANCER, "task.class_weight=(1, -1)"),
        (CANCER, "task.class_weight=()"),
        (BERT, "data.transform.vocab_size=0"),
        (BERT, "data.transform.vocab_size=-1"),
        (BERT, "data.transform.vocab_size=2147483647"),
        (BERT, "data.transform.pad_to=()"),
        (BERT, "data.transform.pad_to=(0,)"),
        (BERT, "data.transform.pad_to=(99999999999999999999,)"),
        (BERT, "model.num_layers=2147483647"),
        (BERT, "model.layer_norm_eps=0"),
        (BERT, "model.dropout=1.1"),
        *((spec, f"seed={10**40}") for spec in (DIGITS, BERT)),
    ],
)
def test_value_out_of_range_is_a_one_line_error(spec, override):
    key, _, _ = override.partition("=")
    with pytest.raises(UserError) as caught:
        load(spec, [override])
    assert key in str(caught.value)
    assert len(str(caught.value)) < 250
    assert len(str(caught.value).splitlines()) == 1


def test_error_says_which_value_means_none():
    with pytest.raises(UserError, match=r"optimizer.C=None"):
        load(CANCER, ["optimizer.C=inf"])


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("optimizer.b1", (0, 0.999), (-0.001, 1)),
        ("optimizer.eps", (1e-30,), (0,)),
        ("optimizer.layer_decay", (1, 0.1), (0, 1.01)),
        ("train.batch_size", (-1, 1, 2**31 - 1), (-2, 0, 2**31)),
        ("train.ema_decay", (0, 0.999999), (1,)),
        ("data.transform.mask_rate", (0.5,), (0, 1)),
    ],
)
def test_ends_of_a_range(key, inside, outside):
    limits = key_ranges(bert_mlm.get_config("embedded").to_dict())[key]
    assert [value in limits for value in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)


@pytest.mark.parametrize("value", [10**19, -(10**19), float("inf"), float("nan"), (1, (2, 10**40)), (float("-inf"),)])
def test_keys_without_a_range_accept_json_values_of_64_bits(value):
    with pytest.raises(UserError, match=r"model.own"):
        check_values({"model": {"own": value}})


@pytest.mark.parametrize("value", [True, 1.5, (1.5,), ((1,),), (None,), ("1",)])
def test_integers_stay_integers_in_python_configs(value):
    with pytest.raises(UserError, match=r"model.stage_sizes"):
        check_values({"model": {"name": "resnet", "stage_sizes": value}})
