"""Trainings that tpu_setup.sh runs, on workers that are folders: each command hangs up and kills its own session."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.conftest import ROOT, RUN, TRAIN, WHERE, wait_for

NASTY = [
    "--config.data.note=two words",
    "--config.a='single' \"double\"",
    "--config.b=$HOME `id` $(id) \\ \\n",
    "--config.c=a;b&c|d>e*?[x]{y}!#~",
    "--config.d=line\nbreak\ttab",
    "--config.e=",
    "--config.f=été (1, 2)",
    "~",
    "--config.g='",
]


def test_flags_arrive_as_they_were_given(cloud):
    cloud.installed()
    options = ["--config=my configs/it's.py:full", "--workdir=/mnt/a b/c", "--data_dir=/mnt/$d", '--weights="w"']
    cloud("run", *WHERE, *options, "--", *NASTY)
    expected = ["--distributed", "--workdir=/mnt/a b/c", "--config=my configs/it's.py:full"]
    expected += ["--config.data.data_dir=/mnt/$d", '--config.init_from="w"', *NASTY]
    assert cloud.argv(0) == cloud.argv(1) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text("'\"$`\\!~ \n\t*;&=aé") | st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5
    )
)
def test_quoted_words_are_read_back(words):
    code = f'source {ROOT}/deploy/tpu/common.sh; eval "set -- $(quoted "$@"; echo .)"; printf "%s\\0" "$@"'
    # The dot keeps trailing line breaks from being cut off by the substitution, and is cut off again.
    code = code.replace('echo .)"', 'printf " .")"')
    read = subprocess.run(["bash", "-c", code, "bash", *words], capture_output=True, check=True).stdout
    assert read.decode().split("\0")[:-2] == words


def test_a_training_outlives_the_connection_and_is_alone(cloud):
    cloud.installed()
    assert "it goes on without this connection" in cloud(*RUN)
    cloud.argv(0)
    cloud.argv(1)  # each after its session was hung up and killed
    said = cloud("status", *WHERE)
    assert "t is READY (v6e-8)" in said
    assert len(re.findall(rf"running, process ({cloud.process(0)}|{cloud.process(1)}); last line: training", said)) == 2
    said = cloud(*RUN, code=2)
    assert f"a training is alive (process {cloud.process(0)})" in said
    assert "nothing was started" in said
    assert "a training is alive" in cloud("install", *WHERE, code=2)
    cloud.finish(3)
    assert cloud("status", *WHERE).count("ended with exit code 3") == 2
    cloud(*RUN)
    cloud.finish(0)
    assert cloud("status", *WHERE).count("ended with exit code 0") == 2
    log = cloud("logs", *WHERE, "--worker=1", "--lines=1000")
    assert log.count("\ntraining\n") == 2  # the log goes on
    assert "--workdir=gs://b/run" in log


@pytest.mark.slow
def test_one_busy_worker_keeps_the_others_from_starting(cloud):
    cloud.installed()
    cloud.set(workers=1)
    cloud(*RUN)
    cloud.argv(0)
    cloud.set(workers=2)
    cloud(*RUN, code=2)
    assert not (cloud.home(1) / ".research-tpu/log").exists()


@pytest.mark.slow
def test_of_two_starts_at_once_one_is_refused(cloud):
    cloud.installed(workers=1)
    command = ["bash", cloud.home() / "research/deploy/tpu/worker.sh", "start", "--workdir=w"]
    both = [subprocess.Popen(command, env=cloud.worker_env(0), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(process.wait() for process in both) == [0, 2]


@pytest.mark.slow
def test_stop_saves_and_needs_yes(cloud):
    cloud.installed()
    assert cloud("stop", *WHERE).count("nothing to stop") == 2
    cloud(*RUN)
    cloud.argv(0), cloud.argv(1)  # it can be signalled
    assert "with --yes" in cloud("stop", *WHERE, code=2)
    assert cloud("status", *WHERE).count("running") == 2
    cloud("stop", *WHERE, "--yes")
    assert cloud("status", *WHERE).count("ended with exit code 143") == 2
    assert "saved" in cloud("logs", *WHERE)
    assert cloud("stop", *WHERE, "--yes").count("nothing to stop") == 2


@pytest.mark.slow
def test_stop_now_does_not_save(cloud):
    cloud.installed(workers=1)
    cloud(*RUN)
    cloud.argv()
    cloud("stop", *WHERE, "--yes", "--now")
    assert "ended with exit code 137" in cloud("status", *WHERE)
    assert "saved" not in cloud("logs", *WHERE)


def _waiting(lock):
    """How many processes wait for the lock with a limit, as stop does."""
    lines = [_command(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return sum(line.startswith("flock --timeout") and str(lock) in line for line in lines)


def _command(path):
    try:
        return path.read_text().replace("\0", " ")
    except OSError:  # it has ended
        return ""


@pytest.mark.slow
def test_a_second_stop_is_no_second_signal(cloud):
    """research.train ends at once at the second SIGTERM, without saving."""
    train = TRAIN.replace("os._exit(143)", "globals().update(code=143)")
    (cloud.folder / "train.py").write_text(train)
    cloud.installed(workers=1)
    cloud(*RUN)
    cloud.argv()
    command = ["bash", "tpu_setup.sh", "stop", *WHERE, "--yes"]
    stops = []
    for _ in range(2):
        stops.append(subprocess.Popen(command, cwd=cloud.checkout, env=cloud.env, stdout=subprocess.PIPE))
        wait_for(lambda: "saved" in (cloud.home() / ".research-tpu/log").read_text())
    wait_for(lambda: _waiting(cloud.home() / ".research-tpu/lock") == 2)  # both stops have sent what they send
    (cloud.home() / "fifo").write_text("0")
    assert all(stop.wait() == 0 for stop in stops)
    assert (cloud.home() / ".research-tpu/log").read_text().count("saved") == 1


@pytest.mark.slow
def test_attach_follows_to_the_end_with_its_exit_code(cloud):
    cloud.installed(workers=1)
    cloud(*RUN)
    cloud.argv()
    command = ["bash", "tpu_setup.sh", "attach", *WHERE]
    attached = subprocess.Popen(command, cwd=cloud.checkout, env=cloud.env, stdout=subprocess.PIPE, text=True)
    for line in attached.stdout:
        if line == "training\n":
            break
    cloud.finish(5, workers=1)
    assert "ended with exit code 5" in attached.communicate()[0]
    assert attached.returncode == 5
    assert "--ssh-flag=-t" in cloud.calls("ssh")[-1]


@pytest.mark.slow
def test_a_killed_training_can_be_run_again(cloud):
    cloud.installed(workers=1)
    cloud(*RUN)
    cloud.argv()
    os.killpg(os.getpgid(cloud.process()), signal.SIGKILL)  # the supervisor, too
    subprocess.run(["flock", cloud.home() / ".research-tpu/lock", "true"], check=True)
    assert "ended without an exit code" in cloud("status", *WHERE)
    (cloud.home() / "argv").unlink()
    cloud(*RUN)
    assert "--workdir=gs://b/run" in cloud.argv()


@pytest.mark.slow
def test_the_same_commands_go_on_after_a_preemption(cloud):
    steps = [("create", *WHERE, "--accelerator-type=v6e-8", "--spot", "--yes"), ("install", *WHERE), RUN]
    argvs = []
    for _ in range(2):
        for i in range(2):
            cloud.home(i).mkdir()
            os.mkfifo(cloud.home(i) / "fifo")
        for step in steps:
            cloud(*step)
        argvs.append((cloud.argv(0), cloud.argv(1)))
        cloud.end()
        cloud.set(node="PREEMPTED")
        for step in (("install", *WHERE), RUN, ("logs", *WHERE)):
            assert "create --yes makes it again" in cloud(*step, code=2)
        assert "t is PREEMPTED" in cloud("status", *WHERE)
        assert "nothing to stop" in cloud("stop", *WHERE, "--yes")
        for i in range(2):
            shutil.rmtree(cloud.home(i))
    assert argvs[0] == argvs[1]
    assert [call.split()[1] for call in cloud.calls("create", "delete")] == ["create", "delete", "create"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdir", "lost"),
    [("runs/x", True), ("/dev/shm/x", True), ("gs://bucket/x", False), ("/proc/x", False)],  # a mount that is no disk
)
def test_a_workdir_that_dies_with_the_vm_is_warned_of(cloud, workdir, lost):
    if lost and not workdir.startswith("/"):
        device = os.stat(cloud.folder).st_dev
        if device != os.stat("/").st_dev:
            pytest.skip("the folder of the tests is on a disk of its own")
    cloud.installed(workers=1)
    said = cloud("run", *WHERE, "--config=c", f"--workdir={workdir}")
    assert ("it is lost with the VM" in said) == lost


@pytest.mark.slow
def test_run_needs_an_installation(cloud):
    cloud.installed(workers=1)
    shutil.rmtree(cloud.home() / "research/.venv-tpu")
    assert "run install first" in cloud(*RUN, code=2)


@pytest.mark.slow
def test_any_call_may_fail_and_be_repeated(cloud):
    """Whatever call of gcloud fails, the command says so, and the same command then does its work."""
    steps = [("create", *WHERE, "--accelerator-type=v6e-8"), ("install", *WHERE), RUN, ("stop", *WHERE, "--yes")]
    steps += [("delete", *WHERE, "--yes")]
    for i in range(2):
        cloud.home(i).mkdir()
        os.mkfifo(cloud.home(i) / "fifo")
    for step in steps:
        for number in itertools.count(1):
            (cloud.folder / "calls.jsonl").write_text("")
            cloud.fail(**{str(number): "ERROR: UNAVAILABLE: try again"})
            command = ["bash", "tpu_setup.sh", *step]
            result = subprocess.run(command, cwd=cloud.checkout, env=cloud.env, capture_output=True)
            if len(cloud.calls()) < number:
                break
            assert result.returncode != 0, step
            assert b"ERROR: UNAVAILABLE" in result.stderr
        assert number >= 3
        assert result.returncode == 0, (step, result.stderr)
        if step == RUN:
            cloud.argv(0), cloud.argv(1)
    assert json.loads((cloud.folder / "slice.json").read_text())["node"] is None


@pytest.mark.slow
def test_local_runs_here(cloud):
    cloud.installed(workers=1)
    cloud.env["HOME"] = str(cloud.home())
    shutil.copytree(cloud.home() / "research/.venv-tpu", cloud.checkout / ".venv-tpu")
    (cloud.folder / "bin/gcloud").unlink()
    cloud("run", "--local", "--config=c", "--workdir=/mnt/a b")
    assert "--workdir=/mnt/a b" in cloud.argv()
    assert "running" in cloud("status", "--local")
    cloud("stop", "--local", "--yes")
    assert "saved" in cloud("logs", "--local")
