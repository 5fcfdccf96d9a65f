import pytest
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.config import load
from research.configs import logistic_digits
from research.configs.defaults import defaults
from research.data import load as data

DIABETES = "configs/linear_diabetes.py"


def test_overrides_are_applied_with_their_types():
    config = load(DIABETES, ["--config.train.steps=7", "optimizer.learning_rate=1", "eval.splits=test,train"]).config
    assert config.train.steps == 7
    assert config.optimizer.learning_rate == 1.0
    assert config.eval.splits == ("test", "train")


@pytest.mark.parametrize("config", ["configs/logistic_digits.py", DIABETES])
def test_steps_and_epochs_replace_each_other(config):
    assert load(config, ["train.steps=5"]).config.train.epochs is None
    assert load(config, ["train.epochs=2"]).config.train.steps is None
    assert load(config, ["train.epochs=2"]).config.train.epochs == 2.0


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        (
            DIABETES,
            ["--config.train.stepz=7"],
            r"config key 'train.stepz' is unknown; did you mean 'train.steps'\?",
        ),
        (DIABETES, ["--config.train.steps"], "has no value"),
        (DIABETES, ["--config.train.steps=many"], "override not understood: .*many"),
        (DIABETES, ["--config.train=3"], "config key 'train' is unknown"),
        (DIABETES + ":embeded", [], r"has no preset 'embeded'; did you mean 'embedded'\?"),
        ("configs/linear_diabets.py", [], r"does not exist; did you mean 'linear_diabetes.py'\?"),
        ("research/base/errors.py", [], "lacks get_config, PRESETS, FULL"),
    ],
)
def test_invalid_specs_are_one_line_errors(spec, overrides, message):
    with pytest.raises(UserError, match=message):
        load(spec, overrides)


def test_unreadable_config_is_a_one_line_error(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:")
    with pytest.raises(UserError, match=r"broken.py can't be read: SyntaxError"):
        load(str(tmp_path / "broken.py"))


class TestAuto:
    """Without a preset: the full size if it is available, otherwise embedded and the reason."""

    def test_full_size_if_it_is_available(self, monkeypatch):
        monkeypatch.setattr(data, "missing", lambda section: None)
        experiment = load("configs/logistic_sst2.py")
        assert (experiment.config.preset, experiment.note) == ("sst2", None)

    @pytest.mark.parametrize("preset", ["", ":auto"])
    def test_embedded_if_data_is_missing(self, monkeypatch, preset):
        monkeypatch.setattr(data, "missing", lambda section: "no data")
        experiment = load("configs/logistic_sst2.py" + preset)
        assert experiment.config.preset == "embedded"
        assert "preset sst2 is unavailable here: no data. Running preset embedded" in experiment.note
        assert "--config=configs/logistic_sst2.py:sst2" in experiment.note

    def test_embedded_if_there_is_no_accelerator(self, monkeypatch):
        monkeypatch.setattr(data, "missing", lambda section: None)
        experiment = load("configs/bert_sst2.py")
        assert experiment.config.preset == "embedded"
        assert "no accelerator" in experiment.note

    def test_overrides_decide_what_is_looked_up(self, monkeypatch, tmp_path):
        """The given weights and data, not those of the preset; and an accelerator only if one is needed."""
        looked = []
        monkeypatch.setattr(data, "missing", lambda section: looked.append(section.data_dir))
        given = [f"--config.init_from={tmp_path}", f"data.data_dir={tmp_path}", "model.num_classes=3"]
        experiment = load("configs/bert_sst2.py", given)
        assert looked == [str(tmp_path)]
        assert experiment.config.preset == "embedded"
        assert "pretrained weights" not in experiment.note
        experiment = load("configs/bert_sst2.py", [*given, "needs_accelerator=False"])
        assert (experiment.config.preset, experiment.note) == ("base", None)
        assert experiment.given == {"init_from", "data.data_dir", "model.num_classes", "needs_accelerator"}

    @pytest.mark.parametrize(
        "config", ["configs/bert_sst2.py", "configs/bert_glue.py:auto", "configs/logistic_sst2.py"]
    )
    @pytest.mark.parametrize(
        ("overrides", "asked"),
        [
            (["data.name=glue/nonexistent"], "data.name=glue/nonexistent was requested but is unavailable"),
            (["data.data_dir=EMPTY"], "data.data_dir=.* was requested but is unavailable"),
            (["init_from=missing", "needs_accelerator=False"], "init_from=missing was requested but is unavailable"),
        ],
    )
    def test_requested_data_and_weights_are_never_replaced(self, config, overrides, asked, monkeypatch, tmp_path):
        """The preset `embedded` would fail with the same override, or ignore it."""
        real = data.missing
        monkeypatch.setattr(data, "missing", lambda section: real({**section, "data_dir": str(tmp_path)}))
        with pytest.raises(UserError, match=asked):
            load(config, [override.replace("EMPTY", str(tmp_path)) for override in overrides])

    def test_note_names_the_requested_keys_that_are_kept(self, tmp_path):
        note = load("configs/bert_sst2.py", [f"init_from={tmp_path}", "data.name=sentiment"]).note
        assert "preset embedded instead, with the requested data.name and init_from; " in note

    def test_note_names_the_preset_for_a_cpu(self, monkeypatch):
        monkeypatch.setattr(data, "missing", lambda section: "no data")
        note = load("configs/bert_sst2.py").note
        assert "made for a CPU: python -m research.train --config=configs/bert_sst2.py:minilm; the full job: " in note
        assert "made for a CPU" not in load("configs/logistic_sst2.py").note

    def test_named_preset_is_never_replaced(self, monkeypatch):
        monkeypatch.setattr(data, "missing", lambda section: "no data")
        assert load("configs/logistic_sst2.py:sst2").config.preset == "sst2"

    def test_overrides_apply_to_the_chosen_preset(self, monkeypatch):
        monkeypatch.setattr(data, "missing", lambda section: "no data")
        assert load("configs/bert_sst2.py", ["train.batch_size=8"]).config.train.batch_size == 8


def test_one_penalty_replaces_another():
    section = load("configs/logistic_iris.py", ["optimizer.weight_decay=0.01"]).config.optimizer
    assert (section.weight_decay, section.C, section.alpha) == (0.01, None, None)
    assert load("configs/logistic_iris.py", ["optimizer.C=None"]).config.optimizer.C is None
    assert load("configs/logistic_iris.py", ["optimizer.C=3"]).config.optimizer.C == 3


CONFIG_FILE = """from ml_collections import ConfigDict
from research.configs import logistic_digits
PRESETS = ("embedded",)
FULL = "embedded"
def get_config(preset=""):
    config = logistic_digits.get_config("embedded")
    config.task = ConfigDict({"name": "classification"})
    STATEMENT
    return config
"""


@pytest.fixture
def with_statement(tmp_path):
    """A config file with an extra statement on line 8."""

    def write(statement):
        path = tmp_path / "own.py"
        path.write_text(CONFIG_FILE.replace("STATEMENT", statement))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("statement", "key", "near"),
    [
        ("config.optimzer.learning_rate = 1", "optimzer", "optimizer"),
        ("config.optimizer.learningrate = 1", "optimizer.learningrate", "optimizer.learning_rate"),
        ("config.train.step = 5", "train.step", "train.steps"),
        ("config['train']['step'] = 5", "train.step", "train.steps"),
        ("config.eval.update(split=('test',))", "eval.split", "eval.splits"),
        ("config.lr = 1", "lr", "optimizer.learning_rate"),
        ("config.train.wd = 1", "train.wd", "optimizer.weight_decay"),
        ("config.train.steps = 'many'", "train.steps", "many"),
    ],
)
def test_typos_in_a_config_file_are_one_line_errors(statement, key, near, with_statement):
    with pytest.raises(UserError, match=r"own\.py, line 8: ") as caught:
        load(with_statement(statement))
    message = str(caught.value)
    assert key in message
    assert f"'{near}'" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("config.model.num_clases = 3", r"own\.py.*model\.num_clases .*'model\.num_classes'"),
        ("no_such_name", r"own\.py, line 8.*NameError.*no_such_name"),
        ("return None", r"own\.py.*NoneType"),
    ],
)
def test_other_errors_in_a_config_file(statement, message, with_statement):
    with pytest.raises(UserError, match=message):
        load(with_statement(statement))


def test_error_in_an_imported_config_names_its_file(tmp_path, monkeypatch):
    (tmp_path / "base_of_own.py").write_text(CONFIG_FILE.replace("STATEMENT", "config.train.step = 5"))
    (tmp_path / "own.py").write_text(
        "import base_of_own\nPRESETS, FULL = ('embedded',), 'embedded'\nget_config = base_of_own.get_config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"base_of_own\.py, line 8"):
        load(str(tmp_path / "own.py"))


def test_error_at_import_names_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("\n1 / 0")
    with pytest.raises(UserError, match=r"broken\.py.*ZeroDivisionError.*line 2"):
        load(str(tmp_path / "broken.py"))


def test_keys_cannot_be_added_by_mistake(with_statement):
    """Neither to a loaded config nor to the defaults; a section can be replaced."""
    for config in (load(with_statement("pass")).config, defaults(), logistic_digits.get_config()):
        for section, key in ((config.train, "step"), (config, "optimzer")):
            with pytest.raises(AttributeError, match=key):
                setattr(section, key, 1)
        config.model = ConfigDict({"name": "mlp"})
        config.train.steps = 5


def test_any_field_can_be_overridden(with_statement):
    """Fields of the model, the task and the transform, listed or not; the type is that of the annotation."""
    path = with_statement("del config.data.transform['label']")
    task = load(path, ["task.class_weight=balanced", "task.label_smoothing=1"]).config.task
    assert task.to_dict() == {"name": "classification", "class_weight": "balanced", "label_smoothing": 1.0}
    assert type(task.label_smoothing) is float
    assert load(path, ["task.class_weight={1: 2}"]).config.task.class_weight[:3] == (1.0, 2, 1.0)
    assert load(path, ["task.class_weight=None"]).config.task.class_weight is None
    assert load(path, ["data.transform.label=x"]).config.data.transform.label == "x"
    loaded = load(path, ["model.name=resnet20", "model.test_flip=True", "model.mean=3"])
    assert (loaded.config.model.test_flip, loaded.config.model.mean) == (True, (3.0,))
    assert loaded.given == {"model.name", "model.test_flip", "model.mean"}
    config = load(path, ["task.name=regression", "task.hidden_label=-1"]).config
    assert (config.task.hidden_label, config.is_locked, config.task.is_locked) == (-1.0, True, True)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["task.class_weights=balanced"], ["task.class_weights", "'task.class_weight'"]),
        (["task.label_smoothing=None"], ["task.label_smoothing", "None"]),
        (["task.label_smoothing=much"], ["task.label_smoothing", "'much'"]),
        (["task.label_smoothing=2"], ["task.label_smoothing", "2"]),
        (["model.test_flip=True"], ["model.test_flip", "model.num_classes"]),
        (["model.name=mlp", "model.hidden_sizes=x"], ["model.hidden_sizes", "'x'", "integers"]),
        (["data.transform.kept=x"], ["data.transform.kept", "data.transform.mean"]),
        (["model.dtype=float32"], ["model.dtype", "'dtype'"]),
    ],
)
def test_unknown_field_or_invalid_value_is_an_error(overrides, named, with_statement):
    with pytest.raises(UserError) as caught:
        load(with_statement("pass"), overrides)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(("config", "packs"), [("configs/bert_sst2.py:embedded", True), (DIABETES, False)])
def test_hint_names_rows_if_the_config_packs(config, packs):
    with pytest.raises(UserError, match=r"'bs'.*'train\.batch_size'") as caught:
        load(config, ["bs=8"])
    assert ("train.batch_rows" in str(caught.value)) == packs
