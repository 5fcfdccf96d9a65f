# mypy: disable-error-code="attr-defined"
"""Explanations: complete, exact where they can be, right in their derivatives, and one at a time."""

import asyncio
import dataclasses
import threading

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.parts import lay_out
from research.inference.model import open_model
from research.runs.rundir import RunDir
from research.serve import gradients
from research.serve.errors import Kind, ServiceError
from research.serve.explanations import explanation
from research.serve.model import ServedModel
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.serve.conftest import LIMITS, TEXTS, serving

ROW = np.linspace(-0.1, 0.1, 10).tolist()


def _explain(url, model, value, **more):
    return httpx.post(f"{url}/models/{model}/explain", json={"inputs": [value], **more}, timeout=60)


def test_the_line_integrates_polynomials_exactly():
    for points in (16, 32, 128):
        places, weights = gradients.line(points)
        assert (places[0], places[-1], weights[0], weights[-1]) == (0, 1, 0, 0)
        np.testing.assert_allclose((weights * places**5).sum(), 1 / 6, rtol=1e-5)


def test_points_are_doubled_until_the_gap_is_small():
    def part(exponent):
        # The score of a gate g is g^exponent.
        def found(places, weights):
            return np.array([(weights * exponent * places ** (exponent - 1)).sum()]), places**exponent

        return found

    smooth, rough = gradients.integrate(part(2)), gradients.integrate(part(100))
    assert (smooth.points, smooth.score, smooth.baseline) == (16, 1, 0)
    assert abs(smooth.gap) < 1e-5
    assert rough.points > 16
    assert abs(rough.gap) <= gradients.TOLERANCE * rough.score


def test_the_score_of_a_class_does_not_change_with_all_logits():
    logits = np.array([1.0, 2.0, 4.0])
    assert logits @ gradients.direction(3, 2) == pytest.approx(4 - 1.5)
    assert (logits + 7) @ gradients.direction(3, 2) == pytest.approx(4 - 1.5)
    assert gradients.direction(2, 0).tolist() == [1, -1]
    assert gradients.direction(1, None).tolist() == [1]


def test_a_linear_model_is_explained_exactly(served, runs):
    found = _explain(served, "features", ROW)
    assert found.status_code == 200, found.text
    answer = found.json()
    model = open_model(runs["features"])
    kernel = np.asarray(model.predicting_state.params["linear"]["kernel"], np.float64)[:, 0]
    mean, scale = model.encoder.affine
    expected = (np.array(ROW) - mean) * scale * kernel
    attributions = [each["attribution"] for each in answer["features"]]
    np.testing.assert_allclose(attributions, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert answer["label"] is None
    assert answer["score"] == pytest.approx(answer["prediction"]["prediction"], rel=1e-6)
    assert answer["baseline"] == pytest.approx(float(np.asarray(model.predicting_state.params["linear"]["bias"])[0]))
    assert abs(answer["gap"]) < 1e-5 * np.abs(expected).sum()
    assert [each["name"] for each in answer["features"]][:2] == ["age", "sex"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b'{"inputs": []}', 422),
        (b'{"inputs": [[1, 2]]}', 422),
        (b'{"inputs": [[0,0,0,0,0,0,0,0,0,0], [0,0,0,0,0,0,0,0,0,0]]}', 422),
        (b'{"inputs": [[0,0,0,0,0,0,0,0,0,0]], "label": "0"}', 422),
    ],
)
def test_bad_explanations_are_refused(served, body, status):
    found = httpx.post(f"{served}/models/features/explain", content=body)
    assert found.status_code == status, found.text
    assert found.json().keys() == {"error", "error_type"}


def test_one_prediction_is_explained_at_a_time(models, in_loop, monkeypatch):
    release, model = threading.Event(), models["features"]
    explain = model.explainer.explain

    def waits(*arguments):
        release.wait(30)
        return explain(*arguments)

    monkeypatch.setattr(model.explainer, "explain", waits)
    columns = {"features": [ROW]}

    async def ask(service):
        first = asyncio.ensure_future(service.explain(model, columns, None))
        await asyncio.sleep(0.05)
        with pytest.raises(ServiceError) as refused:
            await service.explain(model, columns, None)
        release.set()
        await first
        return refused.value, await service.explain(model, columns, None)

    error, answer = in_loop({"features": model}, ask)
    assert error.kind is Kind.OVERLOADED
    assert error.retry_after
    assert len(answer["features"]) == 10


def test_nothing_is_compiled_twice(models):
    model = models["features"]
    columns = {"features": [ROW]}
    (part,) = model.encode(columns)
    explanation(model, columns, part, None)
    programs = dict(model.explainer._programs)
    columns = {"features": [[0.02] * 10]}
    (part,) = model.encode(columns)
    explanation(model, columns, part, None)
    assert model.explainer._programs == programs


@pytest.mark.extended
def test_a_text_is_explained_by_its_tokens(served_all, models):
    text = "a gripping, unwatchably dull 🎬 film"
    answer = _explain(served_all, "text", text).json()
    tokens, prediction = answer["tokens"], answer["prediction"]
    assert [text[token["start"] : token["stop"]] for token in tokens] == [token["text"] for token in tokens]
    words = {}
    for token in tokens:
        words[token["word"]] = words.get(token["word"], "") + token["text"]
    assert list(words.values()) == ["a", "gripping", ",", "unwatchably", "dull", "🎬", "film"]
    assert len(tokens) > len(words)
    assert answer["label"] == prediction["label"]
    odds = np.log(prediction["scores"][answer["label"]] / min(prediction["scores"].values()))
    assert answer["score"] == pytest.approx(odds, rel=1e-4)
    other = next(name for name in prediction["scores"] if name != answer["label"])
    opposite = _explain(served_all, "text", text, label=other).json()
    np.testing.assert_allclose(
        [token["attribution"] for token in opposite["tokens"]], [-token["attribution"] for token in tokens], rtol=1e-4
    )
    assert _explain(served_all, "text", text, label="neither").status_code == 422


@pytest.mark.extended
@pytest.mark.parametrize("text", TEXTS[:3])
def test_attributions_of_a_text_are_complete(models, text):
    model, columns = models["text"], {"sentence": [text]}
    (part,) = model.encode(columns)
    found = model.explainer.explain(part, model.encoder.places(columns), 2, 1)
    assert abs(found.gap) <= gradients.TOLERANCE * np.abs(found.values).sum()
    assert found.values[[0, -1]].tolist() == [0, 0], "[CLS] and [SEP] are in the baseline too"
    (answer,), _ = model.answer([part])
    assert found.score == pytest.approx(float(np.diff(answer.values["outputs"])[0]), abs=1e-5)


@pytest.mark.extended
def test_the_derivative_is_that_of_finite_differences(models):
    model = models["text"]
    module, explainer = model._model.module, model.explainer
    (part,) = model.encode({"sentence": [TEXTS[0]]})
    batch = jax.tree.map(jnp.asarray, lay_out([part], np.zeros((1, 1), np.int64), 16))
    variables = jax.tree.map(lambda x: 4 * x, explainer._variables)  # as if it had been trained for longer
    direction, free, nothing = jnp.array([-1.0, 1.0]), jnp.ones((1, 16)), jnp.zeros((1, 1))

    @jax.jit
    def walk(place):
        ones = jnp.ones(1)
        return gradients.walk(variables, batch, nothing, free, place[None], ones, direction, module=module)

    @jax.jit
    def score(gates):
        return gradients._outputs(variables, batch, gates, nothing, module).reshape(-1) @ direction

    derivatives = walk(jnp.float32(0.5))[0]
    token, step = int(jnp.argmax(jnp.abs(derivatives))), 1e-2
    ends = [score(jnp.full((1, 16), 0.5).at[0, token].add(sign * step)) for sign in (1, -1)]
    assert float(derivatives[token]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=5e-3)


@pytest.mark.extended
def test_an_image_is_explained_by_a_map(served_all, images):
    answer = _explain(served_all, "image", images[0].tolist()).json()
    found = np.array(answer["map"])
    assert found.shape == (8, 8)
    assert not found[images[0][:, :, 0] == 0].any(), "black pixels are in the baseline too"
    assert found.sum() == pytest.approx(answer["score"] - answer["baseline"] - answer["gap"], abs=1e-4)
    assert abs(answer["gap"]) <= gradients.TOLERANCE * np.abs(found).sum() or answer["points"] == gradients.MOST_POINTS


@pytest.mark.extended
def test_pixels_of_a_linear_model_are_explained_exactly(tmp_path):
    train_and_evaluate(tiny.logistic(steps=5), tmp_path, show=False)
    model = ServedModel.open("digits", RunDir.open(tmp_path))
    for _ in model.warm_up(dataclasses.replace(LIMITS, batch_rows=1)):
        pass
    kernel = np.asarray(model._variables[0]["params"]["linear"]["kernel"], np.float64)
    image = np.asarray(model.samples.columns["features"][0])
    columns = {"features": [image]}
    (part,) = model.encode(columns)
    found = explanation(model, columns, part, 3)
    expected = image.reshape(-1) / model.encoder.std * (kernel[:, 3] - np.delete(kernel, 3, axis=1).mean(axis=1))
    np.testing.assert_allclose(np.ravel(found["map"]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.extended
def test_a_model_without_attributions_says_so(models, in_loop, monkeypatch):
    model = models["text"]
    monkeypatch.setattr(type(model.explainer), "supports", lambda self, part: False)
    with serving({"text": model}) as (url, _):
        found = _explain(url, "text", "a film")
    assert found.status_code == 424


@pytest.mark.extended
def test_an_explanation_that_takes_too_long_is_refused_and_used_later(models, runs, in_loop, monkeypatch):
    model = models["text"]
    release = threading.Event()
    explain = model.explainer.explain
    monkeypatch.setattr(model.explainer, "explain", lambda *arguments: release.wait(30) and explain(*arguments))

    async def ask(service):
        with pytest.raises(ServiceError) as late:
            await service.explain(model, {"sentence": ["a film"]}, 0)
        release.set()
        for _ in range(100):
            await asyncio.sleep(0.1)
            if not service._explanations._working:
                break
        return late.value, await service.explain(model, {"sentence": ["a film"]}, 0)

    limits = dataclasses.replace(LIMITS, timeout_ms=2000.0)
    error, answer = in_loop({"text": model}, ask, limits)
    assert error.kind is Kind.OVERLOADED
    assert [token["text"] for token in answer["tokens"]] == ["a", "film"]
