import functools
import re
from typing import Any

import pytest

from research.base.errors import UserError
from research.base.registry import build, config_keys, expand_variant, lookup, nearest


def _make(size, *, scale=1.0, split=None):
    return (size, scale, split)


TABLE: dict[str, Any] = {"make": _make}


def test_section_is_passed_as_arguments():
    assert build(TABLE, {"name": "make", "size": 3, "scale": 2.0}, "thing", split="train") == (
        3,
        2.0,
        "train",
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "mkae", "size": 1}, r"thing.name 'mkae' is unknown; did you mean 'make'\?"),
        (
            {"name": "make", "size": 1, "scael": 2},
            r"thing.scael is not a key of 'make'; did you mean 'scale'\?",
        ),
        ({"name": "make"}, "thing.size is missing"),
        (
            {"name": "make", "size": 1, "split": "x"},
            "thing.split is not a key",
        ),  # a config may not set what the code passes
    ],
)
def test_invalid_section_is_a_one_line_error(section, message):
    with pytest.raises(UserError, match=message):
        build(TABLE, section, "thing", split="train")


KEYS = (
    "data.name model.name model.num_heads optimizer.name optimizer.learning_rate optimizer.weight_decay dtype seed "
    "optimizer.warmup_fraction train.batch_size train.batch_rows eval.batch_size train.steps train.epochs train.seeds "
    "eval.patience model.dropout task.label_smoothing eval.every_steps checkpoint.every_steps"
).split()


def _suggested(word, known, **options):
    hint = nearest(word, known, **options)
    return re.findall("'([^']*)'", hint) if "known:" not in hint else None


@pytest.mark.parametrize(
    ("word", "known", "suggested"),
    [
        ("digit", ["digits", "iris", "diabetes"], ["digits"]),
        ("resent", ["resnet", "bert", "mlp"], ["resnet"]),
        ("Adamw", ["adamw", "lamb"], ["adamw"]),
        ("SGD", ["adamw", "lamb", "sgd"], ["sgd"]),
        ("sdg", ["adamw", "lamb", "sgd"], ["sgd"]),
        ("valid", ["train", "validation", "test"], ["validation"]),
        ("resnet-50", ["resnet20", "resnet50"], ["resnet50"]),
        ("optimiser.learning_rate", KEYS, ["optimizer.learning_rate"]),
        ("learning_rate", KEYS, ["optimizer.learning_rate"]),
        ("Optimizer.Weight-Decay", KEYS, ["optimizer.weight_decay"]),
        ("trian.steps", KEYS, ["train.steps"]),
        ("evaluation.batch_size", KEYS, ["eval.batch_size"]),
        ("modle.name", KEYS, ["model.name"]),
        ("model.heads", KEYS, ["model.num_heads"]),
        ("every_steps", KEYS, ["checkpoint.every_steps", "eval.every_steps"]),
        ("transformer", ["bert", "mlp", "resnet"], None),
        ("rmsprop", ["adamw", "lamb", "sgd"], None),
        ("logger", [*KEYS, "train.log_every"], None),
        ("train.strategy", KEYS, None),
        ("x" * 5000, KEYS, None),
        ("", KEYS, None),
    ],
)
def test_hint_names_only_similar_names(word, known, suggested):
    assert _suggested(word, known) == suggested


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("lr", "optimizer.learning_rate"),
        ("LR", "optimizer.learning_rate"),
        ("train.lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("warmup", "optimizer.warmup_fraction"),
        ("bs", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("epochs", "train.epochs"),
        ("num_epochs", "train.epochs"),
        ("max_epochs", "train.epochs"),
        ("max-steps", "train.steps"),
        ("dropout", "model.dropout"),
        ("dataset", "data.name"),
        ("model", "model.name"),
        ("optimizer", "optimizer.name"),
        ("bf16", "dtype"),
        ("precision", "dtype"),
        ("patience", "eval.patience"),
        ("random_seed", "seed"),
    ],
)
def test_short_names_of_keys(word, suggested):
    assert _suggested(word, KEYS)[0] == suggested


def test_short_names_of_names_and_in_a_section():
    assert _suggested("adam", ["adamw", "sgd"]) == ["adamw"]
    assert _suggested("cross_entropy", ["classification", "regression"]) == ["classification"]
    assert _suggested("mse", ["classification", "regression"]) == ["regression"]
    assert _suggested("lr", ["learning_rate", "momentum"]) == ["learning_rate"]
    assert _suggested("lr", ["a", "b"]) is None


def test_alias_excludes_unlikely_names():
    assert _suggested("bs", KEYS) == ["train.batch_size", "train.batch_rows"]
    assert _suggested("bs", KEYS, unlikely=("train.batch_rows",)) == ["train.batch_size"]


def test_dotted_name_may_be_a_single_name():
    assert _suggested("other.py", ["on.py", "bert_sst2.py"], whole=True) is None
    assert _suggested("bert_sst.py", ["on.py", "bert_sst2.py"], whole=True) == ["bert_sst2.py"]


def test_all_names_are_listed_if_none_is_similar():
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    many = nearest("zzz", [f"{letter}1" for letter in "abcdefghijklmno"])
    assert "a1" in many
    assert "l1" in many
    assert "m1" not in many
    assert "3 more" in many
    own = nearest("task.zzz", KEYS)
    assert "task.label_smoothing" in own
    assert "train" not in own
    assert lookup({"a": 1}, "a", "letter") == 1


VARIANTS: dict[str, Any] = {**TABLE, "large": functools.partial(_make, size=9)}


def test_arguments_bound_by_a_variant_are_not_keys():
    assert build(VARIANTS, {"name": "large", "scale": 2.0}, "thing") == (9, 2.0, None)
    assert set(config_keys(VARIANTS["large"])) == {"scale", "split"}
    with pytest.raises(UserError, match=r"thing\.size is not a key of 'large'"):
        build(VARIANTS, {"name": "large", "size": 1}, "thing")


def test_expanded_variant_builds_the_same_object():
    section = {"name": "large", "scale": 2.0}
    assert expand_variant(VARIANTS, section) == {"name": "make", "size": 9, "scale": 2.0}
    assert build(VARIANTS, expand_variant(VARIANTS, section), "thing") == build(VARIANTS, section, "thing")
    assert expand_variant(VARIANTS, {"name": "make", "size": 1}) == {"name": "make", "size": 1}
