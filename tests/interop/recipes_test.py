"""The optimizer's settings of a pretrained encoder."""

import pytest

from research.config import load
from research.interop import pretrained, recipes
from tests.interop import tiny_encoder


def _optimizer(config, tmp_path, *overrides):
    """The resolved optimizer section, and the note, with an encoder of hidden size 8."""
    tiny_encoder.write(tmp_path / "F")
    loaded = load(config, [f"init_from={tmp_path / 'F'}", *overrides])
    start = pretrained.resolve_init_from(loaded.config, loaded.given, tmp_path / "W")
    return start.config.optimizer, start.note


@pytest.mark.parametrize("config", ["configs/bert_glue.py:mrpc", "configs/bert_sst2.py:base"])
@pytest.mark.parametrize(("narrow", "rate", "warmup"), [(recipes.NARROW, 1e-4, 0.06), (8, 2e-5, 0.1)])
def test_rate_and_warmup_follow_the_hidden_size(config, narrow, rate, warmup, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "NARROW", narrow)
    section, note = _optimizer(config, tmp_path)
    assert (section.learning_rate, section.warmup_fraction, section.follow_encoder) == (rate, warmup, False)
    assert ("optimizer.learning_rate=0.0001" in note) == (narrow > 8)


def test_given_keys_are_kept(tmp_path):
    section, note = _optimizer("configs/bert_glue.py:mrpc", tmp_path, "optimizer.learning_rate=3e-5")
    assert (section.learning_rate, section.warmup_fraction) == (3e-5, 0.06)
    assert "learning_rate" not in note


@pytest.mark.parametrize(
    ("config", "overrides"),
    [("configs/bert_glue.py:mrpc", ["optimizer.follow_encoder=False"]), ("configs/bert_sst2.py:embedded", [])],
)
def test_nothing_follows_unless_the_config_says_so(config, overrides, tmp_path):
    before = load(config).config.optimizer
    section, note = _optimizer(config, tmp_path, *overrides)
    assert (section.learning_rate, section.warmup_fraction) == (before.learning_rate, before.warmup_fraction)
    assert "hidden size" not in note


def test_minilm_is_a_narrow_encoder(tmp_path):
    section, _ = _optimizer("configs/bert_sst2.py:minilm", tmp_path)
    assert (section.learning_rate, section.warmup_fraction) == (1e-4, 0.06)
