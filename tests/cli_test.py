# mypy: disable-error-code="misc"
"""The command lines, as a user runs them."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from research import cli


def _python(*arguments, **options):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, **options
    )


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs a command line in this process -> (exit code, stdout, stderr)."""
    # Keeps process-wide settings as the tests set them.
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        main = importlib.import_module(module).main
        with pytest.raises(SystemExit) as exit:
            cli.run(lambda: main(list(arguments)))
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("research.train", "--config"),
        ("research.evaluate", "--split"),
        ("research.export", "--out"),
        ("research.glue", "--workdirs"),
        ("research.plot", "--what"),
        ("research.coefficients", "--most"),
        ("research.ladder", "--dataset"),
        ("research.list", "optimizers"),
        ("research.runs.__main__", "FOLDER"),
    ],
)
def test_help(module, flag, shell):
    code, out, _ = shell(module, "--help")
    assert code == 0
    assert flag in out


@pytest.mark.extended
def test_evaluate_gives_the_metrics_of_the_summary(tmp_path):
    train = ("-m", "research.train", "--config=configs/linear_diabetes.py", f"--workdir={tmp_path}/run")
    result = _python(*train)
    assert result.returncode == 0, result.stderr
    assert "completed at step 600" in result.stdout
    assert "100%" in result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for split in ("validation", "test"):
        result = _python("-m", "research.evaluate", f"--workdir={tmp_path}/run", f"--split={split}")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["metrics"] == summary["metrics"][split]
    result = _python("-m", "research.evaluate", f"--workdir={tmp_path}/run", "--checkpoint=best")
    assert json.loads(result.stdout)["step"] == summary["best"]["step"]
    assert "is completed at step 600" in _python(*train).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["research.train", "--config=configs/linear_diabetes.py", "--config.seeed=1"],
            "did you mean 'seed'?",
        ),
        (
            ["research.train", "--config=configs/linear_diabetes.py", "--worcdir=x"],
            "did you mean '--workdir'?",
        ),
        (
            ["research.train", "--config=configs/linear_diabetes.py", "--workdir=README.md"],
            "can't be written",
        ),
        (
            ["research.train", "--config=configs/bert_sst2.py:base", "--config.init_from=no/such", "--workdir=WORK"],
            "HF_HUB_OFFLINE forbids",
        ),
        (["research.export", "--workdir=WORK", "--out=WORK/out"], "is not a run directory"),
        (["research.export", "--workdir=WORK"], "--out is missing"),
        (
            [
                "research.train",
                "--config=configs/bert_sst2.py:scratch",
                "--config.data.data_dir=WORK",
                "--workdir=WORK/r",
            ],
            "is not prepared in",
        ),
        (["research.train", "--config=configs/linear_diabetes.py", "--process_id=1"], "need --coordinator"),
        (["research.train", "--config=configs/linear_diabetes.py", "--distributed"], "need the same --workdir"),
        (
            ["research.train", "--config=configs/linear_diabetes.py", "--config.preset=x"],
            "preset is chosen with the file",
        ),
        (["research.train", "--confg=configs/linear_diabetes.py"], "did you mean '--config'?"),
        (["research.train", "--lr=1"], "'--config.optimizer.learning_rate'"),
        (["research.train", "--batch-size=8"], "'--config.train.batch_size'"),
        (["research.train", "--zzz=8"], "--config.KEY=VALUE"),
        (["research.evaluate", "--lr=1"], "known: --checkpoint"),
        (["research.train"], "--config is missing"),
        (["research.train", "--workdir=x"], "is not a run directory"),
        (["research.train", "--config=configs/linear_line.py", "--workdir="], "--workdir is empty"),
        (["research.train", "--config=x.py", "--optimizer.name=sgd"], "written --config.optimizer.name=VALUE"),
        (["research.train", "--config=x.py", "--config.seed", "3"], "--config.seed has no value"),
        (["research.evaluate", "--splt=test", "--workdir=x"], "did you mean '--split'?"),
        (["research.evaluate", "--workdir=tests"], "is not a run directory"),
        (["research.glue", "--workdirs", "tests", "configs", "--out=WORK"], "is not a run directory"),
        (["research.glue", "--workdirs=tests"], "--out is missing"),
        (["research.plot", "--workdir=tests"], "is not a run directory"),
        (["research.plot", "--workdir=tests", "--repeats=0"], "--repeats is 0; it must be at least 1"),
        (["research.plot", "--workdir=tests", "--repeats=two"], "invalid int value: 'two'"),
        (["research.coefficients", "--workdir=tests"], "is not a run directory"),
        (["research.ladder", "--dataset=digit"], "did you mean 'digits'?"),
        (["research.ladder", "--dataset=digits", "--out=tests"], "tests is not empty and not a ladder's"),
        (["research.ladder", "--dataset=digits", "--rungs=mlp,resent"], "did you mean 'resnet'?"),
    ],
)
def test_invalid_input_is_one_line_and_exit_code_2(arguments, message, shell, tmp_path):
    code, _, err = shell(*[argument.replace("WORK", str(tmp_path)) for argument in arguments])
    assert code == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.extended
def test_error_in_a_separate_process(tmp_path):
    """Nothing else is printed; with --debug the stack trace is shown."""
    command = ("-m", "research.evaluate", f"--workdir={tmp_path}")
    result = _python(*command)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in _python(*command, "--debug").stderr


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("tokenizers", "tokenizers", "pip install -e ."),
        ("sklearn.datasets", "scikit-learn", "pip install -e ."),
        ("torch", "torch", "pip install -e '.[parity]'"),
        ("nbclient", "nbclient", "pip install -e '.[notebooks]'"),
    ],
)
def test_missing_package_is_a_one_line_error(module, package, command, monkeypatch, capsys):
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: _raise(ModuleNotFoundError(f"No module named {module!r}", name=module)))
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert len(err.splitlines()) == 1
    assert f" {package} " in err
    assert err.endswith(f"{command}\n")


def test_missing_project_module_and_other_errors_have_a_trace(monkeypatch):
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for error in (
        ModuleNotFoundError("no", name="research.nothing"),
        ModuleNotFoundError("no"),
        RuntimeError("no"),
        AssertionError(),
    ):
        with pytest.raises(type(error)):
            cli.run(lambda error=error: _raise(error))
    monkeypatch.setattr(sys, "argv", ["train", "--debug"])
    with pytest.raises(ModuleNotFoundError):
        cli.run(lambda: _raise(ModuleNotFoundError("no", name="tokenizers")))


# Imports of a missing package, as in a partially installed environment.
HALF_INSTALLED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
from research import cli, train
sys.argv = ["train", "--config=configs/linear_line.py", "--workdir=" + sys.argv[1]]
cli.run(train.main)
"""


@pytest.mark.parametrize("missing", ["ml_collections", "jaxlib"])
def test_incomplete_installation(missing, tmp_path):
    """JAX's error for jaxlib does not name the package; its cause does."""
    result = _python("-c", HALF_INSTALLED.format(missing=missing), str(tmp_path / "run"))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert missing.replace("_", "-") in line
    assert "pip install -e ." in line


def test_unavailable_jax_platform_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    result = _python("-m", "research.train", "--config=configs/linear_line.py", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert "JAX_PLATFORMS=tpu" in line
    assert "[tpu]" in line
    assert "Traceback" not in result.stderr


def test_ctrl_c_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert (exit.value.code, capsys.readouterr().err) == (128 + signal.SIGINT, "interrupted\n")


@pytest.mark.extended
def test_signal_saves_and_the_same_command_resumes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "research.train",
        "--config=configs/logistic_digits.py",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=40000",
        "--config.train.log_every=10",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        metrics = tmp_path / "run/metrics.jsonl"
        for _ in range(600):
            if metrics.is_file() and metrics.stat().st_size:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "rerun the same command" in out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "preempted"
    again = _python(*command[1:], "--config.train.max_minutes=0.0001")
    assert f"resuming after step {summary['step']}" in again.stdout, again.stderr


def test_importing_has_no_side_effects():
    """A notebook may import everything: no flags are parsed, no device is touched, nothing is printed."""
    code = (
        "import sys; sys.argv = ['notebook', '--unknown']\n"
        "import pkgutil, importlib, research\n"
        "for package in (research,):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "import jax; assert not jax._src.xla_bridge.backends_are_initialized()\n"
        "assert 'tensorflow_datasets' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    result = _python("-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "split", "overrides"),
    [
        # At the config's learning rate, rounding of sums over processes grows beyond the tolerance.
        (
            "configs/resnet_digits.py",
            "test",
            ["--config.eval.batch_size=100", "--config.optimizer.learning_rate=0.01"],
        ),
        # Packed rows, built by a worker process.
        ("configs/bert_sst2.py:embedded", "validation", ["--config.data.workers=1", "--config.eval.batch_rows=12"]),
    ],
)
def test_two_processes_train_as_one(tmp_path, config, split, overrides):
    """Two processes with two devices each match one process with four: the same metrics, and predictions in order."""
    overrides = ["--config.train.steps=20", *overrides]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(name, devices, *flags):
        command = [sys.executable, "-m", "research.train", f"--config={config}", *overrides, *flags]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        return subprocess.Popen([*command, f"--workdir={tmp_path}/{name}"], env=environment)

    alone = start("alone", 4)
    assert alone.wait(timeout=600) == 0
    pair = [start("pair", 2, f"--coordinator={address}", "--processes=2", f"--process_id={i}") for i in range(2)]
    assert [process.wait(timeout=600) for process in pair] == [0, 0]
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("alone", "pair")]
    assert summaries[1]["environment"]["processes"] == 2
    for name, metrics in summaries[0]["metrics"].items():
        assert summaries[1]["metrics"][name] == pytest.approx(metrics, rel=1e-4)
    records = [
        [json.loads(line) for line in (tmp_path / name / f"predictions/{split}.jsonl").open()]
        for name in ("alone", "pair")
    ]
    assert [[r["index"], r["label"]] for r in records[0]] == [[r["index"], r["label"]] for r in records[1]]
    assert summaries[0]["examples_seen"] == summaries[1]["examples_seen"] >= 20 * 55
