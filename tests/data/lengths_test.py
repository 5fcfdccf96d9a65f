"""What follows from data.transform.max_length."""

import json

import pytest

from research.config import load
from research.data.text.lengths import lengths_of
from research.training.loop import train_and_evaluate
from tests import tiny


@pytest.mark.parametrize(
    ("max_length", "pad_to", "expected"),
    [
        (256, (28,), (28, 56, 112, 224, 256)),
        (128, (32, 64, 112), (32, 64, 112, 128)),
        (112, (32, 64, 112), (32, 64, 112)),
        (48, (32, 64, 112), (32, 48)),
        (16, (32, 64, 112), (16,)),
        (8192, (512, 128), (128, 512, 1024, 2048, 4096, 8192)),
    ],
)
def test_row_lengths_end_at_the_longest_example(max_length, pad_to, expected):
    assert lengths_of(max_length, pad_to) == expected


@pytest.mark.parametrize(
    ("overrides", "pad_to", "row_length", "max_positions"),
    [
        (["max_length=256"], (28, 56, 112, 224, 256), 256, 256),
        (["max_length=16"], (16,), 72, 32),
        (["max_length=40", "row_length=512"], (28, 40), 512, 40),
        (["max_length=40", "pad_to=(64,)"], (64,), 72, 40),
        (["pad_to=(64,)"], (64,), 72, 32),
    ],
)
def test_other_keys_follow_unless_they_are_given(overrides, pad_to, row_length, max_positions):
    loaded = load("configs/bert_sst2.py:embedded", [f"data.transform.{text}" for text in overrides])
    transform = loaded.config.data.transform
    assert (transform.pad_to, transform.row_length, loaded.config.model.max_positions) == (
        pad_to,
        row_length,
        max_positions,
    )
    assert loaded.given == {f"data.transform.{text.partition('=')[0]}" for text in overrides}


def test_bags_follow_too():
    transform = load("configs/logistic_sst2.py:sst2", ["data.transform.max_length=2048"]).config.data.transform
    assert (transform.pad_to[-1], transform.row_length) == (2048, 2048)


def test_positions_of_pretrained_weights_do_not_follow():
    assert load("configs/bert_sst2.py:base", ["data.transform.max_length=600"]).config.model.max_positions == 512


@pytest.mark.extended
@pytest.mark.parametrize(("max_length", "batch"), [(12, "train.batch_rows=4"), (90, "train.batch_size=8")])
def test_run_with_another_length_records_what_followed(batch, max_length, tmp_path, monkeypatch):
    tiny.few_sentences(monkeypatch, train=60, validation=20)
    overrides = [f"data.transform.max_length={max_length}", batch, "train.steps=2", "eval.every_steps=0"]
    config = load("configs/bert_sst2.py:embedded", overrides).config
    assert train_and_evaluate(config, tmp_path, show=False)["status"] == "completed"
    saved = json.loads((tmp_path / "config.json").read_text())["data"]["transform"]
    assert (saved["pad_to"][-1], saved["row_length"]) == (max_length, max(72, max_length))
