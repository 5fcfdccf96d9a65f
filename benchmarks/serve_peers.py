# mypy: disable-error-code="import-not-found, import-untyped"
"""What the service is compared with: a model behind FastAPI, as it is usually done, in a process of its own.

python benchmarks/serve_peers.py --kind=pipeline --folder=FOLDER --port=8001    # transformers' pipeline
python benchmarks/serve_peers.py --kind=onnx --folder=FOLDER --port=8001        # ONNX Runtime: model.onnx of the folder
python benchmarks/serve_peers.py --kind=onnx --file=int8.onnx --folder=FOLDER --port=8001
python benchmarks/serve_peers.py --kind=export --folder=FOLDER                  # writes model.onnx and int8.onnx
python benchmarks/serve_peers.py --kind=random --encoder=base --tokenizer=tokenizer.json --folder=FOLDER

FOLDER is one that `python -m research.export` or transformers wrote, or that --kind=random writes: a BERT with random
weights, for measuring a size of which no trained model is at hand. `--workers` requests are computed at the same time,
each with `--threads` threads. POST /predict reads {"inputs": "a text"}, as text-embeddings-inference and the service
do, and answers with the labels' scores. Texts are truncated to 512 tokens.
"""

import argparse
import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import Any

Classify = Callable[[str], list[dict[str, Any]]]


def pipeline(arguments: argparse.Namespace) -> Classify:
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    made = transformers.pipeline(
        "text-classification", model=arguments.folder, top_k=None, device=arguments.device, dtype=arguments.dtype
    )

    def classify(text: str) -> list[dict[str, Any]]:
        (found,) = made([text], truncation=True)
        return list(found)

    return classify


def onnx_session(arguments: argparse.Namespace) -> Classify:
    import numpy as np
    import onnxruntime
    import transformers

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(
        str(Path(arguments.folder, arguments.file)), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder)
    labels = transformers.AutoConfig.from_pretrained(arguments.folder).id2label
    names = [entry.name for entry in session.get_inputs()]

    def classify(text: str) -> list[dict[str, Any]]:
        encoded = tokenizer(text, truncation=True, max_length=512, return_tensors="np", return_token_type_ids=True)
        (logits,) = session.run(None, {name: encoded[name].astype(np.int64) for name in names})
        exponentials = np.exp(logits[0] - logits[0].max())
        scores = exponentials / exponentials.sum()
        return [{"label": labels[c], "score": float(score)} for c, score in enumerate(scores)]

    return classify


def random(arguments: argparse.Namespace) -> None:
    """Writes a folder as transformers does: a BERT with random weights, two classes, and the tokenizer."""
    import transformers
    from bert_finetune import ENCODERS

    sizes = ENCODERS[arguments.encoder]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=arguments.tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )
    tokenizer.save_pretrained(arguments.folder)
    config = transformers.BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_size"],
    )
    transformers.BertForSequenceClassification(config).save_pretrained(arguments.folder)


def export(folder: str) -> None:
    """Writes model.onnx, with the operators that ONNX Runtime fuses for BERT, and its dynamic int8 form, int8.onnx."""
    import onnx
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a text", "another longer text"]
    example = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=True))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    plain, fused, int8 = (Path(folder, name) for name in ("plain.onnx", "model.onnx", "int8.onnx"))
    torch.onnx.export(
        model,
        tuple(example[name] for name in names),
        str(plain),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={**{name: {0: "batch", 1: "length"} for name in names}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    made = optimizer.optimize_model(
        str(plain), "bert", num_heads=heads, hidden_size=width, optimization_options=FusionOptions("bert")
    )
    print("fused:", made.get_fused_operator_statistics())
    made.save_model_to_file(str(fused))
    quantize_dynamic(
        str(fused),
        str(int8),
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of the fused operators' results
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", required=True, choices=("pipeline", "onnx", "export", "random"))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--file", default="model.onnx")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="the pipeline's, such as cuda")
    parser.add_argument("--dtype", default="float32", help="the pipeline's")
    parser.add_argument("--encoder", default="base", help="of --kind=random: a size of bert_finetune.py")
    parser.add_argument("--tokenizer", help="of --kind=random: a BERT tokenizer.json")
    arguments = parser.parse_args()
    if arguments.kind == "export":
        export(arguments.folder)
        return
    if arguments.kind == "random":
        random(arguments)
        return

    import asyncio

    import fastapi
    import pydantic
    import uvicorn

    class Predict(pydantic.BaseModel):
        inputs: str

    classify = {"pipeline": pipeline, "onnx": onnx_session}[arguments.kind](arguments)
    pool = concurrent.futures.ThreadPoolExecutor(arguments.workers)
    app = fastapi.FastAPI()

    @app.post("/predict")
    async def predict(asked: Predict) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(pool, classify, asked.inputs)

    classify("a text")
    uvicorn.run(app, port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
