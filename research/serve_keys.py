"""Make an API key from the command line."""

import sys

from research import cli


def parser() -> cli.Parser:
    parser = cli.Parser("serve_keys", "Make an API key: the key on stderr, its line for --api_keys_file on stdout.")
    parser.add_argument("name", metavar="NAME", help="the client's name, as in logs")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("name",))

    from research.serve.keys import new_key

    key, line = new_key(arguments.name)
    print(f"The key, which is shown only now: {key}", file=sys.stderr, flush=True)
    print(line)
    return 0


if __name__ == "__main__":
    cli.run(main)
