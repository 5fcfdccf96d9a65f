"""The page for people, in a browser: what they can do, with and without a mouse, and that everybody can."""

import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from research import api
from research.runs.rundir import RunDir
from research.serve.keys import Keys, new_key
from research.serve.model import ServedModel
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.serve.browsing import assert_accessible, focused, open_page, opened, run_copied, tab_to
from tests.serve.conftest import LIMITS, guarded, serving

pytestmark = pytest.mark.browser

TEXT = "not a 🎬 film but unwatchably dull"


def _compiled(name, folder):
    model = ServedModel.open(name, RunDir.open(folder))
    for _ in model.warm_up(LIMITS):
        pass
    return model


@pytest.fixture(scope="module")
def all_models(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        tiny.tfds(patch)
        train_and_evaluate(tiny.bert_glue_task("mrpc", steps=3), folder / "pair", show=False)
    train = str(tiny.own_file(folder / "own", "table"))
    options = {"data.train": train, "data.transform.label": "label", "data.kinds": "text=ignored"}
    api.fit("tabular_files:linear", workdir=folder / "table", show=False, **options)
    found = {name: models[name] for name in ("text", "image", "features")}
    twin = copy.copy(models["text"])
    twin.name = "twin"
    return found | {"twin": twin} | {name: _compiled(name, folder / name) for name in ("pair", "table")}


@pytest.fixture(scope="module")
def url(all_models):
    with serving(all_models) as (found, _):
        yield found


@pytest.fixture
def page(browser, url):
    with opened(browser, url) as found:
        yield found


def _predict(page):
    with page.expect_response("**/predict") as answer:
        page.get_by_role("button", name="Predict").click()
    page.locator("#results:not(.stale)").wait_for()
    return answer.value


def _sent(answer):
    return answer.request.post_data_json["inputs"][0]


def _explain(page):
    page.get_by_role("button", name="Explain").first.click()
    page.locator(".explanation .legend").first.wait_for()


def _text(page):
    page.select_option("#model", "text")
    page.get_by_label("Sentence").fill(TEXT)
    return _predict(page)


def _stroke(page):
    box = page.locator("#ink").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 80)
    page.mouse.down()
    page.mouse.move(x, y + 80, steps=8)
    page.mouse.up()


def test_a_text_is_predicted_and_its_words_are_marked(page):
    answer = _text(page)
    assert _sent(answer) == TEXT
    (found,) = answer.json()["predictions"]
    shown = page.locator(".result")
    assert shown.locator(".answer").inner_text().startswith(found["label"])
    assert [each.split("\n")[0] for each in shown.locator(".bars li").all_inner_texts()] == sorted(
        found["scores"], key=lambda name: -found["scores"][name]
    )
    assert found["label"] in page.locator("#status").inner_text()
    facts = shown.locator(".facts").inner_text()
    assert f"{found['tokens']} tokens" in facts
    assert "computed now" in facts
    _explain(page)
    assert shown.locator(".words").inner_text() == TEXT
    assert "unwatchably" in shown.locator(".words > *").all_inner_texts()
    assert "🎬" in shown.locator(".words > *").all_inner_texts()
    assert "gap of" in shown.locator(".explanation").inner_text()
    assert "from the cache" in (_predict(page), shown.locator(".facts").inner_text())[1]


def test_a_truncated_text_says_so(page):
    page.get_by_label("Sentence").fill("film " * 100)
    _predict(page)
    assert "truncated" in page.locator(".facts").inner_text()


def test_a_pair_is_predicted(page):
    page.select_option("#model", "pair")
    page.get_by_label("Sentence 1").fill("the film is dull")
    page.get_by_label("Sentence 2").fill("a film")
    assert _sent(_predict(page)) == {"sentence1": "the film is dull", "sentence2": "a film"}
    _explain(page)
    assert page.locator(".words").all_inner_texts() == ["the film is dull", "a film"]


def _png():
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"name": "half.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_an_image_is_sent_in_the_size_and_range_that_the_model_reads(page):
    page.select_option("#model", "image")
    page.get_by_label("File").check()
    page.set_input_files("#file", _png())
    sent = np.array(_sent(_predict(page)))
    assert sent.shape == (8, 8, 1)
    assert (sent[:4] == 16).all()
    assert not sent[4:].any()
    _explain(page)
    assert page.locator(".explanation canvas").count() == 1


def test_a_drawing_is_sent_as_the_pixels_that_the_model_reads(page):
    page.select_option("#model", "image")
    _stroke(page)
    sent = np.array(_sent(_predict(page)))[:, :, 0]
    assert sent.shape == (8, 8)
    assert 12 < sent.max() <= 16
    assert sent[:, [0, 7]].max() == 0
    page.get_by_role("button", name="Clear drawing").click()
    page.get_by_role("button", name="Predict").click()
    assert page.get_by_role("alert").filter(has_text="Draw").count() == 1


def _draw(page, points, left, top, size):
    """Draws a line through points in a square of the drawing; all are shares of its side."""
    page.locator("#ink").scroll_into_view_if_needed()
    box = page.locator("#ink").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(
            box["x"] + (left + size * x) * box["width"], box["y"] + (top + size * y) * box["height"], steps=3
        )
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def _arc(x, y, width, height, start, stop):
    angles = np.radians(np.linspace(start, stop, 16))
    return np.stack([x + width / 2 * np.cos(angles), y + height / 2 * np.sin(angles)], axis=1).tolist()


DIGITS = {
    "0": _arc(0.5, 0.5, 0.64, 1, -90, 270),
    "3": [*_arc(0.45, 0.26, 0.76, 0.52, -140, 90), *_arc(0.45, 0.75, 0.84, 0.5, -90, 140)],
    "7": [(0.1, 0.05), (0.9, 0.05), (0.4, 1)],
}


def test_where_and_how_large_a_digit_is_drawn_does_not_matter(page):
    page.select_option("#model", "image")
    for points in DIGITS.values():
        found = []
        for place in ((0.1, 0.1, 0.8), (0.05, 0.05, 0.3), (0.6, 0.65, 0.3)):
            page.get_by_role("button", name="Clear drawing").click()
            _draw(page, points, *place)
            found.append(np.array(_sent(_predict(page))))
        assert found[0][[0, 7]].max(axis=(1, 2)).min() > 8, "as high as the image"
        assert all(np.abs(other - found[0]).max() < 3 for other in found), "of 16"


def test_a_drawing_of_28_pixels_is_centred_as_those_of_mnist(browser, models):
    def described(route):
        (found,) = route.fetch().json()
        image = {"height": 28, "width": 28, "channels": 1, "white": 255, "resize": None}
        route.fulfill(json=[{**found, "image": image}])

    with serving({"image": models["image"]}) as (url, _):
        page = browser.new_page()
        page.route("**/models", described)
        open_page(page, url)
        _draw(page, DIGITS["7"], 0.6, 0.65, 0.3)
        sent = np.array(_sent(_predict(page)))[:, :, 0]
        page.close()
    assert sent.shape == (28, 28)
    rows = np.nonzero(sent > 100)[0]
    assert np.ptp(rows) + 1 in (19, 20, 21), "the longer side"
    places = np.arange(28)
    middle = [(sent.sum(axis=1 - axis) * places).sum() / sent.sum() for axis in (0, 1)]
    np.testing.assert_allclose(middle, 13.5, atol=0.3)
    assert abs((rows.min() + rows.max()) / 2 - 13.5) > 1, "the middle of its box is elsewhere"


def test_a_form_has_the_fields_of_the_features(page):
    page.select_option("#model", "features")
    page.get_by_label("bmi").fill("0.05")
    sent = _sent(_predict(page))
    assert len(sent) == 10
    assert sent[2] == 0.05
    page.select_option("#model", "table")
    page.get_by_label("size").fill("3")
    page.get_by_label("group").select_option("b")
    assert _sent(_predict(page)) == {"size": 3, "group": "b"}
    _explain(page)
    assert page.locator(".explanation .bars li").count() == 2


def test_two_models_are_compared(page):
    assert page.locator("#other option").all_inner_texts() == ["none", "twin"]
    page.select_option("#other", "twin")
    _text(page)
    page.select_option("#other", "twin")
    _predict(page)
    page.get_by_role("article", name="Prediction of twin").wait_for()
    first, second = page.locator(".result .answer").all_inner_texts()
    assert first == second


def test_errors_are_shown_in_words(page, url):
    page.get_by_role("button", name="Predict").click()
    assert page.get_by_role("alert").filter(has_text="Type a text first").count() == 1
    page.select_option("#model", "table")
    page.get_by_label("size").fill("")
    assert _predict(page).status == 422
    assert page.get_by_role("alert").filter(has_text="'size' has no value").count() == 1
    page.route("**/predict", lambda route: route.abort())
    page.get_by_label("size").fill("1")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("alert").filter(has_text="can't be reached").wait_for()


def test_history_shows_earlier_predictions(page):
    _text(page)
    page.select_option("#model", "features")
    _predict(page)
    assert page.locator("#entries li").count() == 2
    page.get_by_role("button", name=TEXT).click()
    assert page.locator("#model").input_value() == "text"
    assert page.get_by_label("Sentence").input_value() == TEXT
    assert page.locator(".result .answer").count() == 1
    page.get_by_role("button", name="Clear history").click()
    assert page.locator("#history").is_hidden()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_copied_code_makes_the_same_request(page, kind, tmp_path):
    if kind == "text":
        page.get_by_label("Sentence").fill('it\'s "dull"\n\\ $HOME 🎬')
    else:
        page.select_option("#model", "image")
        _stroke(page)
    expected = _predict(page).json()["predictions"][0]["scores"]
    for name in ("curl", "Python"):
        said = run_copied(page, name, tmp_path)
        found = json.loads(said)["predictions"] if name == "curl" else eval(said)
        assert found[0]["scores"] == pytest.approx(expected)


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the input"
    page.keyboard.press("Enter")
    tab_to(page, "text-0")
    page.keyboard.type("dull")
    page.keyboard.press("Control+Enter")
    page.locator(".result").wait_for()
    tab_to(page, "predict")
    tab_to(page, "Explain")
    page.keyboard.press("Enter")
    page.locator(".explanation .legend").wait_for()
    for wanted in ("Copy as curl", "Copy as Python", "forget"):
        tab_to(page, wanted)
    page.keyboard.press("Enter")
    assert focused(page) == "model"
    page.keyboard.type("i")
    page.locator("#ink").wait_for()
    tab_to(page, "ink")
    for key in ("ArrowUp", "ArrowUp", " ", "ArrowDown", "ArrowDown", "ArrowDown", " "):
        page.keyboard.press(key)
    with page.expect_response("**/predict") as answer:
        page.keyboard.press("Control+Enter")
    sent = np.array(_sent(answer.value))[:, :, 0]
    assert sent[:, 4].max() > 12
    assert sent[:, [0, 7]].max() == 0


def _newer(model, name, version):
    found = copy.copy(model)
    found.name, found.version = name, version
    return found


def test_newer_models_appear_and_what_was_typed_stays(browser, models):
    with serving({"text": models["text"], "features": models["features"]}) as (url, service):
        page = browser.new_page()
        page.clock.install()
        open_page(page, url)
        page.get_by_label("Sentence").press_sequentially("half a sen")
        service.models.update({name: _newer(models["text"], name, "9") for name in ("text", "twin")})
        page.clock.fast_forward(11_000)
        page.get_by_text("version 9.").wait_for()
        assert page.locator("#other option").all_inner_texts() == ["none", "twin"]
        page.select_option("#other", "twin")
        page.get_by_label("Sentence").focus()
        page.keyboard.press("End")
        service.models["third"] = _newer(models["features"], "third", "9")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.locator("#model option[value=third]").wait_for(state="attached")
        page.keyboard.type("tence")
        assert page.get_by_label("Sentence").input_value() == "half a sentence"
        assert [page.locator(f"#{name}").input_value() for name in ("model", "other")] == ["text", "twin"]
        assert _predict(page).status == 200
        page.close()


def test_a_page_without_a_service_waits_for_it(browser, models):
    with serving({}) as (url, service):
        page = browser.new_page()
        page.goto(url)
        page.get_by_text("No model is ready yet").wait_for()
        page.route("**/models", lambda route: route.abort())
        page.get_by_text("can't be reached").first.wait_for()
        service.models["features"] = models["features"]
        page.unroute("**/models")
        page.locator("#model:enabled").wait_for()
        assert page.locator("#error").inner_text() == ""
        page.close()


def test_a_service_with_keys_asks_for_one(browser, models, tmp_path):
    key, line = new_key("ana")
    (tmp_path / "keys").write_text(line)
    with guarded({"features": models["features"]}, keys=Keys(tmp_path / "keys")) as (url, _):
        page = browser.new_page()
        page.goto(url)
        field = page.get_by_label("API key", exact=True)
        field.fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("does not know this key").wait_for()
        field.fill(key)
        page.keyboard.press("Enter")
        page.locator("#model:enabled").wait_for()
        assert page.locator("#key").is_hidden()
        assert _predict(page).status == 200
        assert key not in page.content(), "the code to copy reads the key from the environment"
        page.close()


STATES = {
    "text": lambda page: (_text(page), _explain(page)),
    "pair": lambda page: page.select_option("#model", "pair"),
    "image": lambda page: (page.select_option("#model", "image"), _stroke(page), _predict(page), _explain(page)),
    "form": lambda page: (page.select_option("#model", "table"), _predict(page), _explain(page)),
    "error": lambda page: page.get_by_role("button", name="Predict").click(),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_inaccessible_nor_too_wide_for_a_phone(browser, url, state, scheme):
    with opened(browser, url, width=375, height=700, color_scheme=scheme, reduced_motion="reduce") as page:
        STATES[state](page)
        assert_accessible(page)
