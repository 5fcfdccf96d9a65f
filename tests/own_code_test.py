"""A user's own modules, `imports`, and config files found by name, whatever the current directory is."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from research import api
from research.base.errors import UserError
from research.base.imports import import_own
from research.config import load
from research.models import MODELS
from research.runs.rundir import RunDir

MODEL = """
from flax import linen as nn
from research.models import MODELS


class Own(nn.Module):
    num_classes: int
    dtype: object = None

    @nn.compact
    def __call__(self, batch, *, train):
        return nn.Dense(self.num_classes)(batch["features"])


MODELS["own"] = Own
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A user's repository, which is the current directory: a package `lab_NAME` and a package `configs`."""
    name = f"lab_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "models.py").write_text(MODEL)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("raise RuntimeError('the configs of someone else')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield name
    MODELS.pop("own", None)


def _forget(lab):
    """As in a new process in another folder."""
    MODELS.pop("own", None)
    for name in [name for name in sys.modules if name.startswith((lab, "models_"))]:
        del sys.modules[name]


@pytest.mark.parametrize("by", ["name", "path"])
def test_own_model_trains_and_is_found_again_from_elsewhere(by, lab, tmp_path_factory, monkeypatch):
    what = f"{lab}.models" if by == "name" else f"{lab}/models.py"
    overrides = {"imports": what, "model.name": "own", "train.steps": 2}
    workdir = api.fit("logistic_digits", workdir="run", show=False, **overrides).workdir
    assert RunDir.open(workdir).config()["imports"] == [what]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.startswith(str(workdir.parent))])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    _forget(lab)
    assert api.open_run(workdir).evaluate("test")["step"] == 2


def test_own_model_of_the_readme_trains_and_predicts(lab, tmp_path):
    """As it is printed there, on a table; the README's command names the module as `my_lab/models.py`."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (model,) = (block for block in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S) if "MODELS[" in block)
    (tmp_path / lab / "models.py").write_text(model)
    (name,) = re.findall(r'MODELS\["(\w+)"\]', model)
    overrides = {"imports": f"{lab}/models.py", "model.name": name, "model.width": 8, "train.steps": 2}
    run = api.fit("logistic_digits", workdir="run", show=False, **overrides)
    MODELS.pop(name)
    _forget(lab)
    assert len(run.predict({"features": np.zeros((3, 8, 8, 1))})) == 3
    MODELS.pop(name)


def test_own_model_without_dtype_is_one_line_and_leaves_nothing(lab, tmp_path):
    (tmp_path / lab / "models.py").write_text(MODEL.replace("    dtype: object = None\n", ""))
    with pytest.raises(UserError, match=r"^model 'own' has no field dtype, .*`dtype: Any = None`$"):
        api.fit("logistic_digits", workdir="run", show=False, imports=f"{lab}.models", **{"model.name": "own"})
    assert not (tmp_path / "run").exists()


def test_missing_module_is_one_line_with_the_way_out(lab):
    with pytest.raises(UserError, match=rf"no module '{lab}.modelz' in .*--config.imports=FOLDER/FILE.py"):
        load("logistic_digits", [f"imports={lab}.modelz"])
    with pytest.raises(UserError, match=r"there is no file .*gone.py"):
        load("logistic_digits", ["imports=gone.py"])


@pytest.mark.parametrize("by", ["name", "path"])
def test_error_in_a_module_names_its_file_and_line(by, lab, tmp_path):
    (tmp_path / lab / "bad.py").write_text("x = 1\ny = z\n")
    with pytest.raises(UserError, match=r"NameError: name 'z' is not defined \(.*bad\.py, line 2\)"):
        import_own([f"{lab}.bad" if by == "name" else f"{lab}/bad.py"])


def test_module_that_lacks_a_package_is_named_with_it(lab, tmp_path):
    (tmp_path / lab / "needs.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(UserError, match=r"needs can't be imported: .*no_such_package_at_all"):
        import_own([f"{lab}.needs"])


def test_config_is_found_by_name_from_a_folder_with_configs_of_its_own(lab):
    assert load("majority:embedded").config.data.name == "digits"  # majority imports four other configs
    assert load("logistic_digits").config.preset == "embedded"
    with pytest.raises(UserError, match=r"'logistic_digit' is unknown; did you mean 'logistic_digits'\?"):
        load("logistic_digit")
    with pytest.raises(UserError, match=r"configs/majority.py does not exist; the name majority works in any folder$"):
        load("configs/majority.py")


def test_users_config_file_sets_imports(lab, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from research.configs import logistic_iris\n\nPRESETS, FULL = ('embedded',), 'embedded'\n\n\n"
        "def get_config(preset):\n    config = logistic_iris.get_config(preset)\n"
        f"    config.imports = ('{lab}.models',)\n    config.model.name = 'own'\n    return config\n"
    )
    assert load("mine.py").config.model.name == "own"
    assert "own" in MODELS
    with pytest.raises(UserError, match=r"model\.width is not a key of 'own'|'model.width' is unknown"):
        load("mine.py", ["model.width=3"])


def test_places_are_recorded(lab, tmp_path):
    places = import_own([f"{lab}.models", f"{lab}/models.py"])
    assert places == {f"{lab}.models": str(tmp_path), f"{lab}/models.py": str(tmp_path / lab / "models.py")}
    assert json.loads(json.dumps(places)) == places
