"""Serve from the command line: run directories -> an HTTP service."""

import dataclasses

from research import cli
from research.serve.limits import Limits


def parser() -> cli.Parser:
    parser = cli.Parser(
        "serve",
        "Answer predictions of runs over HTTP. A model is called as its run directory, or as given: NAME=RUN. "
        "Ready when every batch shape is compiled and each run's sample inputs get their predictions.",
    )
    parser.add_argument("--workdir", action="append", metavar="[NAME=]RUN", help="a run directory; may be repeated")
    parser.add_argument("--checkpoint", default="best", choices=("last", "best"), help="the checkpoint (default: best)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000)")
    parser.add_argument(
        "--compute", default="float32", help="what models compute in: float32 or bfloat16 (default: float32)"
    )
    parser.add_argument(
        "--embed", action="store_true", help="also answer with embeddings of texts; it takes longer to be ready"
    )
    limits = parser.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        limits.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    from research.serve.operations import OPERATIONS
    from research.serve.server import serve

    chosen = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    return serve(
        arguments.workdir,
        Limits(**chosen),
        checkpoint=arguments.checkpoint,
        compute=arguments.compute,
        operations=tuple(OPERATIONS) if arguments.embed else ("predict",),
        host=arguments.host,
        port=arguments.port,
    )


if __name__ == "__main__":
    cli.run(main)
