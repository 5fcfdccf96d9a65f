"""A service of tiny decoders."""

import contextlib
import json
import time

from research.serve.limits import Limits
from research.serve.writer import Writer
from tests.generation.generate_test import CHATML
from tests.interop import tiny_decoder
from tests.serve.conftest import serving

LIMITS = Limits(texts=2, queue_texts=2, text_tokens=32)


def write_chat_model(folder):
    """Writes the folder of a decoder with a template for chats."""
    tiny_decoder.write(folder, "llama")
    settings = {"chat_template": CHATML, "eos_token": tiny_decoder.END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@contextlib.contextmanager
def serving_decoders(generators, models=(), limits=LIMITS, serving=serving, **options):
    """A service of decoders, and of other models, both by name -> (its URL, the service)."""
    with serving(dict(models), limits, **options) as (url, service):
        service.states = dict.fromkeys(generators, "ready")
        for name, generator in generators.items():
            writer = Writer(name, generator, limits)
            for _ in writer.warm_up():
                pass
            writer.start()
            service.install(writer)
        while service.writers.keys() != generators.keys():
            time.sleep(0.01)
        yield url, service


def slow_down(writer, monkeypatch, seconds):
    """Makes each token take so long."""
    step = writer._continuations.step
    monkeypatch.setattr(writer._continuations, "step", lambda: [time.sleep(seconds), step()][1])


def wait_until_idle(writer, seconds):
    """Whether nothing is being written any more, at the latest after some seconds."""
    until = time.monotonic() + seconds
    while writer.waiting and time.monotonic() < until:
        time.sleep(0.01)
    return not writer.waiting
