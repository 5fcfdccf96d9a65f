"""Networks as ONNX graphs: text encoders with a classifier, and models of features.

An encoder's nodes are laid out as PyTorch's exporter lays out BERT's, because ONNX Runtime's optimizer recognizes that
layout: it fuses attention, the residual sums with their LayerNorms, GELU with its bias, and the embeddings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn

from research.base.errors import UserError
from research.compress.extra import imported
from research.models.bert import BertClassifier
from research.models.linear import LinearRegression, LogisticRegression
from research.models.mlp import MLP

if TYPE_CHECKING:
    import onnx

# LayerNormalization is an operator since version 17.
OPSET, IR_VERSION = 17, 8
OUTPUT = "logits"
# The inputs of a text encoder, int64 [batch, length], as transformers names them, by this project's names.
TEXT_INPUTS = {"tokens": "input_ids", "segments": "attention_mask", "type_ids": "token_type_ids"}
FEATURES = "features"

Params = Mapping[str, Any]


def network(module: nn.Module, params: Params) -> "onnx.ModelProto":
    """The graph of a module with these parameters, none in int8; it computes in float32, whatever the module's dtype.

    A text encoder reads input_ids, attention_mask (1 for a token, 0 for padding) and, if it has several token types,
    token_type_ids, each int64 [batch, length]; a model of features reads features, float32 [batch, D]. The output is
    logits [batch, C]; of a regression [batch, 1].

    Raises UserError for any other model, and if the package onnx is not installed.
    """
    write = writer(module)
    onnx = imported("onnx")
    graph = _Graph(onnx)
    write(graph, module, jax.tree.map(lambda x: np.asarray(x, np.float32), dict(params)))
    return graph.model()


def writer(module: nn.Module) -> "Callable[[_Graph, Any, Params], None]":
    """What writes the graph of a module. Raises UserError if it is not supported."""
    found = next((write for kind, write in _WRITERS.items() if type(module) is kind), None)
    if found is None or (isinstance(module, MLP) and (module.mean or module.std)):
        what = f"a {type(module).__name__}" + (" of images" if isinstance(module, MLP) else "")
        known = "text encoders with a classifier (bert), linear, logistic and mlp on features"
        raise UserError(f"{what} can't be written as ONNX; supported are {known}")
    return found


def reads_types(module: BertClassifier) -> bool:
    """Whether the network reads token_type_ids. RoBERTa's encoders have a single type, which needs no input."""
    return module.type_vocab_size > 1


class _Graph:
    """A graph that grows node by node. Its values are known by their names."""

    def __init__(self, onnx: Any):
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        self._inputs.append(self._info(name, dtype, shape))
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """An array that is saved with the graph; one of the same name is saved once."""
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.array(value, dtype, order="C"), name)
        return name

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Appends a node with one output, which has the node's name."""
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def affine(self, x: str, params: Params, name: str) -> str:
        """x · kernel + bias: [..., I] -> [..., O]."""
        product = self.node("MatMul", x, self.constant(f"{name}.kernel", params["kernel"]), name=f"{name}/product")
        # The bias comes first, as the optimizer expects it of PyTorch's exports.
        return self.node("Add", self.constant(f"{name}.bias", params["bias"]), product, name=name)

    def output(self, value: str, classes: int) -> None:
        self.node("Identity", value, name=OUTPUT)
        self._outputs.append(self._info(OUTPUT, "FLOAT", ("batch", classes)))

    def model(self) -> "onnx.ModelProto":
        helper = self._onnx.helper
        made = helper.make_graph(self._nodes, "network", self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model: onnx.ModelProto = helper.make_model(
            made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="research"
        )
        self._onnx.checker.check_model(model)
        return model

    def _info(self, name: str, dtype: str, shape: Sequence[str | int]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, dtype), list(shape))


def _classifier(graph: _Graph, module: BertClassifier, params: Params) -> None:
    """As `research.models.bert.BertClassifier`, for one example in a row: its [CLS] is the row's first token."""
    hidden = _encoder(graph, module, params["encoder"])
    first = graph.node("Gather", hidden, graph.constant("first", 0, np.int64), name="first_token", axis=1)
    pooler = {"tanh": "Tanh", "relu": "Relu"}[module.pooler]
    pooled = graph.node(pooler, graph.affine(first, params["pooler"], "pooler"), name="pooled")
    graph.output(graph.affine(pooled, params["classifier"], "classifier"), module.num_classes)


def _encoder(graph: _Graph, module: BertClassifier, params: Params) -> str:
    """The hidden states [B, L, D]; as `research.models.transformer.Encoder`."""
    tokens, segments = (graph.input(TEXT_INPUTS[name], "INT64", ("batch", "length")) for name in ("tokens", "segments"))
    x = _embeddings(graph, module, params, tokens)
    x = _norm(graph, module, x, params["embedding_norm"], "embedding_norm")
    mask = _mask(graph, segments)
    for i in range(module.num_layers):
        name, layer = f"layer_{i}", params[f"layer_{i}"]
        y = _attention(graph, module, x, mask, layer["attention"], f"{name}/attention")
        x = _residual_norm(graph, module, y, x, layer["attention_norm"], f"{name}/attention_norm")
        y = graph.affine(x, layer["mlp_in"], f"{name}/mlp_in")
        y = _ACTIVATIONS[module.activation](graph, y, f"{name}/activation")
        y = graph.affine(y, layer["mlp_out"], f"{name}/mlp_out")
        x = _residual_norm(graph, module, y, x, layer["mlp_norm"], f"{name}/mlp_norm")
    return x


def _embeddings(graph: _Graph, module: BertClassifier, params: Params, tokens: str) -> str:
    """The sums of the embeddings [B, L, D]. Positions count from 0, also in the padding, which no token attends to."""
    positions = params["position_embedding"]["embedding"][module.position_offset :]
    x = graph.node(
        "Gather", graph.constant("token_embedding", params["token_embedding"]["embedding"]), tokens, name="tokens"
    )
    if reads_types(module):
        types = graph.input(TEXT_INPUTS["type_ids"], "INT64", ("batch", "length"))
        table = graph.constant("type_embedding", params["type_embedding"]["embedding"])
        x = graph.node("Add", x, graph.node("Gather", table, types, name="types"), name="tokens_and_types")
    elif module.type_vocab_size:
        positions = positions + params["type_embedding"]["embedding"]
    zero, one = (graph.constant(f"axis_{i}", [i], np.int64) for i in (0, 1))
    index = graph.constant("length_axis", 1, np.int64)
    length = graph.node("Gather", graph.node("Shape", tokens, name="shape"), index, name="length", axis=0)
    numbers = graph.constant("positions", np.arange(module.max_positions)[None], np.int64)
    end = graph.node("Unsqueeze", length, zero, name="end")
    numbers = graph.node("Slice", numbers, zero, end, one, one, name="own_positions")
    table = graph.constant("position_embedding", positions)
    return graph.node("Add", x, graph.node("Gather", table, numbers, name="position_rows"), name="embeddings")


def _mask(graph: _Graph, segments: str) -> str:
    """What is added to the attention's logits, [B, 1, 1, L]: 0 for tokens, the lowest number for padding."""
    one, two = (graph.constant(f"axis_{i}", [i], np.int64) for i in (1, 2))
    rows = graph.node("Unsqueeze", segments, one, name="mask/rows")
    real = graph.node("Cast", graph.node("Unsqueeze", rows, two, name="mask/heads"), name="mask/real", to=1)  # float32
    padding = graph.node("Sub", graph.constant("one", 1), real, name="mask/padding")
    return graph.node("Mul", padding, graph.constant("lowest", np.finfo(np.float32).min), name="mask")


def _attention(graph: _Graph, module: BertClassifier, x: str, mask: str, params: Params, name: str) -> str:
    """[B, L, D] -> [B, L, D]; as `research.models.transformer.SelfAttention`."""
    heads, size = module.num_heads, module.head_size or module.hidden_size // module.num_heads
    split = graph.constant("heads", [0, 0, heads, size], np.int64)

    def project(what: str, axes: Sequence[int]) -> str:
        y = graph.affine(x, params[what], f"{name}/{what}")
        y = graph.node("Reshape", y, split, name=f"{name}/{what}/heads")
        return graph.node("Transpose", y, name=f"{name}/{what}/transposed", perm=axes)

    query, key = project("query", (0, 2, 1, 3)), project("key", (0, 2, 3, 1))  # [B, H, L, K], [B, H, K, L]
    value = project("value", (0, 2, 1, 3))
    logits = graph.node("MatMul", query, key, name=f"{name}/products")
    logits = graph.node("Div", logits, graph.constant("root", math.sqrt(size)), name=f"{name}/scaled")
    logits = graph.node("Add", logits, mask, name=f"{name}/logits")
    probabilities = graph.node("Softmax", logits, name=f"{name}/probabilities", axis=-1)
    mixed = graph.node("MatMul", probabilities, value, name=f"{name}/mixed")
    mixed = graph.node("Transpose", mixed, name=f"{name}/by_token", perm=(0, 2, 1, 3))
    joined = graph.constant("joined", [0, 0, heads * size], np.int64)
    mixed = graph.node("Reshape", mixed, joined, name=f"{name}/joined")
    return graph.affine(mixed, params["output"], f"{name}/output")


def _residual_norm(graph: _Graph, module: BertClassifier, y: str, x: str, params: Params, name: str) -> str:
    return _norm(graph, module, graph.node("Add", y, x, name=f"{name}/sum"), params, name)


def _norm(graph: _Graph, module: BertClassifier, x: str, params: Params, name: str) -> str:
    scale, bias = (graph.constant(f"{name}.{what}", params[what]) for what in ("scale", "bias"))
    return graph.node("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=module.layer_norm_eps)


def _gelu(graph: _Graph, x: str, name: str) -> str:
    """x · (1 + erf(x / √2)) / 2."""
    y = graph.node("Div", x, graph.constant("root_of_2", math.sqrt(2)), name=f"{name}/scaled")
    y = graph.node("Erf", y, name=f"{name}/erf")
    y = graph.node("Add", y, graph.constant("one", 1), name=f"{name}/sum")
    y = graph.node("Mul", x, y, name=f"{name}/product")
    return graph.node("Mul", y, graph.constant("half", 0.5), name=name)


def _gelu_tanh(graph: _Graph, x: str, name: str) -> str:
    """x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    y = graph.node("Pow", x, graph.constant("three", 3), name=f"{name}/cube")
    y = graph.node("Mul", y, graph.constant("cubic", 0.044715), name=f"{name}/cubic")
    y = graph.node("Add", x, y, name=f"{name}/polynomial")
    y = graph.node("Mul", y, graph.constant("root_of_2_over_pi", math.sqrt(2 / math.pi)), name=f"{name}/scaled")
    y = graph.node("Tanh", y, name=f"{name}/tanh")
    y = graph.node("Add", y, graph.constant("one", 1), name=f"{name}/sum")
    half = graph.node("Mul", x, graph.constant("half", 0.5), name=f"{name}/half")
    return graph.node("Mul", half, y, name=name)


def _relu(graph: _Graph, x: str, name: str) -> str:
    return graph.node("Relu", x, name=name)


def _linear(graph: _Graph, module: Any, params: Params) -> None:
    """As `research.models.linear`: regression, and logistic regression, of which a first class may have no weights."""
    kernel, bias = params["linear"]["kernel"], params["linear"]["bias"]
    classes = getattr(module, "num_classes", 1)
    lacking = classes - kernel.shape[1]
    padded = {"kernel": np.pad(kernel, ((0, 0), (lacking, 0))), "bias": np.pad(bias, (lacking, 0))}
    features = graph.input(FEATURES, "FLOAT", ("batch", len(kernel)))
    graph.output(graph.affine(features, padded, "linear"), classes)


def _mlp(graph: _Graph, module: MLP, params: Params) -> None:
    """As `research.models.mlp.MLP` of features."""
    layers = [f"dense_{i}" for i in range(len(module.hidden_sizes))]
    x = graph.input(FEATURES, "FLOAT", ("batch", len(params[(*layers, "classifier")[0]]["kernel"])))
    for name in layers:
        x = _relu(graph, graph.affine(x, params[name], name), f"{name}/relu")
    x = graph.affine(x, params["classifier"], "classifier")
    if (module.output_mean, module.output_std) != (0.0, 1.0):
        x = graph.node("Mul", x, graph.constant("output_std", module.output_std), name="scaled")
        x = graph.node("Add", x, graph.constant("output_mean", module.output_mean), name="shifted")
    graph.output(x, module.num_classes)


_ACTIVATIONS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu}

_WRITERS: dict[type, Any] = {
    BertClassifier: _classifier,
    LinearRegression: _linear,
    LogisticRegression: _linear,
    MLP: _mlp,
}
