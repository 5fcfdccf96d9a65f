"""Generate from the command line: a prompt -> text, written as it comes."""

import argparse
import sys
from typing import TYPE_CHECKING

from research import cli

if TYPE_CHECKING:
    from research.inference.generate import Generator, Request


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "generate",
        "Continue texts with a decoder: of a run, or of a folder that transformers saved (GPT-2, Llama). Writes the "
        "text as it comes; of several prompts, each text when all are done.",
    )
    parser.add_argument("--workdir", "--weights", help="a run directory, or a folder with weights (required)")
    parser.add_argument("--checkpoint", default="best", choices=("last", "best"), help="of a run (default: best)")
    parser.add_argument("--prompt", action="append", help="the beginning of a text; may be repeated")
    parser.add_argument(
        "--chat", action="store_true", help="chat: --prompt is the first message; without it, messages are read"
    )
    parser.add_argument("--system", help="with --chat: a message before the others that says how to answer")
    parser.add_argument("--max_tokens", type=int, default=128, help="tokens of a text to write (default: 128)")
    parser.add_argument("--stop", action="append", default=[], help="text before which to stop; may be repeated")
    parser.add_argument(
        "--compute", default="float32", help="float32, bfloat16, or int8 products of linear layers (default: float32)"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.8, help="0: the most likely tokens (default: 0.8)")
    sampling.add_argument("--top_k", type=int, default=0, help="only the k most likely tokens (default: all)")
    sampling.add_argument(
        "--top_p", type=float, default=1.0, help="only the most likely tokens that together are as likely (default: 1)"
    )
    sampling.add_argument(
        "--min_p", type=float, default=0.0, help="only tokens as likely, relative to the most likely one (default: 0)"
    )
    sampling.add_argument("--repetition_penalty", type=float, default=1.0, help="of tokens that were used (default: 1)")
    sampling.add_argument("--seed", type=int, default=0, help="the same seed writes the same text (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    from research.base.errors import UserError
    from research.core.sampling import Sampling
    from research.inference.generate import Generator, Request

    if arguments.max_tokens < 1:
        raise UserError(f"--max_tokens is {arguments.max_tokens}; it must be at least 1")
    if not arguments.prompt and not arguments.chat:
        raise UserError("--prompt is missing: the beginning of a text; or --chat")
    sampling = Sampling(**{name: getattr(arguments, name) for name in Sampling.RANGES})
    generator = Generator.open(arguments.workdir, arguments.checkpoint, compute=arguments.compute)

    def request(tokens: list[int]) -> Request:
        return Request(tokens, sampling, arguments.max_tokens, tuple(arguments.stop))

    if arguments.chat:
        return _chat(generator, request, arguments)
    if len(arguments.prompt) == 1:
        sys.stdout.write(arguments.prompt[0])
        _written(generator, request(generator.encode(arguments.prompt[0])))
        return 0
    texts = [""] * len(arguments.prompt)
    for index, piece in generator.write([request(generator.encode(prompt)) for prompt in arguments.prompt]):
        texts[index] += piece.text
    for prompt, text in zip(arguments.prompt, texts, strict=True):
        print(f"{prompt}{text}\n")
    return 0


def _chat(generator: "Generator", request, arguments: argparse.Namespace) -> int:  # type: ignore[no-untyped-def]
    """Answers a message, or each line of the terminal, until its end."""
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    given = list(arguments.prompt or ())
    if not given:
        print("A message in each line; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            text = given.pop(0) if given else "" if arguments.prompt else input("> ")
        except EOFError:
            return 0
        if not text:
            if arguments.prompt:
                return 0
            continue
        messages.append({"role": "user", "content": text})
        answer = _written(generator, request(generator.chat(messages)))
        messages.append({"role": "assistant", "content": answer})


def _written(generator: "Generator", request: "Request") -> str:
    """Writes a text as it comes -> the text."""
    text = ""
    for _, piece in generator.write([request]):
        text += piece.text
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    print()
    return text


if __name__ == "__main__":
    cli.run(main)
