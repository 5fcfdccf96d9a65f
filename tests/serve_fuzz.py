"""Fuzzes the service: no request may end in a server error, take long, or disturb the next one.

python -m tests.serve_fuzz --count=10000 [--seed=0] [--show]

Tiny runs of every family are trained and served by a process of its own, and a decoder with a template for chats.
THREADS clients send it the cases of tests/serve_bodies.py, and a good request after each; meanwhile others open
connections that send slowly, stop in the middle, or do not read (tests/serve_attacks.py). Every answer must come within
ANSWER_SECONDS, have a status below 500, and be JSON if it is an error, or events if it is a stream; the good ones must
have the same prediction as before. At the end, every model must predict as at the start, and no text be left.
"""

import argparse
import collections
import dataclasses
import http.client
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from research import api
from research.client import Client
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.interop import tiny_decoder
from tests.serve import process
from tests.serve.conftest import CONFIGS, TEXTS
from tests.serve_attacks import ATTACKS
from tests.serve_bodies import Case, case

THREADS = 4
ATTACKERS = 8
ANSWER_SECONDS = 10.0
POSITIONS = 256  # of the decoder that chats
BODY_MS = 1500.0
# Texts are given up before a client would, however slow the machine is.
TIMES = (f"--body_ms={BODY_MS}", "--queue_ms=60000", "--timeout_ms=7000", "--text_ms=8000")
FLAGS = (*TIMES, "--embed", "--log=none", "--batch_items=150", "--batch_rows=4")

GOOD: dict[str, list[Any]] = {
    "features": [[0.01 * i for i in range(10)]],
    "image": [[[[float(row * column % 17)] for column in range(8)] for row in range(8)]],
    "text": list(TEXTS),
    "pair": [{"sentence1": "a dull film", "sentence2": "the film is dull"}],
    "table": [{"size": 1.5, "group": "a"}],
}
_PRESENT = ("research_texts_active", "research_texts_waiting")
WRITERS = ("chat", "gpt")


def train(folder: Path) -> dict[str, str]:
    """Runs by name, as in GOOD and WRITERS."""
    table = {
        "data.train": str(tiny.own_file(folder / "own", "table")),
        "data.transform.label": "label",
        "data.transform.inputs": ("size", "group"),
    }
    with pytest.MonkeyPatch.context() as patch:
        tiny.few_sentences(patch)
        tiny.few_documents(patch)
        tiny.tfds(patch)
        for name, config in {**CONFIGS, "pair": lambda: tiny.bert_glue_task("mrpc", steps=3)}.items():
            train_and_evaluate(config(), folder / name, show=False)
        train_and_evaluate(tiny.gpt(steps=3), folder / "gpt", show=False)
        api.fit("tabular_files:linear", workdir=folder / "table", show=False, **table)
    tiny_decoder.write_chat(folder / "chat", max_position_embeddings=POSITIONS)
    return {name: str(folder / name) for name in (*GOOD, *WRITERS)}


@dataclasses.dataclass
class Found:
    """What came of all cases."""

    statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    slowest_good: float = 0.0


class Connection:
    """Sends requests on one connection, opened again where the service closed it."""

    def __init__(self, port: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)

    def ask(self, asked: Case) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError or HTTPException if there is none."""
        for attempt in range(2):
            fresh = self._connection.sock is None
            try:
                self._connection.putrequest(asked.method, asked.path, skip_accept_encoding=True)
                for name, value in {**asked.headers, "Content-Length": str(len(asked.body))}.items():
                    self._connection.putheader(name, value.encode())
                self._connection.endheaders(asked.body)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (ConnectionError, http.client.RemoteDisconnected):
                self._connection.close()
                if fresh or attempt:
                    raise
            except BaseException:
                self._connection.close()
                raise
        raise AssertionError


def verdict(asked: Case, status: int, body: bytes, seconds: float) -> str | None:
    """What is wrong with an answer."""
    if status >= 500:
        return f"status {status}"
    if seconds > ANSWER_SECONDS:
        return f"{seconds:.1f} s"
    if status == 200 and body.startswith(b"data: "):
        return _wrong_events(body)
    if status >= 400 and asked.method != "HEAD":
        try:
            return None if isinstance(json.loads(body)["error"], str | dict) else "an error that is not text"
        except (ValueError, KeyError, TypeError):
            return f"status {status} with the body {body[:100]!r}"
    return None


def _wrong_events(body: bytes) -> str | None:
    """What is wrong with a stream."""
    *events, last, nothing = body.split(b"\n\n")
    if nothing or not all(event.startswith(b"data: ") for event in (*events, last)):
        return f"events that are cut: {body[-100:]!r}"
    try:
        found = [json.loads(event[6:]) for event in events]
        if last == b"data: [DONE]":
            return None if all("choices" in each for each in found) else "an event without choices"
        return None if json.loads(last[6:])["error"]["code"] < 500 else f"the last event {last!r}"
    except (ValueError, KeyError, TypeError):
        return f"events that end with {body[-100:]!r}"


class Fuzz:
    """Clients of a service that share the cases."""

    def __init__(self, port: int, cases: Iterator[tuple[int, Case]], *, attackers: int = ATTACKERS, show: bool = False):
        self.found = Found()
        self.stopped = threading.Event()
        self._port = port
        self._cases = cases
        self._attackers = attackers
        self._show = show
        self._lock = threading.Lock()
        body = json.dumps({"inputs": GOOD["features"]}).encode()
        self._good = Case("good", "/models/features/predict", {"Content-Type": "application/json"}, body)
        self._expected = json.loads(Connection(port).ask(self._good)[1])["predictions"][0]["prediction"]

    def run(self) -> None:
        workers = [threading.Thread(target=self._work) for _ in range(THREADS)]
        attackers = [threading.Thread(target=self._attack, args=(number,)) for number in range(self._attackers)]
        for thread in (*workers, *attackers):
            thread.start()
        for thread in workers:
            thread.join()
        self.stopped.set()
        for thread in attackers:
            thread.join()

    def _work(self) -> None:
        bad, good = Connection(self._port), Connection(self._port)
        while True:
            with self._lock:
                number, asked = next(self._cases, (-1, None))
            if asked is None:
                return
            outcome, seconds = self._ask(bad, asked)
            self._note(f"{number} {asked.kind} {asked.method} {asked.path}", asked, outcome, seconds)
            (status, body), seconds = self._ask(good, self._good)
            with self._lock:
                self.found.slowest_good = max(self.found.slowest_good, seconds)
                if status != 200 or json.loads(body)["predictions"][0]["prediction"] != self._expected:
                    self.found.wrong.append(f"{number}: the good request after it: {status} {body[:200]!r}")

    def _ask(self, connection: Connection, asked: Case) -> tuple[tuple[int, bytes], float]:
        began = time.monotonic()
        try:
            outcome = connection.ask(asked)
        except (OSError, http.client.HTTPException) as error:
            outcome = 0, repr(error).encode()
        return outcome, time.monotonic() - began

    def _note(self, name: str, asked: Case, outcome: tuple[int, bytes], seconds: float) -> None:
        status, body = outcome
        wrong = verdict(asked, status, body, seconds) if status else f"no answer: {body.decode()}"
        with self._lock:
            self.found.statuses[str(status)] += 1
            self.found.slowest = max(self.found.slowest, seconds)
            if wrong:
                self.found.wrong.append(f"{name}: {wrong}; sent {asked.headers} {asked.body[:300]!r}")
            if self._show or wrong:
                print(f"{name} {status} {seconds:.2f}s {wrong or ''}", flush=True)

    def _attack(self, number: int) -> None:
        rng = random.Random(number)
        while not self.stopped.is_set():
            attack = rng.choice(ATTACKS)
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS) as connection:
                    attack(connection, rng)
            except TimeoutError:
                with self._lock:
                    self.found.wrong.append(f"{attack.__name__} is still open after {time.monotonic() - began:.0f} s")
            except OSError:  # closed by the service
                pass
            with self._lock:
                self.found.statuses[attack.__name__] += 1


def _predictions(url: str) -> dict[str, Any]:
    with Client(url) as client:
        found: dict[str, Any] = {
            name: [each.prediction for each in client.predict(name, inputs)] for name, inputs in GOOD.items()
        }
        found["embed"] = len(client.embed(TEXTS, model="text"))
    for name in WRITERS:
        body = {"model": name, "prompt": "The", "max_tokens": 8, "temperature": 0}
        found[name] = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]
    return found


def _texts_left(url: str) -> float:
    """The texts that are being written, or wait, after all requests have ended."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_PRESENT))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve_fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first case to send")
    parser.add_argument("--attackers", type=int, default=ATTACKERS, help="connections that are held open meanwhile")
    parser.add_argument("--show", action="store_true", help="print each case when it is answered")
    arguments = parser.parse_args(argv)
    cases = ((number, case(arguments.seed, number)) for number in range(arguments.start, arguments.count))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with process.process(train(folder), folder / "log", *FLAGS) as (service, url):
            before = _predictions(url)
            fuzz = Fuzz(int(url.rpartition(":")[2]), cases, attackers=arguments.attackers, show=arguments.show)
            memory, began = process.resident(service.pid), time.monotonic()
            fuzz.run()
            seconds, found = time.monotonic() - began, fuzz.found
            time.sleep(1)
            if service.poll() is not None:
                print("\n".join(found.wrong[:50]), f"the service ended with {service.returncode}", sep="\n")
                return 1
            if _texts_left(url):
                found.wrong.append(f"{_texts_left(url):g} texts are left")
            if _predictions(url) != before:
                found.wrong.append("the predictions are not those from before")
            after, files = process.resident(service.pid), process.descriptors(service.pid)
            said = (folder / "log").read_text().splitlines()
    found.wrong += [line for line in said if "failed: " in line or "Traceback" in line]
    print("\n".join(found.wrong[:50]))
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(found.statuses.items()))
    print(
        f"{arguments.count - arguments.start} requests in {seconds:.0f} s ({statuses}); slowest {found.slowest:.2f} s, "
        f"slowest good one {found.slowest_good:.2f} s; memory {memory:.0f} -> {after:.0f} MiB, {files} files open; "
        f"{len(found.wrong)} wrong"
    )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
