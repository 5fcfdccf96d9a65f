"""`research.list`, `research.configs` and `--print_config`: names, keys, values and comments."""

import re

import pytest

from research import catalog, comments, train
from research import list as list_command
from research.base.errors import UserError
from research.base.trees import flatten
from research.config import load
from research.core.tasks import TASKS
from research.data import load as data
from research.models import MODELS


@pytest.mark.parametrize(
    ("kind", "table"),
    [("models", MODELS), ("tasks", TASKS), ("transforms", data.TRANSFORMS), ("sources", data.SOURCES)],
)
def test_every_name_of_a_table_is_listed_with_a_description(kind, table):
    listed = list(catalog.KINDS[kind]())
    assert [name for name, _, _ in listed] == list(table)
    assert all(description for _, description, _ in listed)


def test_keys_are_those_that_a_config_can_set():
    keys = {name: keys for name, _, keys in catalog.models()}
    assert keys["cnn"] == ["num_classes", "padding", "dropout", "mean", "std"]
    assert "stage_sizes" not in keys["resnet50"]  # bound by the variant
    assert {name: keys for name, _, keys in catalog.optimizers()}["sgd"] == ["momentum", "nesterov"]


def test_metrics_are_those_of_the_tasks():
    found = {name: names for name, _, names in catalog.metrics()}
    assert {"accuracy", "f1", "loss", "matthews"} == set(found["classification"])
    assert "perplexity" in found["masked_lm"]
    assert {"loss", "perplexity", "accuracy", "bits_per_byte"} == set(found["language_model"])
    assert {"r2", "spearman", "mean_absolute_error"} <= set(found["regression"])


def test_configs_are_listed_with_their_presets_and_what_is_not_here(monkeypatch):
    monkeypatch.setattr(data, "missing", lambda section: "no data" if section["name"] == "mnist" else None)
    lines = list(catalog.configs())
    at = next(i for i, line in enumerate(lines) if line.startswith("mlp_mnist: "))
    embedded, mnist = lines[at + 1 : at + 3]
    assert embedded.split()[:4] == ["embedded", "mlp", "on", "digits,"]
    assert embedded.endswith("(available)")
    assert mnist.split()[0] == "mnist"
    assert mnist.endswith("(not here: the dataset mnist)")


def test_a_users_modules_are_listed_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    (tmp_path / "own.py").write_text(
        'from research.data import load\n\n\ndef words():\n    """Some words."""\n\n\n'
        'load.SOURCES["words"] = ("own", words)\n'
    )
    assert list_command.main(["sources", f"--imports={tmp_path}/own.py"]) == 0
    assert "words: Some words." in capsys.readouterr().out


def test_printed_config_has_every_key_its_value_and_comments(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_stop_on_signals", list)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config=cnn_mnist:embedded", "--print_config", "--config.train.epochs=3"]) == 0
    assert not list(tmp_path.iterdir())
    printed = {}
    for line in capsys.readouterr().out.splitlines():
        setting, _, comment = line.partition("  # ")
        key, _, value = setting.partition(" = ")
        printed[key] = (value.strip(), comment)
    config = load("cnn_mnist:embedded", ["train.epochs=3"]).config
    assert {key: value for key, (value, _) in printed.items()} == {
        key: repr(value) for key, value in flatten(config.to_dict()).items()
    }
    assert printed["optimizer.learning_rate"][1] == "the peak"  # in defaults.py, beside it
    assert printed["train.ema_decay"][1].startswith("Decay of a running average")  # above it, on two lines
    assert printed["train.ema_decay"][1].endswith("no average.")
    assert printed["model.padding"][1] == "VALID, SAME"  # in the config file
    assert printed["data.transform.augment.flip"][1]  # of a section in a section, made by a function of defaults.py
    assert list(printed)[:3] == ["preset", "seed", "imports"]  # in the order of the file


def test_comment_on_an_assignment_counts_where_it_sets_the_value():
    loaded = load("bert_sst2:scratch")
    assert "about 66 examples" in comments.with_comments(loaded.config, loaded.file)
    other = load("bert_sst2:scratch", ["train.batch_rows=9"])
    assert "about 66 examples" not in comments.with_comments(other.config, other.file)


def test_what_own_files_determine_is_said_to_be_inferred():
    for spec, inferred, own in (
        (
            "tabular_files",
            {"train.epochs", "train.batch_size", "model.num_classes", "eval.every_steps"},
            {"model.mean"},
        ),
        ("image_files", {"train.epochs", "model.mean", "data.transform.size"}, {"optimizer.learning_rate"}),
        ("text_files:embedded", {"train.epochs", "train.batch_rows"}, {"model.hidden_size"}),
        ("tabular_files:linear", {"model.num_classes"}, {"train.batch_size", "train.steps"}),
        ("cnn_mnist:embedded", set(), {"train.epochs", "model.num_classes"}),
    ):
        loaded = load(spec)
        lines = comments.with_comments(loaded.config, loaded.file).splitlines()
        said = {line.split(" = ")[0] for line in lines if line.endswith("inferred from the data unless given")}
        assert inferred <= said
        assert not own & said
    at = [line for line in catalog.configs() if " on files, " in line]
    assert at
    assert not any(re.search(r"\d epochs", line) for line in at)


def test_the_kinds_are_named_if_none_is_given():
    with pytest.raises(UserError, match=", ".join(list_command.KINDS)):
        list_command.main([])
