import numpy as np
import pytest
import tensorflow_datasets as tfds

from research.base.errors import UserError
from research.data.splits import BySplit, members, whole


@pytest.mark.parametrize("size", [7, 200, 872, 67_349])
@pytest.mark.parametrize(
    "bounds", [":5%", "5%:", "-10%:", ":-10%", "33%:66.5%", "5:", ":5", "-5:-1", "1:5", "0%:100%", "99.4%:", "0:1_0"]
)
def test_part_matches_tfds(bounds, size):
    split = f"test[{bounds}]"
    instruction = tfds.core.splits._str_to_relative_instruction(split)
    info = tfds.core.SplitInfo(name="test", shard_lengths=[size], num_bytes=0, filename_template=None)
    try:
        (part,) = instruction.to_absolute({"test": info})
        expected = np.arange(size)[part.from_ : part.to]
    except ValueError:  # of seven examples there are no ten
        expected = np.arange(0)
    if len(expected):
        np.testing.assert_array_equal(members(split, size), expected)
    else:
        with pytest.raises(UserError, match=r"has no examples|reaches beyond"):
            members(split, size)
    assert whole(split) == "test"


def test_whole_split_has_no_part():
    assert members("test", 5) is None
    assert whole("test") == "test"


@pytest.mark.parametrize(
    "split",
    [
        "t[",
        "t]",
        "t[]",
        "t[:]",
        "t[3]",
        "t[::2]",
        "t[1_:5]",
        "t[1__0:]",
        "t[a:b]",
        "t[:5%",
        "t[:5%]x",
        "t[:1shard]",
        "[:5]",
        "t[10%:9]",
        "t[1.5:]",
    ],
)
def test_invalid_notation_is_a_one_line_error(split):
    with pytest.raises(UserError, match="is not valid; write NAME"):
        members(split, 100)


@pytest.mark.parametrize("split", ["t[:101]", "t[-101:]", "t[101:]", "t[:101%]", "t[-200%:]"])
def test_part_beyond_the_split_is_a_one_line_error(split):
    with pytest.raises(UserError, match="reaches beyond the 100 examples of 't'"):
        members(split, 100)


@pytest.mark.parametrize("split", ["t[5:5]", "t[9:3]", "t[:0.1%]", "t[100:]"])
def test_part_without_examples_is_a_one_line_error(split):
    with pytest.raises(UserError, match="has no examples"):
        members(split, 100)


def test_split_is_computed_once_and_only_on_access():
    made = []
    values = BySplit({"train": 1, "test": 2}, lambda split: made.append(split) or split.upper())
    assert (list(values), len(values), made) == (["train", "test"], 2, [])
    assert [values["test"], values["test"]] == ["TEST", "TEST"]
    assert made == ["test"]
    assert dict(values) == {"train": "TRAIN", "test": "TEST"}
