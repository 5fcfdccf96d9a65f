# mypy: disable-error-code="arg-type"
"""Texts of a folder and of a run, their ends, chats, and the command."""

import dataclasses

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from research.base.errors import UserError
from research.core.sampling import Sampling
from research.data.text import chat_template
from research.data.text.chat_template import ChatTemplate
from research.generate import main
from research.inference.continuations import Token
from research.inference.generate import Request
from research.inference.writing import LENGTH, STOP, Writing
from tests.interop import tiny_decoder


def _bytes():
    """A tokenizer with a token per byte, whose id is the byte, and <end>, 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


BYTES = _bytes()
END = BYTES.token_to_id("<end>")


def _write(text, *, stop=(), max_tokens=10_000, end=True):
    """The pieces of a text whose tokens come one by one."""
    writing = Writing(BYTES, ends=frozenset({END}), stop=stop, max_tokens=max_tokens)
    pieces = []
    for token in [*BYTES.encode(text).ids, *[END] * end]:
        pieces.append(writing.add(Token(token, -1.0)))
        if pieces[-1].finish:
            break
    return pieces


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_are_the_text(text):
    """Characters of several tokens too."""
    pieces = _write(text)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].finish == STOP
    assert pieces[-1].token is None
    assert all("\ufffd" not in piece.text for piece in pieces) or "\ufffd" in text


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_first_stop_string(text, stop):
    places = [place for place in map(text.find, stop) if place >= 0]
    pieces = _write(text, stop=stop)
    found = "".join(piece.text for piece in pieces)
    # Of stop strings that end at different tokens, the one that is complete first counts.
    ends = [text.find(each) + len(each) for each in stop if each in text]
    expected = text if not places else text[: min(text.find(each) for each in stop if text[: min(ends)].endswith(each))]
    assert found == expected


def test_what_is_held_back_comes_at_the_end():
    assert [piece.text for piece in _write("abX", stop=["abc"])] == ["", "", "abX", ""]
    assert [piece.text for piece in _write("ab", stop=["abc"])] == ["", "", "ab"]


def test_the_limit_of_tokens():
    pieces = _write("abcdef", max_tokens=3)
    assert [piece.text for piece in pieces] == ["a", "b", "c"]
    assert pieces[-1].finish == LENGTH
    cut = _write("é", max_tokens=1)  # the first of two bytes
    assert cut[0].text == "\ufffd"


@pytest.mark.extended
def test_a_text_is_the_same_alone_and_with_others(generator):
    prompts = ["The sea", "A", "It was a long night, and"]
    requests = [Request(generator.encode(p), Sampling(seed=i), max_tokens=12) for i, p in enumerate(prompts)]

    def texts(requests, **options):
        found = [""] * len(requests)
        for index, piece in generator.write(requests, **options):
            found[index] += piece.text
        return found

    together = texts(requests, rows=2, length=40)
    assert together == [texts([request], length=40)[0] for request in requests]
    assert len(set(together)) == 3


def test_a_text_ends_where_the_model_has_no_positions_left(generator):
    request = Request(generator.encode("x" * 30), Sampling(temperature=0), max_tokens=100)
    pieces = [piece for _, piece in generator.write([request])]
    assert len(pieces) == 2  # of 32 positions
    assert pieces[-1].finish == LENGTH


@pytest.mark.parametrize("prompt", [[], [1] * 32, [10**6]])
def test_prompts_that_cannot_be_continued(generator, prompt):
    with pytest.raises(UserError):
        list(generator.write([Request(prompt)]))


def test_a_chat_is_written_by_the_template(generator):
    tokens = generator.chat([{"role": "user", "content": "hello"}])
    end = generator.tokenizer.token_to_id(tiny_decoder.END)
    assert generator.tokenizer.decode(tokens, skip_special_tokens=False) == (
        f"<user>hello{tiny_decoder.END}<assistant>"
    )
    assert end in tokens
    assert end in generator.ends


# What could make a text of gigabytes in one call is refused for small texts too.
REFUSED = {
    "classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "range": "{% for i in range(10000000) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n - 1) if n else '' }}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for i in range(99999) %}{{ 'x' ~ 'y' ~ i ~ 'zzzzzzzz' }}{% endfor %}",
    "repeated": "{{ 'x' * 3 }}",
    "power": "{{ 2 ** 2 }}",
    "padded": "{{ '%9d' % 1 }}",
    "method": "{{ 'x'.ljust(9) }}",
    "filter": "{{ 'x' | center(9) }}",
    "raised": "{{ raise_exception('no') }}",
    "arithmetic": "{{ 1 / 0 }}",
    "missing": "{{ messages[7].content }}",
    "syntax": "{% if %}",
    "change": "{% set _ = messages.append(1) %}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_templates_are_refused(monkeypatch, name):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(UserError, match="chat template"):
        ChatTemplate(REFUSED[name], {}).prompt([{"role": "user", "content": "x"}])


_DOUBLED = "{{% set n = namespace(x={}) %}}{{% for i in range(24) %}}{{% set n.x = {} %}}{{% endfor %}}"
PUT_TOGETHER = {
    "doubled": _DOUBLED.format("'x'", "n.x ~ n.x"),
    "added": _DOUBLED.format("'x'", "n.x + n.x"),
    "lists": _DOUBLED.format("[1]", "n.x + n.x"),
    "blocks": _DOUBLED.format("'x'", "x").replace("{% set n.x", "{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x"),
    "joined": "{% set x = range(9999) | join('xx') %}{% set y = range(999) | join(x) %}",
    "kept": (
        "{% set n = namespace(l=[]) %}{% set x = range(99999) | join %}"
        "{% for i in range(99) %}{% set n.l = n.l + [x ~ i] %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", PUT_TOGETHER)
def test_what_a_template_puts_together_is_limited(name):
    with pytest.raises(UserError, match="puts together"):
        ChatTemplate(PUT_TOGETHER[name], {}).prompt([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1] | tojson(indent=100) }}",
        "{{ [1] | batch(3, 0) | list }}",
        "{{ 1 | round(9, 'ceil') }}",
        "{{ '' | indent }}",
    ],
)
def test_filters_that_multiply_are_refused_when_they_are_used(source):
    assert ChatTemplate("{% if messages %}" + source + "{% endif %}", {}).prompt([]) == ""
    with pytest.raises(UserError, match=r"not supported|has an indent of"):
        ChatTemplate(source, {}).prompt([])


def test_templates_do_what_others_need():
    source = (
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t ~ m.role + ':' + m.content %}{% endfor %}"
        "{{ n.t }} {{ messages | map(attribute='role') | join(', ') }} {{ {'é': [1]} | tojson(indent=1) }} {{ 1 + 1 }}"
        "{% if false %}{{ 'x' | replace('x', 'y') }}{% endif %}"
    )
    found = ChatTemplate(source, {}).prompt([{"role": "a", "content": "b"}, {"role": "c", "content": "d"}])
    assert found == 'a:bc:d a, c {\n "é": [\n  1\n ]\n} 2'


def test_what_is_not_to_be_seen_is_empty():
    assert ChatTemplate("{{ ''.__class__ }}{{ messages.__init__ }}", {}).prompt([]) == ""


def test_a_model_without_a_template_does_not_chat(generator):
    with pytest.raises(UserError, match="no chat template"):
        dataclasses.replace(generator, template=None).chat([{"role": "user", "content": "x"}])


def test_the_command_writes_the_text(decoder_folder, generator, capsys):
    assert main([f"--weights={decoder_folder}", "--prompt=The sea", "--max_tokens=5", "--temperature=0"]) == 0
    (request,) = [Request(generator.encode("The sea"), Sampling(temperature=0), max_tokens=5)]
    expected = "".join(piece.text for _, piece in generator.write([request]))
    assert capsys.readouterr().out == f"The sea{expected}\n"
    assert main([f"--weights={decoder_folder}", "--prompt=A", "--prompt=B", "--max_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("A")


def test_the_command_chats(decoder_folder, capsys):
    assert main([f"--weights={decoder_folder}", "--chat", "--prompt=hello", "--max_tokens=4"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [[], ["--prompt=x", "--max_tokens=0"], ["--prompt=x", "--top_p=0"], ["--prompt=x", "--compute=int4"]]
)
def test_wrong_flags(decoder_folder, flags):
    with pytest.raises(UserError):
        main([f"--weights={decoder_folder}", *flags])
