"""A user's checkout, a stand-in for gcloud, and workers that are folders in which everything really runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHERE = ("--name=t", "--zone=z")
RUN = ("run", *WHERE, "--config=bert_sst2:embedded", "--workdir=gs://b/run")
URL = "https://example.com/r.git"
GIT = ("git", "-c", "user.name=n", "-c", "user.email=e@example.com", "-c", "init.defaultBranch=main")

# What stands on a worker for an image's Python 3.10, and for the uv and the environment that it then needs.
OLD_PYTHON = '#!/bin/sh\ncase "$1" in --version) echo "Python 3.10.6";; *) exit 1;; esac\n'
UV = f"""#!/bin/bash
echo "uv $*" >>"$HOME/installed"
mkdir -p .venv-tpu/bin
cat >.venv-tpu/bin/python <<'PYTHON'
#!/bin/bash
case "$*" in
  "-m pip"*) echo "$*" >>"$HOME/installed" ;;
  "-m research.train"*) exec {sys.executable} -S "$HOME/../train.py" "${{@:3}}" ;;
  "-c "*) ;;
  --version) echo "Python 3.12.0" ;;
  *) cat >/dev/null; echo "devices $2"; [ ! -e "$HOME/../no devices" ] || exit 1 ;;
esac
PYTHON
chmod +x .venv-tpu/bin/python
"""
# Ends when something is written to a fifo, so that a test decides when; SIGTERM is what research.train saves for.
TRAIN = """
import json, os, pathlib, select, signal, sys
code = None
def save(*_):
    print("saved", flush=True)
    os._exit(143)
signal.signal(signal.SIGTERM, save)
home = pathlib.Path(os.environ["HOME"])
fifo = os.open(home / "fifo", os.O_RDWR)
print("training", flush=True)
(home / "part").write_text(json.dumps(sys.argv[1:]))
(home / "part").rename(home / "argv")
while not select.select([fifo], [], [], 0.05)[0]:  # a signal just before a read without a limit would wait with it
    pass
sys.exit(code or int(os.read(fifo, 9)))
"""


def git(*arguments, at=None, env=None):
    return subprocess.run(
        [*GIT, *arguments], cwd=at, check=True, capture_output=True, text=True, env=env
    ).stdout.strip()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A checkout of a project that has only the scripts, one commit of which its origin has."""
    folder = tmp_path_factory.mktemp("tpu")
    git("init", "--bare", "--quiet", "origin.git", at=folder)
    (folder / "gitconfig").write_text(f'[url "file://{folder}/origin.git"]\n\tinsteadOf = {URL}\n')
    env = {**os.environ, "GIT_CONFIG_GLOBAL": str(folder / "gitconfig")}
    work = folder / "checkout"
    shutil.copytree(ROOT / "deploy/tpu", work / "deploy/tpu")
    shutil.copy(ROOT / "tpu_setup.sh", work)
    git("init", "--quiet", at=work)
    git("remote", "add", "origin", URL, at=work)
    git("add", ".", at=work)
    git("commit", "--quiet", "-m", "first", at=work)
    git("push", "--quiet", "origin", "HEAD:main", at=work, env=env)
    return folder


class Cloud:
    """A user's checkout, a stand-in for gcloud, and the workers of its slice."""

    def __init__(self, folder, template):
        self.folder, self.checkout = folder, folder / "checkout"
        shutil.copytree(template / "checkout", self.checkout)
        shutil.copy(template / "gitconfig", folder)
        for path, text in (("vm/python3", OLD_PYTHON), ("vm/uv", UV), ("train.py", TRAIN)):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
            (folder / path).chmod(0o755)
        gcloud = folder / "bin/gcloud"
        gcloud.parent.mkdir()
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {ROOT}/tests/deploy/fake_gcloud.py "$@"\n')
        gcloud.chmod(0o755)
        self.set(node=None, queue=None, type=None, workers=2)
        self.env = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_GCLOUD": str(folder),
            "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"),
        }

    def set(self, **states):
        file = self.folder / "slice.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | states))

    def fail(self, **errors):
        (self.folder / "errors.json").write_text(json.dumps({key.strip("_"): text for key, text in errors.items()}))

    def __call__(self, *arguments, code=0):
        """Runs tpu_setup.sh and returns what it says."""
        result = subprocess.run(
            ["bash", "tpu_setup.sh", *arguments],
            cwd=self.checkout,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    def calls(self, *verbs):
        """The calls of gcloud whose verb is one of these, all without; each as one string."""
        file = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [" ".join(line[2:]) for line in lines if not verbs or line[3] in verbs]

    def home(self, worker=0):
        return self.folder / f"worker{worker}"

    def installed(self, workers=2):
        """A slice that is READY and has everything, so that a test can begin with `run`."""
        self.set(node="READY", type="v6e-8", workers=workers)
        for i in range(workers):
            self.home(i).mkdir(exist_ok=True)
            shutil.copytree(self.checkout, self.home(i) / "research", dirs_exist_ok=True)
            subprocess.run(["bash", self.folder / "vm/uv"], cwd=self.home(i) / "research", env=self.worker_env(i))
            if not (self.home(i) / "fifo").exists():
                os.mkfifo(self.home(i) / "fifo")
        return self

    def worker_env(self, worker):
        return {"HOME": str(self.home(worker)), "PATH": "/usr/bin:/bin"}

    def argv(self, worker=0):
        """The arguments that the training got, once it runs."""
        wait_for((self.home(worker) / "argv").exists)
        return json.loads((self.home(worker) / "argv").read_text())

    def process(self, worker=0):
        return int((self.home(worker) / ".research-tpu/pid").read_text())

    def finish(self, code, workers=2):
        """Lets the trainings end, and waits until they have."""
        for i in range(workers):
            self.argv(i)
            (self.home(i) / "argv").unlink()
            (self.home(i) / "fifo").write_text(str(code))
            wait_for((self.home(i) / ".research-tpu/exit").exists)
            subprocess.run(["flock", self.home(i) / ".research-tpu/lock", "true"], check=True)

    def end(self):
        for file in self.folder.glob("worker*/.research-tpu/pid"):
            try:
                os.killpg(os.getpgid(int(file.read_text())), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue


def wait_for(condition):
    until = time.monotonic() + 100  # only so that a failure ends
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def cloud(tmp_path, template):
    cloud = Cloud(tmp_path, template)
    yield cloud
    cloud.end()
