# mypy: disable-error-code="import-not-found, import-untyped"
"""Generation beside transformers: tokens a second of one text and of several, and of reading a prompt.

python benchmarks/generate.py --folder=FOLDER                      # a Llama or GPT-2, as transformers saves it
python benchmarks/generate.py --folder=FOLDER --gguf=FILE          # also llama.cpp with a file of its own
python benchmarks/generate.py --folder=FOLDER --perplexity=TEXT    # what int8 and bfloat16 cost, on a text file
python benchmarks/generate.py --folder=FOLDER --uncached           # what the cache gains, in texts of 256 tokens

Each side runs in a process of its own (turns.py), measured in turn while the others wait. All write greedily. The
peer is `generate` of transformers in float32 and bfloat16, with its dynamic cache, which was faster than its static
one; a batch of it has prompts of the same length, so that it needs no padding. Needs the `parity` extra, and for
llama.cpp the package llama-cpp-python.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import Results, Side, environment, serve

TOKENS = 64  # that are written
PROMPT = 64  # tokens of it
LONG = 512  # tokens of the prompt that is only read
STREAMS = (1, 8)
COMPUTE = ("float32", "bfloat16", "int8")
PEERS = ("float32", "bfloat16")
WINDOW = 512  # tokens of a row, for the perplexity


def _prompt(rng: np.random.Generator, size: int, vocabulary: int) -> list[int]:
    return rng.integers(vocabulary // 10, vocabulary // 2, size).tolist()


def ours(arguments: argparse.Namespace) -> Callable[[str, int], dict[str, float]]:
    """(setting, _) -> seconds and tokens; a setting is what to compute in, and how many texts, or "read"."""
    from research.devices.platform import prepare_process

    prepare_process()
    from research.core.sampling import Sampling
    from research.inference.generate import Generator

    generators: dict[str, Generator] = {}
    continued: dict[str, Any] = {}

    def measure(setting: str, _: int) -> dict[str, float]:
        compute, what = setting.rsplit(" ", 1)
        if compute not in generators:
            generators[compute] = Generator.open(arguments.folder, compute=compute)
            continued[compute] = generators[compute].continuations(rows=max(STREAMS))
        generator = generators[compute]
        rng = np.random.default_rng(0)
        reads, count = what == "read", 1 if what == "read" else int(what)
        texts = continued[compute]
        size = LONG if reads else PROMPT
        asked = [
            texts.add(_prompt(rng, size, generator.module.vocab_size), Sampling(temperature=0)) for _ in range(count)
        ]
        began = time.perf_counter()
        while not all(text.tokens for text in asked):
            texts.step()
        if reads:
            seconds = time.perf_counter() - began
            texts.remove(asked[0])
            return {"seconds": seconds, "examples": LONG}
        first = [len(text.tokens) for text in asked]
        began = time.perf_counter()
        for _ in range(TOKENS):
            texts.step()
        seconds = time.perf_counter() - began
        written = sum(len(text.tokens) for text in asked) - sum(first)
        for text in asked:
            texts.remove(text)
        return {"seconds": seconds, "examples": written}

    return measure


def peer(arguments: argparse.Namespace) -> Callable[[str, int], dict[str, float]]:
    """The same by transformers."""
    import torch
    import transformers

    models: dict[str, Any] = {}

    def measure(setting: str, _: int) -> dict[str, float]:
        kind, what = setting.rsplit(" ", 1)
        dtype = kind
        if dtype not in models:
            models[dtype] = transformers.AutoModelForCausalLM.from_pretrained(
                arguments.folder, dtype=getattr(torch, dtype)
            ).eval()
        model = models[dtype]
        rng = np.random.default_rng(0)
        reads, count = what == "read", 1 if what == "read" else int(what)
        size = LONG if reads else PROMPT
        ids = torch.tensor([_prompt(rng, size, model.config.vocab_size) for _ in range(count)])

        def run(tokens: int) -> float:
            began = time.perf_counter()
            with torch.no_grad():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=tokens,
                    max_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            return time.perf_counter() - began

        if reads:
            return {"seconds": run(1), "examples": LONG}
        return {"seconds": run(TOKENS + 1) - run(1), "examples": TOKENS * count}

    return measure


def llama_cpp(arguments: argparse.Namespace) -> Callable[[str, int], dict[str, float]]:
    """The same by llama.cpp, in the numbers of the file's weights."""
    import llama_cpp as lib

    lib.llama_backend_init()
    threads = len(os.sched_getaffinity(0))
    model = lib.llama_model_load_from_file(arguments.gguf.encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = max(STREAMS) * (LONG + TOKENS), LONG, LONG
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = max(STREAMS), threads, threads
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(LONG, 0, 1)

    def run(rows: list[list[int]], offset: int) -> list[int]:
        """Appends tokens to each text -> the likeliest token after each."""
        n, last = 0, []
        for row, tokens in enumerate(rows):
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, offset + i, 1, row
                batch.logits[n] = i == len(tokens) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        logits = (np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (vocabulary,)) for i in last)
        return [int(row.argmax()) for row in logits]

    def measure(setting: str, _: int) -> dict[str, float]:
        what = setting.rsplit(" ", 1)[1]
        rng = np.random.default_rng(0)
        reads, count = what == "read", 1 if what == "read" else int(what)
        size = LONG if reads else PROMPT
        prompts = [_prompt(rng, size, vocabulary) for _ in range(count)]
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        began = time.perf_counter()
        tokens = run(prompts, 0)
        if reads:
            return {"seconds": time.perf_counter() - began, "examples": LONG}
        began = time.perf_counter()
        for i in range(TOKENS):
            tokens = run([[token] for token in tokens], size + i)
        return {"seconds": time.perf_counter() - began, "examples": TOKENS * count}

    return measure


SIDES = {"ours": ours, "peer": peer, "llama.cpp": llama_cpp}


def compare(arguments: argparse.Namespace) -> str:
    rows = [("ours", compute) for compute in COMPUTE] + [("peer", kind) for kind in PEERS]
    if arguments.gguf:
        rows.append(("llama.cpp", "file"))
    own = [f"--folder={arguments.folder}", *([f"--gguf={arguments.gguf}"] if arguments.gguf else [])]
    sides = {name: Side(__file__, name, own) for name in {side: None for side, _ in rows}}
    whats = [*map(str, STREAMS), "read"]
    settings = [(side, f"{kind} {what}") for what in whats for side, kind in rows]
    for side, setting in settings:  # compiles
        sides[side].measure(setting, 1)
    results = Results()
    results.measure(sides, settings, rounds=arguments.rounds, steps=1)
    for process in sides.values():
        process.close()
    lines = [
        environment("jax", "torch", "transformers"),
        "",
        "| | one text | eight texts | reading a prompt |",
        "|---|---|---|---|",
    ]
    names = {"ours": "this project, ", "peer": "transformers, ", "llama.cpp": "llama.cpp, the "}
    for side, kind in rows:
        rates = [
            f"{results.rate(side, f'{kind} {what}'):.1f} ({results.spread(side, f'{kind} {what}')})" for what in whats
        ]
        lines.append(f"| {names[side]}{kind} | {' | '.join(rates)} |")
    for what in whats:
        best = max(PEERS, key=lambda kind: results.rate("peer", f"{kind} {what}"))
        ratios = [f"{compute} {results.ratio(f'{compute} {what}', f'{best} {what}')}" for compute in COMPUTE]
        lines.append(f"\n{what}: times the best of transformers ({best}): {', '.join(ratios)}")
    return "\n".join(lines)


def perplexity(arguments: argparse.Namespace) -> str:
    """The perplexity of a text in windows of WINDOW tokens, of which each but the first is predicted."""
    import jax

    from research.inference.generate import Generator

    lines = []
    for compute in COMPUTE:
        generator = Generator.open(arguments.folder, compute=compute)
        tokens = generator.tokenizer.encode(Path(arguments.perplexity).read_text()[: arguments.characters]).ids
        rows = np.array(tokens[: len(tokens) // WINDOW * WINDOW], np.int32).reshape(-1, WINDOW)

        @jax.jit
        def losses(variables: Any, row: Any, generator: Generator = generator) -> Any:
            batch = {
                "tokens": row,
                "segments": jax.numpy.ones_like(row),
                "positions": np.arange(WINDOW, dtype=np.int32)[None],
            }
            with generator.products():
                outputs: Any = generator.module.apply(variables, batch, train=False)
            logits = outputs["logits"]
            logprobs = jax.nn.log_softmax(logits[0, :-1].astype(np.float32))
            return -jax.numpy.take_along_axis(logprobs, row[0, 1:, None], axis=-1)

        found = [float(losses(generator.variables, row[None]).mean()) for row in rows]
        lines.append(f"{compute}: perplexity {np.exp(statistics.mean(found)):.3f} over {rows.size:,} tokens")
    return "\n".join(lines)


def uncached(arguments: argparse.Namespace) -> str:
    """Tokens a second of the last 64 of a text of 256 tokens, with the cache and by whole forward passes."""
    import jax
    import jax.numpy as jnp

    from research.core.sampling import Sampling
    from research.inference.generate import Generator

    generator = Generator.open(arguments.folder)
    length, vocab_size = 256, generator.module.vocab_size
    prompt = _prompt(np.random.default_rng(0), length - TOKENS, vocab_size)
    texts = generator.continuations(rows=1)

    @jax.jit
    def following(variables: Any, row: Any, size: Any) -> Any:
        offset = jnp.arange(length)[None]
        batch = {"tokens": row, "segments": jnp.where(offset < size, 1, 0), "positions": offset}
        outputs: Any = generator.module.apply(variables, batch, train=False)
        return jnp.argmax(outputs["logits"][0, size - 1])

    def cached() -> tuple[list[int], float]:
        text = texts.add(prompt, Sampling(temperature=0))
        while not text.tokens:
            texts.step()
        began = time.perf_counter()
        while len(text.tokens) < TOKENS:
            texts.step()
        seconds = time.perf_counter() - began
        texts.remove(text)
        return list(text.tokens), (TOKENS - 1) / seconds

    def whole() -> tuple[list[int], float]:
        row = np.zeros((1, length), np.int32)
        row[0, : len(prompt)] = prompt
        began = time.perf_counter()
        for size in range(len(prompt), length):
            token = int(following(generator.variables, row, size))
            row[0, size : size + 1] = token
        return row[0, len(prompt) :].tolist(), TOKENS / (time.perf_counter() - began)

    found = [(cached(), whole()) for _ in range(arguments.rounds + 1)][1:]  # the first ones compile
    assert all(one == other for (one, _), (other, _) in found), "the texts differ"
    with_cache, without = (statistics.median(pair[side][1] for pair in found) for side in range(2))
    return f"{with_cache:.1f} tokens/s with a cache, {without:.2f} without: {with_cache / without:.1f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--perplexity", help="a text file")
    parser.add_argument("--characters", type=int, default=60_000, help="of the text")
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--gguf", help="a file of llama.cpp with the same model")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(SIDES[arguments.serve], arguments)
        return
    what = perplexity if arguments.perplexity else uncached if arguments.uncached else compare
    print(what(arguments))


if __name__ == "__main__":
    main()
