# mypy: disable-error-code="arg-type"
"""OpenAI's interface of texts, by its own client."""

import asyncio
import dataclasses
import time

import httpx
import openai
import pytest

from research.core.sampling import Sampling
from research.inference.generate import Request
from research.serve.repository import Repository, Source
from tests.serve.conftest import TEXT_LIMITS, slowly


@pytest.fixture(scope="module")
def client(written):
    with openai.OpenAI(base_url=f"{written[0]}/v1", api_key="none", max_retries=0) as found:
        yield found


def _text(generator, prompt, max_tokens=8, stop=(), **sampling):
    request = Request(prompt, Sampling(**sampling), max_tokens, stop)
    return "".join(piece.text for _, piece in generator.write([request], length=TEXT_LIMITS.text_tokens))


def test_models(client):
    assert [model.id for model in client.models.list()] == ["llama"]


def test_the_list_of_models_tells_what_a_decoder_does(written, generator, monkeypatch):
    url, service = written
    (found,) = httpx.get(f"{url}/models").json()
    assert found == httpx.get(f"{url}/models/llama").json()
    assert found["kind"] == "text_generation"
    assert found["operations"] == ["complete", "chat"]
    assert (found["limits"]["max_length"], found["limits"]["batch_inputs"]) == (32, 1)
    assert (found["version"], found["compute"]) == (generator.version, "float32")
    monkeypatch.setattr(service.writers["llama"], "generator", dataclasses.replace(generator, template=None))
    assert httpx.get(f"{url}/models/llama").json()["operations"] == ["complete"]


def test_a_completion_is_what_the_command_writes(client, generator):
    found = client.completions.create(model="llama", prompt="The sea", max_tokens=8, temperature=0)
    assert found.choices[0].text == _text(generator, generator.encode("The sea"), temperature=0)
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 8
    assert found.usage.prompt_tokens == len(generator.encode("The sea"))
    tokens = client.completions.create(model="llama", prompt=generator.encode("The sea"), max_tokens=8, temperature=0)
    assert tokens.choices[0].text == found.choices[0].text


def test_the_same_seed_writes_the_same_text(client, generator):
    ask = {"model": "llama", "prompt": "A", "max_tokens": 8, "temperature": 0.9, "top_p": 0.95}
    one, other = (client.completions.create(**ask, seed=5, n=2) for _ in range(2))
    assert [choice.text for choice in one.choices] == [choice.text for choice in other.choices]
    expected = [_text(generator, generator.encode("A"), temperature=0.9, top_p=0.95, seed=seed) for seed in (5, 6)]
    assert [choice.text for choice in sorted(one.choices, key=lambda choice: choice.index)] == expected
    assert len(set(expected)) == 2


def test_a_stream_is_the_same_text(client):
    ask = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "length"
    assert parts[-1].usage == whole.usage
    assert len(parts) == 6 + 2


def test_logprobs(client):
    asked = {"model": "llama", "max_tokens": 3, "temperature": 0}
    chat = client.chat.completions.create(
        **asked, messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
    )
    for token in chat.choices[0].logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-6)  # greedy
        assert len(token.top_logprobs) == 2
    text = client.completions.create(**asked, prompt="A", logprobs=2)
    assert len(text.choices[0].logprobs.token_logprobs) == 3
    assert all(len(each) == 2 for each in text.choices[0].logprobs.top_logprobs)


def test_stop_strings(client, generator):
    text = _text(generator, generator.encode("The sea"), temperature=0)
    stop = text[3:5]
    found = client.completions.create(model="llama", prompt="The sea", max_tokens=8, temperature=0, stop=[stop])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("completions", {"prompt": "x" * 40}, 422),
        ("completions", {"prompt": []}, 422),
        ("completions", {"prompt": [-1]}, 422),
        ("completions", {"prompt": [10**6]}, 422),
        ("completions", {"prompt": [10**30]}, 422),
        ("completions", {"prompt": [True]}, 422),
        ("completions", {"prompt": [0.5]}, 422),
        ("completions", {"prompt": [[1], [2]]}, 422),
        ("completions", {"prompt": ""}, 422),
        ("completions", {"prompt": "a", "stop": list("abcde")}, 422),
        ("completions", {"prompt": "a", "stop": "x" * 257}, 422),
        ("completions", {"prompt": "a", "logprobs": 21}, 422),
        ("completions", {"prompt": "a", "seed": "x"}, 422),
        ("completions", {"prompt": "a", "max_tokens": 0}, 422),
        ("completions", {"prompt": "a", "n": 99}, 422),
        ("completions", {"prompt": "a", "top_p": 0}, 422),
        ("completions", {"prompt": "a", "temperature": -1}, 422),
        ("completions", {"prompt": "a", "stop": [""]}, 422),
        ("completions", {"prompt": "a", "echo": True}, 422),
        ("completions", {"prompt": "a", "logit_bias": {"5": 1}}, 422),
        ("completions", {"prompt": "a", "model": "other"}, 404),
        ("completions", {"prompt": {"a": 1}}, 422),
        ("chat/completions", {"messages": []}, 422),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 422),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 422),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 50}]}, 422),
    ],
)
def test_what_can_not_be_written_is_refused(written, path, body, status):
    reply = httpx.post(f"{written[0]}/v1/{path}", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "top_p": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": [' + b"9" * 400 + b"]}",
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["nan", "infinity", "surrogate", "deep", "token", "seed"],
)
def test_what_is_hardly_json_is_refused(written, body):
    reply = httpx.post(f"{written[0]}/v1/completions", content=body)
    assert reply.status_code == 422, reply.text
    assert len(reply.text) < 500


def test_a_list_of_prompts_has_one(written):
    def ask(prompt):
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0}
        return httpx.post(f"{written[0]}/v1/completions", json=body).json()

    assert ask(["The sea"])["choices"] == ask("The sea")["choices"]
    assert ask([[5, 6]])["choices"] == ask([5, 6])["choices"]
    assert ask(["a", "b"])["error"]["message"] == "prompt: a request has one prompt, and this one has 2"


def test_a_decoder_predicts_nothing(written):
    reply = httpx.post(f"{written[0]}/predict", json={"inputs": "x"})
    assert reply.status_code == 424


def test_too_many_texts_are_refused_at_once(written, monkeypatch):
    url, service = written
    slowly(monkeypatch, service.writers["llama"])

    async def ask(client):
        began = time.perf_counter()
        body = {"prompt": "A", "max_tokens": 20, "temperature": 0}
        reply = await client.post(f"{url}/v1/completions", json=body, timeout=30)
        return reply.status_code, time.perf_counter() - began, reply.headers.get("Retry-After")

    async def all_of_them():
        async with httpx.AsyncClient() as client:
            return await asyncio.gather(*(ask(client) for _ in range(10)))

    found = asyncio.run(all_of_them())
    assert sorted(status for status, _, _ in found) == [200] * 4 + [429] * 6  # two are written, two wait
    assert all(wait == "1" for status, _, wait in found if status == 429)


def test_a_repository_loads_decoders(decoder_folder):
    found = []
    limits = dataclasses.replace(TEXT_LIMITS, texts=1)
    source = Source.of(f"tiny={decoder_folder}", compute="float32")
    assert source.writes
    repository = Repository([source], limits, found.append, devices=[])
    repository._load_if_new(source)
    repository._load_if_new(source)
    assert repository.states == {"tiny": "ready"}
    (writer,) = found
    assert writer.name == "tiny"
    assert writer.version == source.version()
    writer.close()
