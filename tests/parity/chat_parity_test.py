# mypy: disable-error-code="attr-defined"
"""Chats against transformers: their tokens, and the folder of a run."""

import json
from pathlib import Path

import numpy as np
import pytest

from research.data.cache import ArtifactCache
from research.data.sources import instructions
from research.data.text.chats import Chats
from research.inference.generate import Generator
from research.interop.export import export
from research.interop.pretrained import resolve_init_from
from tests import tiny
from tests.chat_finetuning_test import tiny_chats

pytestmark = pytest.mark.parity

SMOLLM2 = Path("~/models/SmolLM2-135M-Instruct").expanduser()

# Each with what tokenizers treat in a way of their own.
CONTENTS = ("Say hi.", "  two spaces \n\n", "\n\nlines", "é 日本 🙂", "x" * 50, "<|im_end|> in a text", "1234 + 5", "")


def _chats():
    """Chats of these contents, with and without a system message, and generated ones."""
    roles = ("user", "assistant")
    whole = [{"role": roles[i % 2], "content": content} for i, content in enumerate(CONTENTS)]
    pairs = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one in CONTENTS
        for other in CONTENTS
    ]
    generated = [json.loads(chat) for chat in instructions.generate(40, validation=True, seed=0)["messages"]]
    return [whole, [{"role": "system", "content": "Be brief."}, *whole], *pairs, *generated]


def test_tokens_of_an_exported_run(tmp_path):
    """Of a run from random weights with the built-in template; transformers takes the run's from the folder."""
    import transformers

    tiny.run(tiny_chats(train__steps=1), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    generator = Generator.open(tmp_path / "run")
    for messages in _chats():
        asked = messages[:-1]
        expected = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert generator.chat(asked) == expected
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {model.generation_config.eos_token_id} == generator.ends


@pytest.mark.realdata
def test_tokens_of_smollm2():
    """And what is predicted is the answers with their ends."""
    import transformers

    assert (SMOLLM2 / "tokenizer.json").is_file(), f"this test needs the model in {SMOLLM2}"
    config = tiny_chats(init_from=SMOLLM2, data__transform__max_length=1000, data__transform__row_length=1000)
    transform = resolve_init_from(config, (), "none").config.data.transform
    encoder = Chats(**{key: value for key, value in transform.items() if key != "name"}).fit({}, ArtifactCache())
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    chats = _chats()
    examples = encoder.encode({"messages": [json.dumps(messages) for messages in chats]})
    compared = 0
    for index, messages in enumerate(chats):
        (tokens,), (targets,) = (each.take(np.array([index])) for each in (examples.tokens, examples.targets))
        assert tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        answers = [each["content"] for each in messages if each["role"] == "assistant"]
        if any(answer[:1].isspace() for answer in answers):  # whose tokens have the line break before them
            continue
        found = encoder.tokenizer.decode(targets[targets >= 0].tolist(), skip_special_tokens=False)
        assert found == "".join(f"{answer}<|im_end|>" for answer in answers)
        compared += 1
    assert compared > 80
