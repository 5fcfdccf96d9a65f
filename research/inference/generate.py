"""Text from a decoder: of a run, or of a folder that transformers saved.

generator = Generator.open("runs/gpt")
for index, piece in generator.write([Request(generator.encode("Once"), Sampling(seed=1))]):
    print(piece.text, end="")
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from research.base.errors import UserError
from research.base.paths import local, read_json
from research.core.quantization import dequantized, int8_products, is_quantized, quantized
from research.core.sampling import Sampling
from research.data.text.chat_template import ChatTemplate
from research.data.text.chats import ChatEncoder
from research.data.text.language_model import LanguageModelEncoder
from research.data.text.wordpiece import without_limits
from research.inference.continuations import Continuation, Continuations
from research.inference.folder import is_folder
from research.inference.model import DTYPES, open_model
from research.inference.writing import Piece, Writing
from research.interop.decoders import DECODERS
from research.interop.networks import read_network
from research.interop.tensors import weights_version
from research.models.decoder import Decoder
from research.runs.rundir import RunDir

if TYPE_CHECKING:
    import tokenizers

COMPUTE = ("float32", "bfloat16", "int8")
# On a CPU, XLA's products of a single row in int8 or bfloat16 take two to three times as long as those of two
# (benchmarks/results/generate.md).
_LEAST = 2
LONGEST = 2048  # tokens of a text with its prompt, unless more are asked for
_GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to write.

    Attributes:
      prompt: its tokens so far.
      max_tokens: those to add at most.
      stop: strings before which the text ends.
      top: how many of the most likely tokens are listed with each token.
    """

    prompt: Sequence[int]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    max_tokens: int = 128
    stop: Sequence[str] = ()
    top: int = 0


@dataclasses.dataclass(frozen=True)
class Generator:
    """A decoder with its tokenizer.

    Attributes:
      begins: the token before every text; None if there is none.
      ends: the tokens at which a text stops.
      template: of chats; None if the model has none.
      version: the step of the checkpoint, or a hash of the weights.
      compute: what it computes in, of COMPUTE; int8 is the products of linear layers.
    """

    module: Decoder
    variables: Mapping[str, Any]
    tokenizer: "tokenizers.Tokenizer"
    begins: int | None
    ends: frozenset[int]
    template: ChatTemplate | None
    version: str
    compute: str = "float32"

    @classmethod
    def open(cls, path: str | Path, checkpoint: str = "best", *, compute: str = "float32") -> "Generator":
        """Opens a run directory or a folder; its weights are kept in the dtype of `compute`.

        Raises UserError if it is no decoder, or can't be read.
        """
        if compute not in COMPUTE:
            raise UserError(f"compute is {compute!r}; known: {', '.join(COMPUTE)}")
        dtype = "float32" if compute == "int8" else compute
        folder = local(path).absolute()
        opened = _folder(folder, dtype) if is_folder(folder) else _run(RunDir.open(path), checkpoint, dtype)
        if is_quantized(opened.variables):  # rounding again gives the same integers
            opened, compute = dataclasses.replace(opened, variables=dequantized(opened.variables)), "int8"
        module, variables = _untied(opened.module, opened.variables)
        variables = jax.tree.map(lambda x: jnp.asarray(x, DTYPES[dtype]), variables)
        if compute == "int8":
            batch = {name: np.ones((1, 1), np.int32) for name in ("tokens", "segments", "positions")}
            variables = quantized(variables, lambda variables: module.apply(variables, batch, train=False))
        return dataclasses.replace(opened, module=module, variables=variables, compute=compute)

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, after the one that begins texts."""
        tokens = list(self.tokenizer.encode(text).ids)
        return tokens if self.begins is None or tokens[:1] == [self.begins] else [self.begins, *tokens]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of the prompt for the assistant's next message. Raises UserError without a template for chats."""
        if self.template is None:
            raise UserError("the model has no chat template: it continues texts, but was not trained to chat")
        return list(self.tokenizer.encode(self.template.prompt(messages), add_special_tokens=False).ids)

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the module is traced."""
        return int8_products() if self.compute == "int8" else contextlib.nullcontext()

    def continuations(self, *, rows: int, length: int = LONGEST) -> Continuations:
        """What continues several texts at the same time."""
        least = 1 if self.compute == "float32" else _LEAST
        return Continuations(self.module, self.variables, rows=rows, length=length, products=self.products, least=least)

    def check(self, request: Request, length: int) -> None:
        """Raises UserError if a text has no prompt, or one with no room for another token, or with unknown tokens."""
        if not request.prompt:
            raise UserError("the prompt is empty, and the model has no token that begins texts")
        if len(request.prompt) >= length:
            raise UserError(f"the prompt has {len(request.prompt)} tokens; a text has at most {length} with its prompt")
        size = self.module.vocab_size
        unknown = next((token for token in request.prompt if not 0 <= token < size), None)
        if unknown is not None:
            raise UserError(f"a token of the prompt is {unknown}; the model's are 0 to {size - 1}")

    def writing(self, request: Request, length: int) -> Writing:
        """The request's text in the making; it has at most `length` tokens with its prompt."""
        room = min(request.max_tokens, length - len(request.prompt))
        return Writing(self.tokenizer, ends=self.ends, stop=request.stop, max_tokens=room)

    def write(
        self, requests: Sequence[Request], *, rows: int = 8, length: int = LONGEST
    ) -> Iterator[tuple[int, Piece]]:
        """Writes all texts -> the pieces as they come, with the index of their request.

        Raises UserError as `check` does.
        """
        continuations = self.continuations(rows=rows, length=length)
        texts: dict[Continuation, tuple[int, Writing]] = {}
        for index, request in enumerate(requests):
            self.check(request, continuations.length)
            added = continuations.add(request.prompt, request.sampling, top=request.top)
            texts[added] = index, self.writing(request, continuations.length)
        while texts:
            for continuation, token in continuations.step():
                index, writing = texts[continuation]
                piece = writing.add(token)
                if piece.finish:
                    continuations.remove(continuation)
                    del texts[continuation]
                yield index, piece


def is_decoder(path: str | Path) -> bool:
    """Whether a run directory, or a folder of transformers, has a decoder. Raises UserError if it can't be read."""
    folder = local(path).absolute()
    if is_folder(folder):
        return read_json(folder / "config.json").get("model_type") in DECODERS.model_types
    model = RunDir.open(path).config()["model"]
    return bool(model["name"] == "decoder")


def folder_version(folder: Path) -> str:
    """The version of a decoder in a folder: a short hash of its weights."""
    return weights_version(folder)


def _untied(module: Decoder, variables: Mapping[str, Any]) -> tuple[Decoder, dict[str, Any]]:
    """The same decoder with an output layer of its own.

    To multiply by the transposed embedding takes XLA several times as long on a CPU.
    """
    params = dict(variables["params"])
    if module.tie_embeddings:
        params["head"] = {"kernel": np.ascontiguousarray(np.asarray(params["token_embedding"]["embedding"]).T)}
    return module.clone(tie_embeddings=False), {**variables, "params": params}


def _folder(folder: Path, dtype: str) -> Generator:
    network = read_network(folder)
    if network.model != "decoder":
        raise UserError(f"{folder} has a {network.model}; only decoders write texts")
    transform = network.spec.transform
    if "tokenizer" not in transform:
        raise UserError(f"{folder} has no tokenizer.json")
    import tokenizers

    tokenizer = without_limits(tokenizers.Tokenizer.from_file(transform["tokenizer"]))
    module = network.module(DTYPES[dtype])
    assert isinstance(module, Decoder)
    return Generator(
        module=module,
        variables=network.variables(),
        tokenizer=tokenizer,
        begins=None,  # the tokenizer adds what the model was trained with
        ends=_ends(folder),
        template=ChatTemplate.of(folder),
        version=folder_version(folder),
    )


def _ends(folder: Path) -> frozenset[int]:
    """The tokens that end a text, of a folder's files."""
    found: set[int] = set()
    for name in ("config.json", _GENERATION):
        ends = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        found |= {end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)}
    return frozenset(found)


def _run(run: RunDir, checkpoint: str, dtype: str) -> Generator:
    model = open_model(run, checkpoint, dtype=dtype).single
    module, encoder = model.module, model.encoder
    if not isinstance(module, Decoder) or not isinstance(encoder, LanguageModelEncoder | ChatEncoder):
        raise UserError(f"{run.path} has the model {model.config.model.name!r}; only decoders write texts")
    template: ChatTemplate | None = None
    if isinstance(encoder, ChatEncoder):  # whose template writes what the model was trained with
        begins, ends, template = None, encoder.ends, encoder.template
    else:
        begins, ends = encoder.end, frozenset() if encoder.end is None else frozenset({encoder.end})
    return Generator(
        module=module,
        variables=jax.device_get(model.variables),
        tokenizer=encoder.tokenizer,
        begins=begins,
        ends=ends,
        template=template,
        version=str(model.step),
    )
