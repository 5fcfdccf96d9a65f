# mypy: disable-error-code="import-not-found, import-untyped"
"""A ResNet-18 of 32×32 images, or a logistic regression, as a service, beside one written by hand with FastAPI.

python benchmarks/serve_families.py --kind=resnet18 --run=RUN     # of resnet_cifar10:resnet18, of any number of steps
python benchmarks/serve_families.py --kind=logistic --run=RUN     # of logistic_digits

The peers are ResNet-18 in torch, with random weights, and scikit-learn's LogisticRegression, each computing one request
at a time on all cores, and one on each core. A request has one input: a PNG of random pixels in base64, or a digit's
8×8×1 pixels. The figures are those of serve.py. The service's cache is off. Needs the `serve` and `parity` extras.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serve import Side, measure, started, table
from turns import environment

COUNT = 256  # inputs


def images() -> list[Any]:
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for _ in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def digits() -> list[Any]:
    from sklearn.datasets import load_digits

    rows: list[Any] = load_digits().images[:COUNT, :, :, None].tolist()
    return rows


INPUTS = {"resnet18": images, "logistic": digits}


def torch_resnet(threads: int) -> Callable[[Any], list[float]]:
    import torch
    from PIL import Image
    from resnet_train import _peer_network

    torch.set_num_threads(threads)
    network = _peer_network("resnet18", "transformers").eval().to(memory_format=torch.channels_last)

    def classify(image: str) -> list[float]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"), np.float32)
        x = torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
        with torch.inference_mode():
            scores: list[float] = network(x.to(memory_format=torch.channels_last)).logits.softmax(-1)[0].tolist()
        return scores

    return classify


def sklearn_logistic(threads: int) -> Callable[[Any], list[float]]:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    data = load_digits()
    fitted = LogisticRegression(max_iter=2000).fit(data.data, data.target)

    def classify(image: list[list[float]]) -> list[float]:
        scores: list[float] = fitted.predict_proba(np.asarray(image).reshape(1, -1))[0].tolist()
        return scores

    return classify


PEERS = {"resnet18": torch_resnet, "logistic": sklearn_logistic}


def serve_peer(arguments: argparse.Namespace) -> None:
    import asyncio

    import fastapi
    import pydantic
    import uvicorn

    class Predict(pydantic.BaseModel):
        inputs: Any

    classify = PEERS[arguments.kind](arguments.threads)
    pool = concurrent.futures.ThreadPoolExecutor(arguments.workers)
    app = fastapi.FastAPI()

    @app.post("/predict")
    async def predict(asked: Predict) -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(pool, classify, asked.inputs)

    classify(INPUTS[arguments.kind]()[0])
    uvicorn.run(app, port=arguments.port, log_level="warning", access_log=False)


def sides(arguments: argparse.Namespace) -> list[Side]:
    ours = [sys.executable, "-m", "research.serve", f"--workdir=model={arguments.run}", "--log=none"]
    found = [Side("this project", [*ours, "--cache_entries=0"], 0, "/v2/health/ready", path="/models/model/predict")]
    cores = os.cpu_count() or 1
    name = {"resnet18": "torch", "logistic": "scikit-learn"}[arguments.kind]
    for workers in sorted({1, cores}):
        peer = [sys.executable, __file__, "--serve", f"--kind={arguments.kind}", f"--workers={workers}"]
        found.append(Side(f"{name}, {workers} at a time", [*peer, f"--threads={cores // workers}"], 0))
    for number, side in enumerate(found):
        side.port = arguments.port + number
        side.command.append(f"--port={side.port}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", required=True, choices=tuple(INPUTS))
    parser.add_argument("--run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a trial of a rate")
    parser.add_argument("--light_seconds", type=float, default=6.0, help="at light load")
    parser.add_argument("--p99_ms", type=float, default=100.0)
    parser.add_argument("--port", type=int, default=8200, help="the first of the ports to use")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_peer(arguments)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        bodies = {"ours": Path(folder, "ours"), "peer": Path(folder, "peer")}
        inputs = INPUTS[arguments.kind]()
        bodies["ours"].write_text("\n".join(json.dumps({"inputs": [each]}) for each in inputs))
        bodies["peer"].write_text("\n".join(json.dumps({"inputs": each}) for each in inputs))
        found = sides(arguments)
        for side in found:
            print(f"{side.name}: ready after {servers.enter_context(started(side)):.1f} s", file=sys.stderr)
        for number in range(arguments.rounds):
            for side in found:
                measure(side, bodies["ours" if side is found[0] else "peer"], arguments, seed=number)
        print(environment("jax", "torch", "scikit-learn", "fastapi"))
        print("\n".join(table(found, arguments.p99_ms)))


if __name__ == "__main__":
    main()
