import importlib
import shutil
from pathlib import Path

import pytest

from research.base.errors import UserError
from research.base.paths import expanded, shown
from research.config import load
from research.data.text.wordpiece import read_tokenizer
from research.interop import source
from research.runs.rundir import RunDir


@pytest.fixture
def home(tmp_path, monkeypatch):
    import matplotlib.font_manager  # noqa: F401 - builds a font cache in the home directory, which takes seconds

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tilde_is_the_home_directory(home):
    assert expanded("~/a") == home / "a"
    assert RunDir("~/runs/x").path == home / "runs/x"
    assert expanded("a/~") == Path("a/~")


def test_user_without_a_home_directory_is_a_one_line_error():
    for read in (RunDir, load, lambda path: read_tokenizer(path, lowercase=True)):
        with pytest.raises(UserError, match="~nosuchuser"):
            read("~nosuchuser/x.txt")


@pytest.mark.parametrize("key", ["init_from", "data.data_dir", "data.transform.tokenizer"])
def test_path_in_a_key_without_a_home_directory_is_a_one_line_error(key):
    with pytest.raises(UserError, match="~nosuchuser"):
        load("configs/bert_sst2.py", [f"{key}=~nosuchuser/x"])


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("evaluate", ["--workdir=~/r"]),
        ("plot", ["--workdir=~/r"]),
        ("coefficients", ["--workdir=~/r"]),
        ("export", ["--workdir=~/r", "--out=~/o"]),
        ("glue", ["--workdirs=~/r", "--out=~/o"]),
    ],
)
def test_every_command_expands_the_tilde(home, module, arguments):
    """The run does not exist; the error gives the expanded path."""
    with pytest.raises(UserError, match=f"{home}/r is not a run directory"):
        importlib.import_module(f"research.{module}").main(arguments)
    assert not list(home.iterdir())


def test_output_paths_expand_the_tilde(home):
    from research.analysis.ladder import LADDERS, run_ladder
    from research.analysis.leaderboard import submit

    run_ladder(LADDERS["digits"], Path("~/ladder"), names=[], seeds=1, train=lambda *_: {})
    assert (home / "ladder/table.json").is_file()
    (home / "o").write_text("")
    with pytest.raises(UserError, match=f"{home}/o"):
        submit({}, Path("~/o"), which="last", overwrite=False, say=print)


def test_config_in_a_folder_with_a_colon(home):
    config = Path(__file__).parents[1] / "configs/linear_line.py"
    (home / "a:b").mkdir()
    shutil.copy(config, home / "a:b/own.py")
    for spec in ("a:b/own.py", "a:b/own.py:embedded", "a:b/own.py:auto", "~/a:b/own.py"):
        loaded = load(spec)
        assert (loaded.file.stem, loaded.config.preset) == ("own", "embedded")
    with pytest.raises(UserError, match=r"a:b/own.py has no preset 'x'"):
        load("a:b/own.py:x")
    with pytest.raises(UserError, match=r"a:b/on.py does not exist; did you mean 'own.py'"):
        load("a:b/on.py")


@pytest.mark.parametrize("path", ["README.md", "configs", "", "x" * 300, "configs/bert_sst2.py/x.py"])
def test_invalid_config_file_is_a_one_line_error(path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(UserError, match=r"^config "):
        load(path)


def test_too_long_a_path_is_a_one_line_error():
    run = RunDir("x" * 300)
    with pytest.raises(UserError, match="can't be written"):
        run.start({})
    with pytest.raises(UserError, match="is not a run directory"):
        RunDir.open("x" * 300)
    with pytest.raises(UserError, match="is not a folder"):
        source.folder("x" * 300)


def test_paths_in_the_current_folder_are_shown_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(shown(tmp_path / "a" / "b.csv")) == "a/b.csv"
    assert shown(tmp_path.parent / "b.csv") == tmp_path.parent / "b.csv"
