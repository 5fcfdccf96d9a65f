"""Bodies for the paths that write texts, as tests/serve_bodies.py has them for the others."""

import random
from typing import Any

# fmt: off
PROMPTS: tuple[str, ...] = (
    "The sea", "a", "", " ", "\0", "é", "🎬", "\u2028", "<|endoftext|>", "<assistant>", "x" * 15, "x" * 200, "x" * 255,
    "x" * 100_000, "x" * 100_001, "word " * 19_000, "中" * 20_000, "{{ 7 * 7 }}", "{% for i in range(9999999) %}",
    "\u0301" * 5000,
)
ROLES: tuple[Any, ...] = ("user",) * 6 + ("system", "assistant", "developer", "tool", "function", "", None, 1)
# fmt: on
OPTIONS: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 1, 5, 5, 40, 600, 2**31, 10**30, 0, -1, 1.5, None),
    "max_completion_tokens": (1, 5, 0, None),
    "temperature": (0, 0, 0.7, 1, 100, 1e-300, 101, -1),
    "top_p": (1, 0.9, 1e-9, 0, 1.1),
    "top_k": (0, 1, 50, -1, 2**31 - 1, 2**31, -2),
    "min_p": (0, 0.1, 1, 1.1),
    "repetition_penalty": (1, 1.3, 1e-300, 100, 0),
    "n": (1, 2, 2, 8, 9, 0, 10**6),
    "seed": (0, 1, -1, 2**64, 10**30, None),
    "stop": ("e", "\n", [], ["a"], ["a", "b", "c", "d"], list("abcde"), "", "x" * 256, "x" * 257, [1], None),
    "logprobs": (0, 1, 2, 5, 20, 21, -1, True, False, None),
    "top_logprobs": (0, 1, 20, 21),
    "stream_options": ({"include_usage": True}, {}, None, []),
    "frequency_penalty": (0, 1),
    "logit_bias": ({}, {"1": 1}, None),
    "echo": (False, True),
    "best_of": (1, 2),
    "tools": ([], [{}], None),
    "user": ("someone", 1),
}


def _prompt(rng: random.Random) -> str:
    return rng.choice(PROMPTS[:2] * 15 + PROMPTS)


def _message(rng: random.Random) -> dict[str, Any]:
    content: Any = _prompt(rng)
    if rng.random() < 0.2:
        content = [{"type": rng.choice(("text", "text", "image_url")), "text": content}] * rng.choice((0, 1, 3))
    return {"role": rng.choice(ROLES), "content": content}


def write(rng: random.Random) -> tuple[str, Any]:
    """The path and the body of a request for texts: often valid, half of the time as a stream."""
    model = rng.choice(("chat",) * 6 + ("gpt", "gpt", None, "text", "x"))
    body: dict[str, Any] = {"model": model, "stream": rng.random() < 0.5}
    path = rng.choice(("/v1/completions", "/v1/chat/completions"))
    if path.endswith("chat/completions"):
        body["messages"] = [_message(rng) for _ in range(rng.choice((1, 1, 1, 2, 5, 0, 1025)))]
    else:
        tokens = [rng.randrange(257) for _ in range(rng.choice((1, 5, 20, 600)))]
        odd = ([-1], [257], [10**6], [2**31], [10**30], [True], [0.5], [tokens], [tokens] * 2, ["a"], ["a", "b"], [])
        body["prompt"] = rng.choice((_prompt(rng), _prompt(rng), tokens, rng.choice(odd)))
    for name in rng.sample(sorted(OPTIONS), rng.choice((0, 1, 2, 4))):
        body[name] = rng.choice(OPTIONS[name])
    return path, body
