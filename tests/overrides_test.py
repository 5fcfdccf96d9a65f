import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.base.errors import UserError
from research.config import load
from research.overrides import declared, parse

DIGITS = "configs/logistic_digits.py:embedded"
BERT = "configs/bert_sst2.py:embedded"
CANCER = "configs/logistic_breast_cancer.py:embedded"

CONFIG = ConfigDict(
    {
        "flag": False,
        "count": 3,
        "rate": 0.5,
        "text": "a",
        "sizes": (1, 2),
        "means": (0.5,),
        "names": ("a",),
        "rules": (),
        "section": {"limit": placeholder(float), "path": placeholder(str), "any": placeholder(object)},
    }
)
CONFIG.section.limit = 1.0  # as a preset does


def _parsed(key, text):
    return parse(key, text, declared(CONFIG)[key])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("flag", "True", True),
        ("flag", "0", False),
        ("count", "-7", -7),
        ("rate", "1", 1.0),
        ("rate", "1e-3", 1e-3),
        ("text", "", ""),
        ("text", "1", "1"),
        ("sizes", "(3, 4)", (3, 4)),
        ("sizes", "[3, 4]", (3, 4)),
        ("sizes", "3,4", (3, 4)),
        ("sizes", "3", (3,)),
        ("sizes", "()", ()),
        ("means", "(1, 0.5)", (1.0, 0.5)),
        ("names", "b,c", ("b", "c")),
        ("names", "('b', 'c')", ("b", "c")),
        ("rules", "(('a', (None, 'b')),)", (("a", (None, "b")),)),
        ("rules", "age=number,a b=text", ("age=number", "a b=text")),
        ("section.limit", "None", None),
        ("section.path", "None", None),
        ("section.any", "None", None),
        ("section.any", "[1, 2.5]", (1, 2.5)),
        ("section.any", "balanced", "balanced"),
        ("section.any", "{0: 1}", {0: 1}),
    ],
)
def test_values_have_the_type_of_their_key(key, text, value):
    assert repr(_parsed(key, text)) == repr(value)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("flag", "yes", "true or false"),
        ("flag", "", "true or false"),
        ("count", "1.0", "an integer"),
        ("count", "", "an integer"),
        ("count", "9" * 5000, "an integer"),
        ("rate", "fast", "a number"),
        ("rate", "", "a number"),
        ("sizes", "28.5", "integers"),
        ("sizes", "(True,)", "integers"),
        ("sizes", "((1,),)", "integers"),
        ("sizes", "(1, None)", "integers"),
        ("sizes", "", "integers"),
        ("means", "", "numbers"),
        ("means", "('a',)", "numbers"),
        ("names", "", "names"),
        ("names", "a,,b", "names"),
        ("names", "(1,)", "names"),
        ("rules", "linear", "a tuple"),
        ("rules", "{1, 2}", "a tuple"),
        ("rules", "(" * 300, "a tuple"),
        ("section.limit", "", "a number, or None"),
        ("section.path", "", "text, or None"),
        ("section.any", "{1, 2}", "or None"),
        ("section.any", "b'x'", "or None"),
    ],
)
def test_invalid_value_names_key_value_and_type(key, text, wanted):
    with pytest.raises(UserError) as caught:
        _parsed(key, text)
    message = str(caught.value)
    assert key in message
    assert repr(text) in message
    assert wanted in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("key", ["flag", "count", "rate", "text", "sizes", "names", "rules"])
def test_only_optional_keys_may_be_none(key):
    with pytest.raises(UserError, match=key):
        _parsed(key, "None")


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (BERT, "optimizer.clip_norm"),
        ("configs/bert_sst2.py:base", "init_from"),
        ("configs/resnet_imagenet.py:resnet50", "data.transform.resize"),
        ("configs/resnet_imagenet.py:resnet50", "data.transform.augment.random_resized_crop"),
        ("configs/bert_glue.py:stsb", "task.hidden_label"),
        (CANCER, "optimizer.C"),
    ],
)
def test_none_removes_a_value_of_the_preset(spec, key):
    loaded = load(spec, [f"{key}=None"])
    value = loaded.config
    for part in key.split("."):
        value = value[part]
    assert value is None
    assert loaded.given == {key}


@pytest.mark.parametrize("key", ["optimizer.name", "data.transform.label", "optimizer.weight_decay", "eval.splits"])
def test_none_is_not_a_string(key):
    with pytest.raises(UserError, match=key):
        load(DIGITS, [f"{key}=None"])


def test_one_of_a_pair_may_be_none_if_the_other_is_given():
    config = load(DIGITS, ["train.epochs=None", "train.steps=3"]).config
    assert (config.train.epochs, config.train.steps) == (None, 3)
    with pytest.raises(UserError, match=r"train.steps"):
        load(DIGITS, ["train.epochs=None"])


def test_removing_a_penalty_keeps_another():
    """optimizer.C=None removes C, not the weight decay."""
    assert load(DIGITS, ["optimizer.C=None"]).config.optimizer.weight_decay == 0.1


def test_last_of_several_values_applies():
    config = load(BERT, ["data.transform.pad_to=(40,)", "data.transform.pad_to=(50, 60)"]).config
    assert config.data.transform.pad_to == (50, 60)


def test_class_weights_as_in_scikit_learn():
    assert load(CANCER, ["task.class_weight={0: 1, 1: 2}"]).config.task.class_weight == (1, 2)
    assert load(CANCER, ["task.class_weight={1: 2}"]).config.task.class_weight == (1.0, 2)
    for weights in ("{2: 1}", "{'a': 1}", "{True: 1}", "{0: None}", "{0: 'a'}"):
        with pytest.raises(UserError, match=r"task.class_weight"):
            load(CANCER, [f"task.class_weight={weights}"])
