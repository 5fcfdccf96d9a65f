import functools

import pytest

from research.base.errors import UserError
from research.base.registry import build, config_keys, expand_variant, lookup, nearest


def _make(size, *, scale=1.0, split=None):
    return (size, scale, split)


TABLE = {"make": _make}


def test_a_section_is_the_call():
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
        ),  # what the code gives, no config may
    ],
)
def test_a_section_that_does_not_fit_is_one_line(section, message):
    with pytest.raises(UserError, match=message):
        build(TABLE, section, "thing", split="train")


def test_with_nothing_near_all_are_named():
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert lookup({"a": 1}, "a", "letter") == 1


VARIANTS = {**TABLE, "large": functools.partial(_make, size=9)}


def test_what_a_variant_binds_is_no_key():
    assert build(VARIANTS, {"name": "large", "scale": 2.0}, "thing") == (9, 2.0, None)
    assert set(config_keys(VARIANTS["large"])) == {"scale", "split"}
    with pytest.raises(UserError, match=r"thing\.size is not a key of 'large'"):
        build(VARIANTS, {"name": "large", "size": 1}, "thing")


def test_a_variant_spelt_out_is_the_same_thing():
    section = {"name": "large", "scale": 2.0}
    assert expand_variant(VARIANTS, section) == {"name": "make", "size": 9, "scale": 2.0}
    assert build(VARIANTS, expand_variant(VARIANTS, section), "thing") == build(VARIANTS, section, "thing")
    assert expand_variant(VARIANTS, {"name": "make", "size": 1}) == {"name": "make", "size": 1}
