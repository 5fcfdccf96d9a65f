"""The part `serve` of accelerator.py: a service of BERT-base's size, compared with transformers' pipeline, in bfloat16.

Starts serve.py on a folder with random weights, whose labels mean nothing: only the size matters.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from parts import Deadline, Emit, Line

HERE = Path(__file__).parent
BATCH_ITEMS = 16_384


def serve(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Emits the lines of serve.py as they come, and at the end the seconds that were left."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts")
        texts.write_text("\n".join(_texts(512)))
        tokenizer = options.tokenizer or str(HERE.parent / ".gpu" / "tokenizer.json")
        encoder = "tiny" if options.rehearse else "base"
        kind = ["--kind=random", f"--encoder={encoder}", f"--tokenizer={tokenizer}", f"--folder={folder}/model"]
        subprocess.run([sys.executable, str(HERE / "serve_peers.py"), *kind], check=True)
        command = [sys.executable, str(HERE / "serve.py"), f"--run={folder}/model", f"--folder={folder}/model"]
        command += [f"--texts={texts}", "--compute=bfloat16", "--rounds=1", "--seconds=2", "--light_seconds=4"]
        command += ["--dtype=bfloat16", "--device=cpu" if options.rehearse else "--device=cuda"]
        for replicas, only in ((1, "bfloat16$|pipeline, 1"), (2, "bfloat16$")):
            service = f"--batch_items={BATCH_ITEMS} --replicas={replicas}"
            _measure([*command, f"--only={only}", f"--service={service}"], emit, {"encoder": encoder, "flags": service})
        emit({"encoder": encoder, "seconds_left": round(deadline.remaining, 1)})


def _measure(command: list[str], emit: Emit, facts: Line) -> None:
    environ = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    assert process.stdout is not None
    for line in process.stdout:
        emit({**facts, "serve": line.rstrip()})
    if process.wait():
        raise RuntimeError(f"serve.py ended with exit code {process.returncode}")


def _texts(count: int) -> list[str]:
    """SST-2's dev sentences if it is prepared, otherwise the embedded corpus's."""
    from research.data.sources import sentiment, tfds_source

    if tfds_source.folder("glue/sst2", None) is None:
        return [str(text) for text in sentiment.sentiment()["validation"]["sentence"][:count]]
    import tensorflow_datasets as tfds

    source = tfds.data_source("glue/sst2", split="validation")
    return [source[i]["sentence"].decode() for i in range(min(count, len(source)))]
