"""The script for Slurm runs as sbatch runs it, with stand-ins for its commands."""

import re
import subprocess

import pytest

from tests.deploy.recipes import DEPLOY, executable, train_flags

SBATCH = DEPLOY / "slurm/train.sbatch"

# Options of sbatch (slurm.schedmd.com/sbatch.html) that the script may set.
DIRECTIVES = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output", "open-mode", "requeue",
    "signal",
}  # fmt: skip


class Slurm:
    """A folder with an environment and Slurm's commands: srun runs a task for each of SLURM_NTASKS_PER_NODE."""

    def __init__(self, folder, state="RUNNING", code=0):
        self.folder = folder
        record = f'printf "%s\\0" "$SLURM_PROCID" "$@" >"{folder}/argv$SLURM_PROCID"; exit {code}'
        executable(folder / ".venv/bin/python", record)
        executable(
            folder / "bin/srun",
            'options=""; while [[ $1 == --* ]]; do options="$options $1"; shift; done\n'
            f'echo "$options" >"{folder}/options"; worst=0\n'
            'for ((i = 0; i < SLURM_NTASKS_PER_NODE; i++)); do SLURM_PROCID=$i "$@" || worst=$?; done; exit $worst',
        )
        executable(folder / "bin/squeue", f"echo {state}")
        executable(folder / "bin/scontrol", f'echo "$@" >"{folder}/scontrol"')

    def __call__(self, *arguments, **env):
        """Runs the script as sbatch does: a copy, elsewhere."""
        env = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_GPUS_PER_NODE": "h100:2",
            "WORKDIR": "/shared/a run",
            **env,
        }
        script = self.folder / "spool"
        script.write_text(SBATCH.read_text())
        return subprocess.run(["bash", script, *arguments], env=env, cwd="/", capture_output=True, text=True)

    def argv(self, process):
        return (self.folder / f"argv{process}").read_text().split("\0")[:-1]


def test_sbatch_runs_a_process_for_each_gpu(tmp_path):
    slurm = Slurm(tmp_path)
    flags = ["--config=bert_sst2", '--config.task.name=it\'s "two words" $HOME']
    result = slurm(*flags)
    assert result.returncode == 0, result.stderr
    for i in range(2):
        assert slurm.argv(i) == [
            str(i), "-m", "research.train", "--distributed", "--workdir=/shared/a run", *flags,
        ]  # fmt: skip
    assert train_flags(slurm.argv(0)[3:5] + flags[:1]).distributed
    assert "--kill-on-bad-exit=1" in (tmp_path / "options").read_text()


@pytest.mark.parametrize(
    ("state", "code", "requeued"),
    [("RUNNING", 143, True), ("COMPLETING", 143, False), ("CANCELLED", 143, False), ("RUNNING", 1, False)],
)
def test_sbatch_goes_on_only_after_its_time_was_up(tmp_path, state, code, requeued):
    assert Slurm(tmp_path, state, code)("--config=c").returncode == code
    assert (tmp_path / "scontrol").exists() == requeued
    assert not requeued or (tmp_path / "scontrol").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORKDIR": ""}, "WORKDIR is missing"),
        ({"SLURM_GPUS_PER_NODE": "8"}, "--gpus-per-node is 8 and --ntasks-per-node is 2"),
        ({"PYTHON": "no/python"}, "there is no no/python"),
    ],
)
def test_sbatch_refuses_what_cannot_run(tmp_path, env, message):
    result = Slurm(tmp_path)("--config=c", **env)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "argv0").exists()


def test_sbatch_directives_are_known_and_before_the_first_command():
    lines = SBATCH.read_text().splitlines()
    given = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert {re.match(r"#SBATCH --([\w-]+)(=\S+)?$", lines[i])[1] for i in given} == DIRECTIVES
    assert all(line.startswith("#") for line in lines[: max(given)])
    values = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SBATCH.read_text(), re.MULTILINE))
    assert values["ntasks-per-node"] == values["gpus-per-node"]
