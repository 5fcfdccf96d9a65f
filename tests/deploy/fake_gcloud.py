"""A stand-in for gcloud that plays one slice: run with the folder of its state in $FAKE_GCLOUD.

The folder has `slice.json` (the states), `errors.json` (what fails: the number of a call from 1, or words of it ->
what gcloud would write), `calls.jsonl` (what was called), and a home for each worker. A command by ssh really runs in
bash there, in a session that is hung up and killed when it ends: what goes on has left it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# The flags of gcloud 528.0.0 that each command may be given here; also those of all commands.
FLAGS = {
    "tpu-vm create": {"--accelerator-type", "--version", "--spot"},
    "tpu-vm start": set(),
    "tpu-vm delete": set(),
    "tpu-vm describe": set(),
    "tpu-vm ssh": {"--worker", "--command", "--ssh-flag"},
    "queued-resources create": {"--accelerator-type", "--runtime-version", "--node-id", "--spot"},
    "queued-resources delete": {"--force"},
    "queued-resources describe": set(),
}
COMMON = {"--zone", "--project", "--format", "--quiet"}


def _error(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def _absent(words: str) -> int:
    return _error(
        f"ERROR: (gcloud.compute.tpus.{words.replace(' ', '.')}) NOT_FOUND: Resource 'projects/x' was not found"
    )


def _planned(folder: Path, called: list[str]) -> str | None:
    """The error that the test wants of this call, or None."""
    file = folder / "errors.json"
    errors = json.loads(file.read_text()) if file.exists() else {}
    number = str(len((folder / "calls.jsonl").read_text().splitlines()))
    words = [key for key in errors if not key.isdecimal() and key in " ".join(called)]
    return errors.get(number) or (errors[words[0]] if words else None)


def _ssh(folder: Path, count: int, given: dict[str, str]) -> int:
    chosen = range(count) if given["--worker"] == "all" else [int(given["--worker"])]
    worst = 0
    for index in chosen:
        home = folder / f"worker{index}"
        home.mkdir(exist_ok=True)
        process = subprocess.Popen(
            ["bash", "-c", given["--command"]],
            cwd=home,
            env={"HOME": str(home), "PATH": f"{folder}/vm:/usr/bin:/bin", "GIT_CONFIG_GLOBAL": f"{folder}/gitconfig"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        worst = max(worst, process.wait())
        for number in (signal.SIGHUP, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
    return worst


def main(arguments: list[str]) -> int:
    folder = Path(os.environ["FAKE_GCLOUD"])
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if arguments[:2] != ["compute", "tpus"]:
        return _error(f"ERROR: (gcloud) Invalid choice: {arguments[0]!r}", 2)
    (kind, verb, name), words = arguments[2:5], " ".join(arguments[2:4])
    given = dict(argument.partition("=")[::2] for argument in arguments[5:])
    if words not in FLAGS or not given.keys() <= FLAGS[words] | COMMON or "--zone" not in given:
        return _error(f"ERROR: (gcloud.compute.tpus) unrecognized arguments: {arguments}", 2)
    if error := _planned(folder, arguments):
        return _error(error)
    state = json.loads((folder / "slice.json").read_text())
    code = _play(folder, state, kind, verb, name, given)
    (folder / "slice.json").write_text(json.dumps(state))
    return code


def _play(folder: Path, state: dict, kind: str, verb: str, name: str, given: dict[str, str]) -> int:
    """What a command does to the state of the slice; a queued resource gets its node when the test says so."""
    own = "node" if kind == "tpu-vm" else "queue"
    if verb == "create":
        if state[own] is not None:
            return _error(f"ERROR: (gcloud) ALREADY_EXISTS: Resource {name!r} already exists")
        state[own] = "READY" if own == "node" else "WAITING_FOR_RESOURCES"
        state["type"] = given["--accelerator-type"]
        return 0
    if state[own] is None:
        return _absent(f"{kind} {verb}")
    if verb == "describe":
        print(f"{state['node']}\t{state['type']}" if own == "node" else state["queue"])
    elif verb == "delete":
        state[own] = None
        if own == "queue":
            state["node"] = None
    elif verb == "start":
        state["node"] = "READY"
    elif verb == "ssh":
        return _ssh(folder, state["workers"], given)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
