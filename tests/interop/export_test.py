import json

import jax
import numpy as np
import pytest
import tokenizers
from safetensors import safe_open
from safetensors.numpy import load_file

from research import export as shell
from research.base.errors import UserError
from research.core.state import averaged
from research.interop import pretrained
from research.interop.export import export
from research.interop.trained import checkpoints_of
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.interop import tiny_encoder
from tests.interop.tiny_encoder import write_run


@pytest.mark.extended
@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_load_export_load_round_trips_every_byte(family, tmp_path):
    tensors = tiny_encoder.write(tmp_path / "F", family, num_classes=3)
    assert export(write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "out") == 7
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (written[name].dtype, written[name].tobytes()) == (np.float32, tensor.tobytes()), name
    with safe_open(tmp_path / "out/model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    _, once = pretrained.load(str(tmp_path / "F"), 3)
    _, twice = pretrained.load(str(tmp_path / "out"), 3)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), *jax.device_get((once, twice))))


@pytest.mark.extended
@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_exporting_an_export_gives_the_same_bytes(family, tmp_path):
    """A regression, with more embedding rows than tokens, as in published models."""
    rows = tiny_encoder.CONFIGS[family]["vocab_size"] + 7
    tensors = tiny_encoder.write(tmp_path / "F", family, num_classes=1, vocab_size=rows)
    source = tmp_path / "F"
    for out in ("once", "twice"):
        workdir = write_run(tmp_path / f"{out}-run", source, 1)
        assert RunDir(workdir).config()["model"]["vocab_size"] == rows
        export(workdir, tmp_path / out)
        source = tmp_path / out
    once, twice = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("once", "twice"))
    assert once == twice
    config = json.loads(once["config.json"])
    assert (config["id2label"], config["problem_type"]) == ({"0": "LABEL_0"}, "regression")
    table = load_file(tmp_path / "once/model.safetensors")[f"{family}.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(table, tensors[f"{family}.embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_other_files(family, tmp_path):
    tiny_encoder.write(tmp_path / "F", family, num_classes=3)
    export(write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    expected = {key: value for key, value in tiny_encoder.CONFIGS[family].items() if key != "sinusoidal_pos_embds"}
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family]
    expected["architectures"] = [f"{name}ForSequenceClassification"]
    assert {key: config[key] for key in expected} == expected
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert config["problem_type"] == "single_label_classification"

    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)
    before = tokenizers.Tokenizer.from_file(str(tmp_path / "W/assets/tokenizer.json"))
    before.no_truncation()
    assert tokenizer.encode("A film, well", "made").ids == before.encode("A film, well", "made").ids
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    special = json.loads((tmp_path / "out/special_tokens_map.json").read_text())
    assert special["cls_token"] == ("<s>" if family == "roberta" else "[CLS]")
    assert settings["pad_token"] == special["pad_token"]
    assert settings["model_max_length"] == 32
    assert ("token_type_ids" in settings["model_input_names"]) == (family == "bert")


@pytest.mark.slow
def test_run_ranked_by_averaged_parameters_exports_them(tmp_path, monkeypatch):
    tiny.few_sentences(monkeypatch, train=60, validation=20)
    for metric in ("accuracy", "ema_accuracy"):
        config = tiny.bert(steps=3, batch_size=8, ema_decay=0.5)
        config.eval.metric = metric
        config.model.vocab_size = config.data.transform.vocab_size = 300
        train_and_evaluate(config, tmp_path / metric, show=False)
        export(tmp_path / metric, tmp_path / f"{metric}-out")
    experiment = prepare(config, RunDir(tmp_path / metric).assets)
    with checkpoints_of(RunDir(tmp_path / metric)) as checkpoints:
        state, _ = checkpoints.restore(experiment.state, 3)
    for metric, params in (("accuracy", state.params), ("ema_accuracy", averaged(state, 0.5).params)):
        exported = pretrained.load(str(tmp_path / f"{metric}-out"))[1]["params"]
        # Both divide float32 numbers; measured difference: 0.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), exported, params)
    assert not np.allclose(state.params["classifier"]["kernel"], averaged(state, 0.5).params["classifier"]["kernel"])


def test_command_line(tmp_path, capsys):
    tiny_encoder.write(tmp_path / "F", "bert", num_classes=3)
    workdir, out = write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "new/out"
    assert shell.main([f"--workdir={workdir}", f"--out={out}", "--format=hf", "--checkpoint=best"]) == 0
    printed = {"step": 7, "format": "hf", "out": str(out), "dtype": "float32"}
    assert json.loads(capsys.readouterr().out) == printed
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 6
    assert len({path.stat().st_mode for path in before}) == 1
    with pytest.raises(UserError, match="not empty; choose another --out"):
        shell.main([f"--workdir={workdir}", f"--out={out}"])
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_command_reports_differences_from_the_run(tmp_path, capsys):
    tiny_encoder.write(tmp_path / "F", "bert", num_classes=3)
    workdir = write_run(tmp_path / "W", tmp_path / "F")
    config = json.loads((workdir / "config.json").read_text())
    for dtype in ("bfloat16", "float64"):
        (workdir / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        assert shell.main([f"--workdir={workdir}", f"--out={tmp_path / dtype}"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        printed = json.loads(line)
        assert (printed["dtype"], dtype in printed["note"], "float32" in printed["note"]) == (dtype, True, True)


def test_empty_folder_is_accepted_and_a_file_is_rejected(tmp_path):
    tiny_encoder.write(tmp_path / "F", "bert", num_classes=3)
    workdir = write_run(tmp_path / "W", tmp_path / "F")
    (tmp_path / "empty").mkdir()
    export(workdir, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for out, message in ((tmp_path / "file", "not empty"), (tmp_path / "file/out", "can't be written")):
        with pytest.raises(UserError, match=message):
            export(workdir, out)
    assert (tmp_path / "file").read_text() == "mine"


def test_unsupported_run_is_a_one_line_error(tmp_path):
    RunDir(tmp_path / "logistic").start(tiny.logistic().to_dict())
    with pytest.raises(UserError, match="is a run of model 'logistic'; only bert, resnet, decoder can be exported"):
        export(tmp_path / "logistic", tmp_path / "out")
    tiny_encoder.write(tmp_path / "F", "bert", num_classes=3)
    workdir = write_run(tmp_path / "W", tmp_path / "F")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["pooler"] = "relu"
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="none of bert, roberta, distilbert has"):
        export(workdir, tmp_path / "out")
    config["model"].update(pooler="tanh", vocab_size=50)
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"token ids up to 56, .* 50 rows \(model.vocab_size\)"):
        export(workdir, tmp_path / "out")
    (workdir / "assets/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"assets/tokenizer.json can't be read"):
        export(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
