"""A writer: the order of texts, what one may disturb, and models that fail."""

import logging

import jax
import pytest

from research.base.errors import UserError
from research.core.sampling import Sampling
from research.inference import generate
from research.inference.generate import Request
from research.serve.errors import Kind, ServiceError
from research.serve.observer import Observer
from research.serve.writer import Writer
from tests.serve.conftest import TEXT_LIMITS, eventually

GREEDY = Sampling(temperature=0)


class _Ends(Observer):
    """Keeps why texts ended."""

    def __init__(self):
        self.reasons = []

    def ended(self, model, reason):
        self.reasons.append(reason)


class _Asked:
    """What came of the texts of a request."""

    def __init__(self, writer, prompts, tokens=5, client=""):
        self.pieces = [[] for _ in prompts]
        self.done = []
        requests = [Request(writer.generator.encode(prompt), GREEDY, tokens) for prompt in prompts]
        self.tickets = writer.ask(requests, self._deliver, client=client)

    def _deliver(self, index, piece):
        self.pieces[index].append(piece)
        if isinstance(piece, Exception) or piece.finish:
            self.done.append(index)

    @property
    def texts(self):
        eventually(lambda: len(self.done) == len(self.pieces), 30)
        return ["".join(piece.text for piece in pieces) for pieces in self.pieces]


@pytest.fixture
def writer(generator):
    made = Writer("llama", generator, TEXT_LIMITS)
    made.observer = _Ends()
    yield made
    made.close()
    assert not made._thread.is_alive() or made.join(10)


@pytest.fixture
def expected(generator):
    """A prompt -> its text."""

    def write(prompt, tokens=5):
        request = Request(generator.encode(prompt), GREEDY, tokens)
        return "".join(piece.text for _, piece in generator.write([request], length=TEXT_LIMITS.text_tokens))

    return write


def test_a_closed_writer_writes_what_was_asked_for(writer, expected):
    asked = _Asked(writer, ["A"])
    writer.start()
    writer.close()
    assert asked.texts == [expected("A")]
    assert writer.join(10)
    with pytest.raises(ServiceError) as error:
        _Asked(writer, ["A"])
    assert error.value.kind is Kind.UNAVAILABLE


def test_a_request_is_taken_whole_or_not_at_all(writer):
    _Asked(writer, ["A"])
    with pytest.raises(ServiceError) as error:
        _Asked(writer, ["B"] * 4)
    assert error.value.kind is Kind.OVERLOADED
    assert error.value.retry_after == 1
    assert writer.waiting == 1
    _Asked(writer, ["B"] * 3)
    assert writer.waiting == 4


def test_clients_share_the_rows(writer):
    """A client with one text need not wait for all those that another asked for before."""
    order = []
    many = _Asked(writer, ["A"] * 3, client="many")
    one = _Asked(writer, ["B"], client="one")
    begin = writer._begin
    writer._begin = lambda ticket: [order.append(ticket.client), begin(ticket)]
    writer.start()
    assert all(many.texts)
    assert all(one.texts)
    assert order == ["many", "one", "many", "many"]


def test_a_cancelled_text_leaves_its_place(writer):
    first, second = _Asked(writer, ["A"] * 4), None
    first.tickets[0].cancelled = first.tickets[3].cancelled = True
    writer.start()
    eventually(lambda: not writer.active and not writer.waiting)
    assert [len(pieces) for pieces in first.pieces] == [0, 5, 5, 0]
    assert sorted(writer.observer.reasons) == ["cancelled", "cancelled", "length", "length"]
    second = _Asked(writer, ["A"], tokens=25)
    second.tickets[0].cancelled = True
    eventually(lambda: not writer.active)
    assert len(second.pieces[0]) < 25


def test_a_model_that_fails_ends_its_texts_and_no_others(writer, expected, monkeypatch, caplog):
    """The step that fails has taken the cache that it was given to overwrite."""
    continuations = writer._continuations
    forward, failing = continuations._forward, [True]

    def fail(variables, tokens, active, cache):
        logits, cache = forward(variables, tokens, active, cache)
        if len(continuations._rows) == 2 and failing:
            failing.clear()
            raise FloatingPointError("The secret")
        return logits, cache

    monkeypatch.setattr(continuations, "_forward", fail)
    asked = _Asked(writer, ["A", "B"])
    waiting = _Asked(writer, ["C"])
    with caplog.at_level(logging.ERROR):
        writer.start()
        assert waiting.texts == [expected("C")]
    assert [type(pieces[-1]) for pieces in asked.pieces] == [FloatingPointError] * 2
    assert writer.observer.reasons == ["failed", "failed", "length"]
    assert _Asked(writer, ["A", "B"]).texts == [expected("A"), expected("B")]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "FloatingPointError" in said
    assert "secret" not in said


def test_arrays_that_a_failed_step_was_given_are_not_used_again(writer, expected, monkeypatch):
    """On an accelerator they are gone; here they are deleted by hand."""
    continuations = writer._continuations

    def fail(variables, tokens, active, cache):
        for array in jax.tree.leaves((cache, continuations._settings)):
            array.delete()
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(continuations, "_forward", fail)
        asked = _Asked(writer, ["A", "B"])
        writer.start()
        eventually(lambda: len(asked.done) == 2)
    assert _Asked(writer, ["A", "B"]).texts == [expected("A"), expected("B")]


def test_a_prompt_that_fails_to_be_read_is_dropped(writer, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer._continuations, "_read", lambda *_: 1 / 0)
        asked = _Asked(writer, ["AB"])
        writer.start()
        eventually(lambda: asked.done)
    assert isinstance(asked.pieces[0][0], ZeroDivisionError)
    assert _Asked(writer, ["AB"]).texts == [expected("AB")]


def test_a_text_that_can_not_be_decoded_fails_alone(writer, expected, monkeypatch):
    good, bad = _Asked(writer, ["A"]), _Asked(writer, ["B"])
    monkeypatch.setattr(bad.tickets[0].writing, "add", lambda token: 1 / 0)
    writer.start()
    assert good.texts == [expected("A")]
    assert isinstance(bad.pieces[0][0], ZeroDivisionError)


def test_lists_of_likely_tokens_are_compiled_once(generator, monkeypatch):
    """Not for every number of them."""
    tops, choose = set(), generate.Continuations.step.__globals__["choose_tokens"]

    def note(logits, rows, kind, top):
        tops.add(top)
        return choose(logits, rows, kind, top)

    monkeypatch.setitem(generate.Continuations.step.__globals__, "choose_tokens", note)
    for top in (0, 1, 7, 20):
        request = Request(generator.encode("A"), GREEDY, 1, top=top)
        ((_, piece),) = generator.write([request], length=32)
        assert len(piece.token.top) == top
    assert tops == {0, 20}


@pytest.mark.parametrize("prompt", [[-1], [257], [0, 10**30], [5] * 32, []])
def test_prompts_that_can_not_be_continued_are_refused(writer, prompt):
    with pytest.raises(UserError):
        writer.ask([Request(prompt)], print)
    assert not writer.waiting


def test_times_are_noted(writer):
    asked = _Asked(writer, ["A"])
    writer.start()
    assert asked.texts
    (ticket,) = asked.tickets
    assert 0 < ticket.asked < ticket.started < ticket.last < ticket.ended
