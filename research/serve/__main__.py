"""Serve from the command line: run directories and folders of transformers -> an HTTP service."""

import dataclasses
import functools
from collections.abc import Callable

from research import cli
from research.base.errors import UserError
from research.serve.limits import Limits


def parser() -> cli.Parser:
    parser = cli.Parser(
        "serve",
        "Answer predictions of runs, and of folders that transformers saved, over HTTP. A model is called as its "
        "folder, or as given: NAME=FOLDER. Ready when every batch shape is compiled and each run's sample inputs get "
        "their predictions.",
    )
    _add_models(parser)
    parser.add_argument("--checkpoint", default="best", choices=("last", "best"), help="of runs (default: best)")
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="what runs the service: this process, or replicas of it in Ray Serve (default: local)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000)")
    parser.add_argument(
        "--compute",
        default="float32",
        choices=("auto", "float32", "bfloat16", "int8"),
        help="what models compute in; int8 is for dense layers; auto: the fastest that agrees with float32 on the "
        "run's sample inputs, as measured at the start (default: float32)",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        help="the batches that each device computes at once (default: 2 on a CPU with several cores, else 1)",
    )
    parser.add_argument(
        "--embed",
        action="store_true",
        help="also answer with embeddings of texts, as a text encoder without a head always does; it takes longer to "
        "be ready",
    )
    parser.add_argument(
        "--log",
        default="json",
        choices=("json", "text", "none"),
        help="how each request is logged to stderr, without its inputs (default: json)",
    )
    parser.add_argument(
        "--tracing",
        action="store_true",
        help="send a span of each request to OpenTelemetry's collector, which its environment variables name",
    )
    _add_access(parser)
    _add_ray(parser)
    limits = parser.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        limits.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return parser


def _add_models(parser: cli.Parser) -> None:
    parser.add_argument(
        "--workdir",
        action="append",
        metavar="[NAME=]FOLDER",
        help="a run directory, or a folder with the config.json and the safetensors of transformers; may be repeated",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="as --workdir, for a run of research.compress with a valid certificate; may be repeated",
    )
    parser.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        help="the most points by which the metric of a compressed run may have fallen (default: 1)",
    )
    parser.add_argument(
        "--uncertified", action="store_true", help="serve compressed runs whatever their certificates say"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=MODEL:WEIGHT,MODEL:WEIGHT",
        help="a name whose requests go to several of the models by weight, such as sst2=a:90,b:10; may be repeated",
    )


def _add_access(parser: cli.Parser) -> None:
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api_keys_file",
        metavar="FILE",
        help="only answer requests with a key of this file, which `python -m research.serve_keys NAME` makes lines for",
    )
    access.add_argument(
        "--rate",
        type=float,
        help="the requests a second of each key, or of each address if there are no keys; twice as many at once "
        "(default: any)",
    )
    access.add_argument("--open_metrics", action="store_true", help="answer /metrics without a key")


def _add_ray(parser: cli.Parser) -> None:
    ray = parser.add_argument_group("Ray Serve, with --engine=ray", "Each replica is a process with all the models.")
    ray.add_argument("--min_replicas", type=int, help="the least replicas (default: 1)")
    ray.add_argument("--max_replicas", type=int, help="the most replicas (default: as many)")
    ray.add_argument(
        "--target_requests",
        type=float,
        help="the requests that each replica should be answering, by which their number is chosen (default: 32)",
    )
    ray.add_argument("--replica_cpus", type=float, help="the CPUs that Ray reserves for a replica (default: 1)")
    ray.add_argument("--replica_gpus", type=float, help="the GPUs that it gets (default: 0)")
    ray.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="the cluster to deploy to, such as auto, replacing one after the other the replicas that are there "
        "(default: a new one, as long as this process runs)",
    )


_RAY = ("min_replicas", "max_replicas", "target_requests", "replica_cpus", "replica_gpus", "ray_address")


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=())
    if not (arguments.workdir or arguments.variant):
        raise UserError("--workdir is missing; see --help")

    scale = {name: value for name in _RAY if (value := getattr(arguments, name)) is not None}
    if scale and arguments.engine != "ray":
        raise UserError(f"--{next(iter(scale))} needs --engine=ray")

    from research.serve.operations import OPERATIONS, USUAL
    from research.serve.repository import Certified
    from research.serve.server import Access, serve

    chosen = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    run: Callable[..., int] = serve
    if arguments.engine == "ray":
        from research.serve.ray_cluster import Scale
        from research.serve.ray_engine import serve_on_ray

        run = functools.partial(serve_on_ray, scale=Scale(**scale))
    return run(
        arguments.workdir or [],
        Limits(**chosen),
        variants=arguments.variant,
        certified=Certified(None if arguments.uncertified else arguments.max_drop),
        split=arguments.split,
        replicas=arguments.replicas,
        checkpoint=arguments.checkpoint,
        compute=arguments.compute,
        operations=tuple(OPERATIONS) if arguments.embed else USUAL,
        host=arguments.host,
        port=arguments.port,
        access=Access(arguments.api_keys_file, arguments.rate, arguments.open_metrics),
        log_format=arguments.log,
        tracing=arguments.tracing,
    )


if __name__ == "__main__":
    cli.run(main)
