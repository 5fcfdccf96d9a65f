"""What README.md tells its reader to type is typed here.

Flags and overrides of every command are parsed, and its config is built. The commands that need neither data nor
weights from elsewhere run, small: `runs/…` stands for a run that one of them has left. The Python code runs too.
"""

import importlib
import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from research import api, cli, train
from research.base.errors import UserError
from research.config import load
from research.data.load import SOURCES
from research.overrides import declared
from research.runs.rundir import RunDir
from research.serve.model import ServedModel
from research.training import loop
from research.training.method import is_deterministic
from tests import fuzz, tiny
from tests.interop import tiny_decoder
from tests.serve.conftest import LIMITS, serving

TEXT = Path("README.md").read_text()
BLOCKS = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", TEXT, re.MULTILINE)
SPANS = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", TEXT)]


class Command(NamedTuple):
    """`python -m research.NAME ARGUMENTS`"""

    name: str
    arguments: tuple[str, ...]

    def __str__(self):
        return f"{self.name} {' '.join(self.arguments)}"

    @property
    def trains(self):
        """Whether it trains a config of this project; others resume or print, or use modules of the reader's."""
        options = {argument.partition("=")[0] for argument in self.arguments}
        return self.name == "train" and "--config" in options and not options & {"--print_config", "--config.imports"}

    @property
    def spec(self):
        """FILE:PRESET of `--config=CONFIG[:PRESET]`; the full size where an override asks for weights."""
        spec = next(a.removeprefix("--config=") for a in self.arguments if a.startswith("--config="))
        spec = re.sub(r"^(\w+)(:\w+)?$", r"configs/\1.py\2", spec)
        if any(a.startswith("--config.init_from=") for a in self.arguments) and spec.endswith(".py"):
            spec += ":" + importlib.import_module(spec[:-3].replace("/", ".")).FULL
        return spec

    @property
    def overrides(self):
        return [argument for argument in self.arguments if argument.startswith("--config.")]

    def check(self):
        """The config, if there is one. Raises UserError for an unknown flag, and for a config that can't be built."""
        module = _module(self.name)
        passed_on = "--config." if self.name in ("preflight", "train") else None
        cli.parse(module.parser(), list(self.arguments), required=(), passed_on=passed_on)
        return load(self.spec, self.overrides).config if self.trains else None


def _module(name):
    folders = {name: f"{name}.__main__" for name in ("compress", "preflight", "runs", "serve")}
    return importlib.import_module(f"research.{({'configs': 'list'} | folders).get(name, name)}")


def _typed(text):
    """The command that a piece of text is, or None. `T` is the README's own abbreviation."""
    text = re.sub(r"^T (?=--)|^(?=--config=)", "python -m research.train ", text.strip())
    text = re.sub(r"^(?=configs/(?!defaults)\w+\.py(:\w+)?$)", "python -m research.train --config=", text)
    found = re.search(r"python -m research\.(\w+)( .*)?$", text)
    if found is None or text.endswith("=…") or "NAME" in text:
        return None
    arguments = shlex.split(found[2] or "", comments=True)
    return Command(found[1], (*(["configs"] if found[1] == "configs" else []), *arguments))


def _of_the_table():
    """The table of configs: each preset in the second column, of the last config named in the first."""
    names = []
    for first, second in re.findall(r"^\| (.*?) ?\| (.*?) \|", TEXT, re.MULTILINE):
        spans = re.findall(r"`(\w+)`", first)
        if spans and all(Path(f"configs/{name}.py").is_file() for name in spans):
            names = spans
        elif first:
            names = []
        for preset in re.findall(r"`(\w+)`", second):
            yield from (f"configs/{name}.py:{preset}" for name in names)


PIECES = [*(line for block in BLOCKS for line in block.splitlines()), *SPANS, *_of_the_table()]
COMMANDS = list(dict.fromkeys(command for command in map(_typed, PIECES) if command))
TRAINING = [command for command in COMMANDS if command.trains]
# Overrides that stand alone, in a text about any config that has the key.
OVERRIDES = sorted({span for span in SPANS if span.startswith("--config.") and "KEY" not in span})
# What tests/fuzz.py does not make small, is made so by the overrides of a config that is like it.
LIKE = {
    f"configs/{name}.py": f"configs/{like}.py"
    for name, like in {
        "bert_glue": "bert_sst2",
        "resnet_cifar10": "resnet_digits",
        "resnet_imagenet": "resnet_digits",
        "resnet_mnist": "resnet_digits",
    }.items()
}
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _nothing_prepared(tmp_path, monkeypatch):
    """As on a machine without data: whoever runs the tests may have some."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no weights"))
    monkeypatch.setattr(train, "_stop_on_signals", list)
    tiny.few_sentences(monkeypatch, 60, 40)
    tiny.few_documents(monkeypatch, 6)


def _train(command, workdir):
    """Runs it with what makes its config small: an override that tests/fuzz.py has for the config, or a like one."""
    config, file = command.check(), command.spec.partition(":")[0]
    if config.data.name == "files":
        path = str(tiny.own_file(workdir.parent / f"{workdir.name}-data", config.data.transform.name))
        arguments = [a for a in command.arguments if "data.train=" not in a and ".label=" not in a]
        command = command._replace(arguments=(*arguments, f"--config.data.train={path}"))
        shrunk: tuple[str, ...] | None = (*fuzz.ENCODER, "train.steps=1", "data.validation_fraction=0.2")
    else:
        shrunk = fuzz.CONFIGS.get(f"{file}:{config.preset}")
    if shrunk is None:
        like = "configs/logistic_iris.py" if is_deterministic(config.optimizer.name) else LIKE.get(file, file)
        shrunk = fuzz.CONFIGS[f"{like}:embedded"]
    known = declared(config)
    small = [f"--config.{override}" for override in shrunk if override.split("=")[0] in known]
    assert train.main([*command.arguments, *small, f"--workdir={workdir}"]) == 0


def test_they_were_found():
    assert len(COMMANDS) >= 50
    assert {command.name for command in COMMANDS} >= {"train", "evaluate", "plot", "coefficients", "export", "glue"}
    assert len(OVERRIDES) >= 10
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_flags_and_config_are_valid(command):
    command.check()


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_is_one_of_some_config(override):
    refused = {}
    for command in TRAINING:
        try:
            loaded = load(command.spec, shlex.split(override) if "=" in override else ())
            if "=" in override or override.removeprefix("--config.") in declared(loaded.config):
                return
        except UserError as error:
            refused[command.spec] = str(error)
    pytest.fail(f"no config takes {override}: {refused}")


def _runs(command):
    """Whether it can run anywhere: its data are made on the spot, and it starts from no weights."""
    config = load(command.spec, command.overrides).config
    return config.data.name in {*SOURCES, "files"} and not config.init_from


@pytest.mark.extended
@pytest.mark.parametrize(
    "family", ["bert", "logistic", "linear", "mlp", "cnn|resnet|majority", "tabular", "text|image"]
)
def test_commands_that_train(family, tmp_path, monkeypatch):
    """Up to the program that would be compiled, where that takes long: .ci/run trains most embedded presets whole."""
    if family not in ("linear", "mlp", "tabular"):
        monkeypatch.setattr(loop, "train_and_evaluate", fuzz.traced)
    chosen = [c for c in TRAINING if re.match(f"configs/({family})(_|.py)", c.spec) and _runs(c)]
    assert chosen
    for i, command in enumerate(chosen):
        _train(command, tmp_path / str(i))
        assert loop.train_and_evaluate is fuzz.traced or RunDir.open(tmp_path / str(i)).summary()["step"] > 0


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run directories: an encoder's, and a linear model's on the same sentences."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_stop_on_signals", list)
        tiny.few_sentences(patch, 60, 40)
        for name in ("bert_sst2", "logistic_sst2"):
            _train(Command("train", (f"--config=configs/{name}.py:embedded",)), folder / name)
    return folder


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["bert_sst2", "logistic_sst2"])
def test_commands_that_read_a_run(kind, runs, tmp_path, capsys):
    """Each does its work, but for the one that is for other kinds of models and says so."""
    refused = {"bert_sst2": "coefficients", "logistic_sst2": "export"}[kind]
    for command in COMMANDS:
        if command.name not in ("evaluate", "plot", "coefficients", "export"):
            continue
        arguments = [
            re.sub(r"runs/(…|bert)", str(runs / kind), a).replace("FOLDER", f"{tmp_path}/out")
            for a in command.arguments
        ]
        main = importlib.import_module(f"research.{command.name}").main
        if command.name == refused:
            with pytest.raises(UserError):
                main(arguments)
        else:
            assert main(arguments) == 0
            assert capsys.readouterr().out


@pytest.mark.extended
def test_python_code(runs, tmp_path, monkeypatch):
    folders = (tmp_path / str(i) for i in itertools.count())
    monkeypatch.setattr(api, "_new_workdir", lambda loaded: next(folders))
    monkeypatch.chdir(tmp_path)
    rows = [f"{20 + i},{1000 * i},{('Paris', 'Nice')[i % 2]},{('basic', 'none')[i % 2]}" for i in range(40)]
    Path("customers.csv").write_text("\n".join(["age,income,city,plan", *rows]) + "\n")
    overrides = {"data.train": "customers.csv", "data.transform.label": "plan", "train.steps": 1}
    api.fit("tabular_files", workdir="plan", show=False, **overrides)
    tiny_decoder.write(tmp_path / "gpt", "llama")
    served = ServedModel.open("bert", RunDir.open(runs / "bert_sst2"))
    assert list(served.warm_up(LIMITS))
    names: dict = {}
    with serving({"bert": served}) as (url, _):
        for snippet in SNIPPETS:
            code = snippet.replace("runs/bert", str(runs / "bert_sst2")).replace('"runs/', f'"{tmp_path}/')
            exec(compile(code.replace("http://localhost:8000", url), "README.md", "exec"), names)
