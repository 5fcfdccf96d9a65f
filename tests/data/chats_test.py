# mypy: disable-error-code="attr-defined, misc"
"""Chats as tokens: what is predicted, how they share rows, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.encoder import NoSplits
from research.data.pipeline import Rows as ProcessRows
from research.data.pipeline import Stream, evaluation_batches
from research.data.text.chat_template import CHATML, ChatTemplate
from research.data.text.chats import Chats, written
from tests.data.batches import Unread
from tests.encoded import chat
from tests.interop import tiny_decoder

OPTIONS: dict[str, Any] = {
    "inputs": ("messages",),
    "tokenizer": "byte",
    "vocab_size": 258,
    "chat_template": "chatml",
    "end_of_text": "<|im_end|>",
    "max_length": 300,
    "row_length": 300,
}
START, END = 256, 257  # the special tokens
CONTENTS = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENTS}),
    min_size=1,
    max_size=5,
).filter(lambda messages: any(each["role"] == "assistant" for each in messages))


def turns(*contents):
    """A chat that a user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def _columns(chats):
    return {"messages": [json.dumps(messages) for messages in chats]}


def _encoded(chats, **options):
    """The examples of a split of chats."""
    return chat({"train": _columns(chats)}, ArtifactCache(), **{**OPTIONS, **options})["train"]


def _of(examples, index):
    """The tokens and the targets of a chat."""
    return tuple(ragged.take(np.array([index]))[0] for ragged in (examples.tokens, examples.targets))


@settings(max_examples=100, deadline=None)
@given(st.lists(CHATS, min_size=1, max_size=6))
def test_targets_are_the_answers_and_their_ends(chats):
    examples = _encoded(chats)
    assert len(examples) == len(chats)
    for index, messages in enumerate(chats):
        tokens, targets = _of(examples, index)
        whole: list[int] = []
        for each in messages:
            whole += [START, *f"{each['role']}\n{each['content']}".encode(), END, *b"\n"]
        assert tokens.tolist() == whole
        answers = [each["content"] for each in messages if each["role"] == "assistant"]
        assert targets[targets >= 0].tolist() == [token for answer in answers for token in (*answer.encode(), END)]
        # Each is predicted from the token before it.
        has_target = np.flatnonzero(targets >= 0)
        assert tokens[has_target + 1].tolist() == targets[has_target].tolist()
        assert examples.labels[index] == len(has_target)


@settings(max_examples=50, deadline=None)
@given(st.lists(CHATS, min_size=1, max_size=12), st.integers(1, 5))
def test_every_chat_is_in_one_row_once_and_alone_in_its_segment(chats, batch_rows):
    examples = _encoded(chats)
    seen = []
    for members, batch in evaluation_batches(Stream.packed(examples), batch_rows=batch_rows, rows=ProcessRows()):
        for name in ("tokens", "segments", "positions", "targets", "target_bytes"):
            assert (batch[name].shape, batch[name].dtype) == ((batch_rows, 300), np.int32)
        for row, slot in np.argwhere(members >= 0):
            inside = batch["segments"][row] == slot + 1
            tokens, targets = _of(examples, members[row, slot])
            assert batch["tokens"][row][inside].tolist() == tokens.tolist()
            assert batch["targets"][row][inside].tolist() == targets.tolist()
            assert batch["positions"][row][inside].tolist() == list(range(len(tokens)))
            assert np.flatnonzero(inside)[0] == batch["starts"][row, slot]
            seen.append(members[row, slot])
        assert (batch["targets"][batch["segments"] == 0] == -1).all()
        one_byte = (batch["targets"] >= 0) & (batch["targets"] < START)
        assert (batch["target_bytes"] == one_byte).all()
    assert sorted(seen) == list(range(len(chats)))


# As Llama 2's: with the beginning of texts, and without lines or roles.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[{{ message['content'] | trim }}]"
    "{% else %} {{ message['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)


def _folder(path, template, **special):
    """The options for a folder with this template."""
    path.mkdir(exist_ok=True)
    tiny_decoder.tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **special}))
    return {"tokenizer": str(path / "tokenizer.json"), "chat_template": str(path), "end_of_text": tiny_decoder.END}


def test_a_folders_template_and_its_special_tokens(tmp_path):
    own = _folder(tmp_path, INST, bos_token=tiny_decoder.END, eos_token={"content": tiny_decoder.END})
    tokens, targets = _of(_encoded([turns("a", "bc", "d", "e")], **own), 0)
    decode = tiny_decoder.tokenizer().decode
    end = tiny_decoder.END
    assert decode(tokens.tolist(), skip_special_tokens=False) == f"{end}[a] bc {end}[d] e {end}"
    assert decode(targets[targets >= 0].tolist(), skip_special_tokens=False) == f" bc {end} e {end}"


@pytest.mark.parametrize("given", ["", tiny_decoder.END])
def test_the_templates_own_end_ends_a_text_too(given, tmp_path):
    own = {**_folder(tmp_path, INST, eos_token=tiny_decoder.END), "end_of_text": given}
    encoder = Chats(**{**OPTIONS, **own}).fit({}, ArtifactCache())
    assert encoder.ends == {tiny_decoder.tokenizer().token_to_id(tiny_decoder.END)}


@pytest.mark.parametrize(
    "template",
    [
        # Only the last message has the mark.
        "{% for m in messages %}{{ '|' if loop.last }}{{ m.content }}{% endfor %}",
        # The prompt for an answer is not what stands before it.
        "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}{{ '>' if add_generation_prompt }}",
        # Answers are left out.
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        # Answers before the last one are left out.
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }}{% endfor %}",
    ],
)
def test_templates_whose_answers_cannot_be_found_are_refused(template, tmp_path):
    message = "example 0 of split 'train': the chat template does not write message 1 as a continuation"
    with pytest.raises(UserError, match=message):
        _encoded([turns("a", "b", "c", "d")], **_folder(tmp_path, template))


def test_a_template_may_refuse_a_chat(tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}" + INST
    good = turns("a", "b")
    with pytest.raises(UserError, match=r"example 1 of split 'train': the chat template can't .*no system messages"):
        _encoded([good, [{"role": "system", "content": "s"}, *good]], **_folder(tmp_path, template))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "there is no value"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("{}", "is not a list of messages"),
        ("[]", "is not a list of messages"),
        ('["hi"]', "message 0 is not an object with a role and a content"),
        ('[{"role": "user"}]', "message 0 is not an object with a role and a content"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]', "message 1 is not an object"),
        ('[{"role": "bot", "content": "a"}]', "message 0 has the role 'bot'; known: system, user, assistant"),
        ('[{"role": "user", "content": "a"}]', "no message has the role 'assistant'"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_row(value, text):
    columns = {"messages": [json.dumps(turns("a", "b")), value]}
    with pytest.raises(UserError, match=f"example 1 of split 'train': 'messages': .*{text}") as error:
        chat({"train": columns}, ArtifactCache(), **OPTIONS)["train"]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_length": 301}, "max_length is 301; it must be at most row_length, 300"),
        ({"inputs": ("a", "b", "c")}, "must name one column of chats, or two"),
        ({"chat_template": "no such folder"}, "chat_template='no such folder' is not a folder with a chat template"),
        ({"tokenizer": "own.json", "end_of_text": "<end>"}, "has no token '<end>'"),
    ],
)
def test_invalid_options_are_one_line_errors(change, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_decoder.tokenizer().save("own.json")
    with pytest.raises(UserError, match=text):
        _encoded([turns("a", "b")], **change)


def test_prompts_with_answers():
    columns = {"prompt": ["Hi", b"Bye"], "completion": ["Hello", "So long"]}
    found = chat({"train": columns}, ArtifactCache(), **{**OPTIONS, "inputs": ("prompt", "completion")})["train"]
    expected = _encoded([turns("Hi", "Hello"), turns("Bye", "So long")])
    assert found.tokens.values.tolist() == expected.tokens.values.tolist()
    assert found.targets.values.tolist() == expected.targets.values.tolist()


def test_long_chats_are_truncated_and_counted():
    short, long = turns("a", "b"), turns("a" * 30, "b" * 300)
    examples = _encoded([short, long, short, short], max_length=100)
    assert Stream.packed(examples).cut() == (0.25, int(examples.full_lengths[1]))
    tokens, targets = _of(examples, 1)
    assert len(tokens) == 100
    # What is left of it is learned, to the end.
    assert set(targets[targets >= 0].tolist()) == {ord("b")}
    assert targets[-1] == ord("b")


def test_encoder_is_loaded_from_assets_alone(tmp_path):
    own = _folder(tmp_path / "F", INST, eos_token=tiny_decoder.END)
    columns = _columns([turns("What is dull?", "A film")])
    for name, change in {"bpe": {"tokenizer": "bpe", "vocab_size": 300}, "folder": own}.items():
        options = Chats(**{**OPTIONS, **change})
        encoder = options.fit({"train": columns}, ArtifactCache(tmp_path / name))
        (tmp_path / "F/tokenizer_config.json").write_text("gone")
        again = options.fit(NoSplits(tmp_path / name), ArtifactCache(tmp_path / name))
        assert again == encoder
        assert again.signature.limits == {"max_length": 300, "unit": "tokens"}
        one, other = (each.encode(columns).tokens.values for each in (encoder, again))
        np.testing.assert_array_equal(one, other)
        # The assets are to a generator what a folder of transformers is.
        assert ChatTemplate.of(tmp_path / name).prompt(turns("x")) == encoder.template.prompt(turns("x"))
        _folder(tmp_path / "F", INST, eos_token=tiny_decoder.END)


def test_a_learned_tokenizer_merges_what_the_messages_have():
    examples = _encoded([turns("superb superb superb", "dull dull dull dull")] * 3, tokenizer="bpe", vocab_size=290)
    assert examples.lengths[0] < 30


def test_second_time_they_come_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    kept = ArtifactCache(source="these chats")
    first = chat({"train": _columns([turns("a", "b")])}, kept, **OPTIONS)["train"]
    again = chat({"train": Unread()}, kept, **{**OPTIONS, "row_length": 400})["train"]
    np.testing.assert_array_equal(again.targets.values, first.targets.values)
    for change in ({"max_length": 9}, {"inputs": ("other",)}, {"end_of_text": ""}):
        with pytest.raises(AssertionError, match="were read"):
            chat({"train": Unread()}, kept, **{**OPTIONS, **change})["train"]


def test_spans_are_what_the_template_adds_to_the_prompt():
    template = ChatTemplate(CHATML, {"eos_token": "<|im_end|>"})
    text, spans = written(template, [*turns("a", "b", "c", ""), {"role": "user", "content": "later"}])
    assert [text[start:stop] for start, stop in spans] == ["b<|im_end|>\n", "<|im_end|>\n"]
