"""The page for people, where a decoder is chosen: texts and chats that appear token by token."""

import json
import math

import pytest

from research.core.sampling import Sampling
from research.inference.generate import Generator, Request
from research.serve.keys import Keys, new_key
from tests.interop import tiny_decoder
from tests.serve.browsing import assert_accessible, focused, opened, run_copied, tab_to
from tests.serve.conftest import TEXT_LIMITS, eventually, slowly, writing

pytestmark = pytest.mark.browser

PROMPT = "The sea"


@pytest.fixture(scope="module")
def generators(tmp_path_factory):
    """A decoder that chats, and one that only continues texts."""
    folder = tmp_path_factory.mktemp("decoders")
    tiny_decoder.write_chat(folder / "chats")
    tiny_decoder.write(folder / "continues", "gpt2")
    return {name: Generator.open(folder / name) for name in ("chats", "continues")}


@pytest.fixture(scope="module")
def served(generators, models):
    with writing(generators, models={"features": models["features"]}) as found:
        yield found


@pytest.fixture
def page(browser, served):
    with opened(browser, served[0]) as found:
        yield found


def _mode(page, name):
    return page.get_by_role("radio", name=name)


def _ask(page, text=PROMPT, *, mode="Complete", model="chats", tokens=6, seed=3, temperature="0.7"):
    """Sends a prompt or a message; the text may not be finished yet -> what was sent."""
    page.select_option("#model", model)
    _mode(page, mode).check()
    page.locator("#prompt").fill(text)
    for name, value in (("Max tokens", tokens), ("Seed", seed), ("Temperature", temperature)):
        page.get_by_label(name).fill(str(value))
    with page.expect_request("**/v1/**") as asked:
        page.locator("#write").click()
    return asked.value.post_data_json


def _write(page, *arguments, **options):
    sent = _ask(page, *arguments, **options)
    _finish(page)
    return sent


def _finish(page, how="ended"):
    page.locator(".facts").last.get_by_text(how).wait_for()
    page.locator("#stop:disabled").wait_for()


def _pieces(generator, prompt, sent):
    sampling = Sampling(temperature=sent["temperature"], top_p=sent["top_p"], seed=sent["seed"])
    request = Request(prompt, sampling, sent["max_tokens"], top=5)
    return [piece for _, piece in generator.write([request], length=TEXT_LIMITS.text_tokens)]


def _tokens(page):
    return page.locator(".tokens").last.get_by_role("option")


def _plain(page):
    return page.locator(".plain-text").last.text_content()


def test_a_text_appears_token_by_token(page, served, generators, monkeypatch):
    slowly(monkeypatch, served[1].writers["chats"], 0.1)
    sent = _ask(page, tokens=20)
    page.locator(".tokens [role=option]").nth(2).wait_for()
    assert 3 <= _tokens(page).count() < 20
    assert page.locator("#stop").is_enabled()
    _finish(page, "ended at the limit")
    expected = _pieces(generators["chats"], generators["chats"].encode(PROMPT), sent)
    assert _plain(page) == "".join(piece.text for piece in expected)
    assert _tokens(page).count() == 20
    facts = page.locator(".facts").inner_text().splitlines()
    assert "20 tokens" in facts
    assert f"prompt of {len(PROMPT)} tokens" in facts
    assert "seed 3" in facts
    (pace,) = (float(fact.split()[0]) for fact in facts if fact.endswith(" tokens/s"))
    assert 1 < pace <= 10
    assert "limit" in page.locator("#status").inner_text()


def _spoken(option):
    return option.get_attribute("aria-label").rpartition(", ")[2]


def test_every_token_has_its_probability_and_what_else_was_likely(page, generators):
    sent = _write(page, temperature="1.5")
    page.get_by_text("Every token as a table").click()
    rows = page.locator(".token-table tbody tr")
    expected = _pieces(generators["chats"], generators["chats"].encode(PROMPT), sent)
    surprises = 0
    for number, piece in enumerate(expected):
        token, option = piece.token, _tokens(page).nth(number)
        shown = f"{100 * math.exp(token.logprob):.1f}\u00a0%"
        assert _spoken(option) == shown
        assert rows.nth(number).locator("td").last.inner_text() == shown
        option.hover()
        assert page.locator("#token-title").inner_text().startswith(f"Token {number + 1} of 6")
        bars = page.locator("#token .bars li")
        assert bars.filter(has_text="written").locator(".value").inner_text() == shown
        values = [float(value.split("\u00a0")[0]) for value in bars.locator(".value").all_inner_texts()]
        assert values[0] == pytest.approx(100 * math.exp(token.top[0][1]), abs=0.06)
        is_surprise = token.top[0][1] > token.logprob + 1e-6
        assert ("surprise" in (option.get_attribute("class") or "")) == is_surprise
        surprises += is_surprise
    assert surprises > 0, "of a high temperature"


def test_probabilities_can_be_hidden(page):
    _write(page)
    assert not page.locator(".plain-text").is_visible()
    page.get_by_label("Probabilities").uncheck()
    assert page.locator(".plain-text").is_visible()
    assert not page.locator(".tokens").is_visible()


def test_a_chat_sends_what_was_said(page, generators):
    first = _write(page, "a", mode="Chat", tokens=3)
    answer = _plain(page)
    expected = _pieces(generators["chats"], generators["chats"].chat([{"role": "user", "content": "a"}]), first)
    assert answer == "".join(piece.text for piece in expected)
    assert page.locator("#prompt").input_value() == ""
    page.locator("#prompt").fill("b")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.keyboard.press("Enter")
    assert asked.value.post_data_json["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "b"},
    ]
    _refused(page, "at most 32 with its prompt")  # by then the chat is too long for so small a model
    assert page.locator(".messages > li").count() == 2
    assert page.locator("#prompt").input_value() == "b", "it can be sent again"
    page.get_by_role("button", name="Clear chat").click()
    assert page.locator(".messages > li").count() == 0
    assert focused(page) == "prompt"
    assert len(_write(page, "c", mode="Chat", tokens=2)["messages"]) == 1


def test_a_model_without_a_template_does_not_chat(page):
    page.select_option("#model", "chats")
    assert _mode(page, "Chat").is_checked()
    page.select_option("#model", "continues")
    assert _mode(page, "Chat").is_disabled()
    assert _mode(page, "Complete").is_checked()
    assert "no template for chats" in page.locator("#about").inner_text()
    _write(page, model="continues")
    assert _tokens(page).count() == 6


def test_stop_frees_the_writer_and_the_text_so_far_stays(page, served, monkeypatch):
    writer = served[1].writers["chats"]
    with monkeypatch.context() as patch:
        slowly(patch, writer, 0.2)  # the whole text would take 4 s
        _ask(page, tokens=20)
        page.locator(".tokens [role=option]").nth(1).wait_for()
        assert writer.active == 1
        page.get_by_role("button", name="Stop").click()
        _finish(page, "stopped")
        eventually(lambda: not writer.active, 1)
    assert 2 <= _tokens(page).count() < 20
    assert focused(page) == "write"
    assert page.locator("#writing-error").inner_text() == ""
    _write(page)
    assert _tokens(page).count() == 6


def test_another_text_ends_the_one_before(page, served, monkeypatch):
    writer = served[1].writers["chats"]
    ask, pieces = writer.ask, []

    def counted(requests, deliver, **options):
        return ask(requests, lambda index, piece: pieces.append(piece) or deliver(index, piece), **options)

    monkeypatch.setattr(writer, "ask", counted)
    slowly(monkeypatch, writer, 0.1)
    _ask(page, tokens=20)
    page.locator(".tokens [role=option]").first.wait_for()
    _write(page, "other", tokens=4)
    assert page.locator(".prompt").inner_text() == "other"
    assert _tokens(page).count() == 4
    eventually(lambda: not writer.active, 1)
    assert 4 < len(pieces) < 20, "of both texts"


def _refused(page, words):
    alert = page.locator("#writing-error").filter(has_text=words)
    alert.wait_for()
    assert "\n" not in alert.inner_text()


def test_errors_are_shown_in_one_line(page, served, monkeypatch):
    _ask(page, "x" * 40)
    _refused(page, "the prompt has 40 tokens; a text has at most 32 with its prompt.")
    page.get_by_label("Top-p").fill("2")
    _ask(page)
    _refused(page, "top_p: Input should be less than or equal to 1.")
    page.get_by_label("Top-p").fill("1")
    with monkeypatch.context() as patch:
        patch.setattr(served[1].writers["chats"]._continuations, "_forward", None)
        _ask(page)
        _refused(page, "the model failed: TypeError.")
    _mode(page, "Chat").check()
    page.get_by_role("button", name="Send").click()
    _refused(page, "Type a message first.")
    page.route("**/v1/**", lambda route: route.abort())
    _ask(page, "a", mode="Chat")
    _refused(page, "can't be reached")
    page.unroute("**/v1/**")
    page.route("**/v1/**", lambda route: route.fulfill(content_type="text/event-stream", body=""))
    _ask(page, "a", mode="Chat")
    _refused(page, "The answer ended early")
    page.unroute("**/v1/**")
    _write(page)
    assert page.locator("#writing-error").inner_text() == ""


@pytest.mark.parametrize("mode", ["Complete", "Chat"])
def test_copied_code_writes_the_same_text(page, mode, tmp_path):
    _write(page, "it's 🎬", mode=mode, tokens=4)
    choice = json.loads(run_copied(page, "curl", tmp_path))["choices"][0]
    assert (choice["message"]["content"] if mode == "Chat" else choice["text"]) == _plain(page)
    assert run_copied(page, "Python", tmp_path).rstrip("\n") == _plain(page).rstrip("\n")


def test_the_keyboard_alone_is_enough_for_a_text(page):
    page.select_option("#model", "continues")
    page.locator("#model").focus()
    for wanted in ("prompt", "max-tokens"):
        tab_to(page, wanted)
        page.keyboard.type("12" if wanted == "max-tokens" else "A")
    for wanted in ("temperature", "top-p", "seed", "write"):
        tab_to(page, wanted)
    page.keyboard.press("Control+Enter")
    _finish(page)
    tab_to(page, "log")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "listbox"

    def selected():
        (found,) = page.locator("[role=option][aria-selected=true]").all()
        assert page.evaluate("document.activeElement.getAttribute('aria-activedescendant')") == found.get_attribute(
            "id"
        )
        assert page.locator("#token .bars li").count() >= 2
        return int(page.locator("#token-title").inner_text().split()[1])

    assert selected() == 1
    last = _tokens(page).count()
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", last), ("Home", 1)):
        page.keyboard.press(key)
        assert selected() == place
    page.keyboard.press("ArrowUp")
    assert selected() == 1, "the first line"


def test_arrows_lead_to_the_lines_above_and_below(browser, served):
    with opened(browser, served[0], width=320) as page:
        _write(page, model="continues", tokens=24)
        page.evaluate("document.querySelector('.words').style.width = '6rem'")
        tops = [option.bounding_box()["y"] for option in _tokens(page).all()]
        page.locator(".tokens").focus()
        page.keyboard.press("ArrowDown")
        number = int(page.locator("#token-title").inner_text().split()[1]) - 1
        lines = sorted({round(top) for top in tops})
        assert round(tops[number]) == lines[1]


def test_decoders_stand_beside_other_models(page):
    assert set(page.locator("#model option").all_inner_texts()) == {"features", "chats", "continues"}
    page.select_option("#model", "features")
    page.get_by_role("button", name="Predict").click()
    page.locator(".result .answer").wait_for()
    page.select_option("#model", "chats")
    assert page.locator("#work").is_hidden()
    assert page.locator("#code").is_hidden()
    assert page.locator("#compare").is_hidden()
    _mode(page, "Complete").check()
    page.locator("#prompt").fill("half a sen")
    page.select_option("#model", "features")
    assert page.locator("#writing").is_hidden()
    assert page.locator("#other option").all_inner_texts() == ["no model alike"]
    page.select_option("#model", "chats")
    assert page.locator("#prompt").input_value() == "half a sen"


def test_a_service_with_keys_writes_for_those_who_have_one(browser, generators, tmp_path):
    key, line = new_key("ana")
    (tmp_path / "keys").write_text(line)
    decoders = {"continues": generators["continues"]}
    with writing(decoders, keys=Keys(tmp_path / "keys")) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("API key", exact=True).fill(key)
        page.keyboard.press("Enter")
        page.locator("#model:enabled").wait_for()
        assert focused(page) == "prompt"
        _write(page, model="continues")
        assert "$API_KEY" in page.locator("#curl").inner_text()
        assert key not in page.content()
        page.close()


def _select(page):
    _tokens(page).nth(1).click()
    page.get_by_text("Every token as a table").last.click()


STATES = {
    "complete": lambda page: (_write(page, model="continues", tokens=24), _select(page)),
    "chat": lambda page: (_write(page, "a", mode="Chat", tokens=20), _select(page)),
    "plain": lambda page: (_write(page, tokens=24), page.get_by_label("Probabilities").uncheck()),
    "error": lambda page: (_ask(page, "x" * 40), _refused(page, "40 tokens")),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_texts_are_accessible_and_fit_a_phone(browser, served, state, scheme):
    with opened(browser, served[0], width=375, height=700, color_scheme=scheme, reduced_motion="reduce") as page:
        STATES[state](page)
        assert_accessible(page)
