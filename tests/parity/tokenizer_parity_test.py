"""Tokens, type ids and truncation against transformers' tokenizer with the same vocabulary."""

import numpy as np
import pytest

from research.data.cache import ArtifactCache
from research.data.text.wordpiece import train_wordpiece
from tests.encoded import wordpiece

pytestmark = pytest.mark.parity

WORDS = "the a dull plot cast is superb superbly not naïve übel film ! ? , don't 12,000 --- x".split()


@pytest.mark.parametrize("max_length", [5, 8, 13, 40])
@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_and_truncation_match_transformers(pairs, max_length, tmp_path, rng):
    import transformers

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(0, 20)))

    firsts, seconds = ([text() for _ in range(200)] for _ in range(2))
    vocabulary = train_wordpiece(firsts, vocab_size=60, lowercase=True)
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = theirs(
        firsts,
        seconds if pairs else None,
        truncation="longest_first",
        max_length=max_length,
        return_token_type_ids=True,
    )
    examples = wordpiece(
        {"train": {"a": firsts, "b": seconds, "label": [0] * 200}},
        ArtifactCache(),
        inputs=("a", "b") if pairs else ("a",),
        label="label",
        tokenizer=str(tmp_path / "tokenizer.json"),
        vocab_size=0,
        lowercase=False,
        max_length=max_length,
        pad_to=(max_length,),
        row_length=max_length,
    )["train"]
    batch = examples.batch(np.arange(200)[:, None])
    lengths = (batch["segments"] > 0).sum(axis=1)
    assert lengths.max() == max_length or max_length == 40
    for i, length in enumerate(lengths):
        assert batch["tokens"][i, :length].tolist() == expected["input_ids"][i]
        assert batch["type_ids"][i, :length].tolist() == expected["token_type_ids"][i]
