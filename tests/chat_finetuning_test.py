# mypy: disable-error-code="arg-type, attr-defined, call-overload"
"""Fine-tuning on chats: runs, what they keep, their own files, and how they start and go on elsewhere."""

import json

import jax
import numpy as np
import pyarrow
import pytest
from flax.traverse_util import flatten_dict
from pyarrow import parquet

from research import api
from research.base.errors import UserError
from research.config import load
from research.core.lora import detached
from research.core.tasks import LanguageModel
from research.data.cache import ArtifactCache
from research.data.sources import instructions
from research.data.text.chats import Chats
from research.generate import main as generate
from research.inference.generate import Generator
from research.inference.model import build_module, lora_of, open_model
from research.interop import pretrained
from research.interop.export import export
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.summary import truncation_warnings
from tests import tiny
from tests.interop import tiny_decoder

SIZES = {
    "model.hidden_size": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_size": 8,
    "model.mlp_size": 24,
}
CHATML = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(instructions, "TRAIN_SIZE", 48)
    monkeypatch.setattr(instructions, "VALIDATION_SIZE", 13)


def overrides(**given):
    """Those that make the embedded preset small: few chats, as bytes, in rows of 300."""
    return {
        **SIZES,
        "data.transform.row_length": 300,
        "data.transform.max_length": 300,
        "train.steps": 6,
        "train.batch_rows": 8,
        "eval.every_steps": 3,
        **{key.replace("__", "."): value for key, value in given.items()},
    }


def tiny_chats(**given):
    return load("llama_finetune:embedded", [f"{key}={value}" for key, value in overrides(**given).items()]).config


def tiny_folder(path):
    """A Llama with a template for chats."""
    tiny_decoder.write(path, "llama", max_position_embeddings=300)
    settings = {"chat_template": CHATML, "eos_token": tiny_decoder.END, "bos_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of low-rank additions to the weights of a folder that is gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instructions, "TRAIN_SIZE", 48)
        patch.setattr(instructions, "VALIDATION_SIZE", 13)
        root = tmp_path_factory.mktemp("chats")
        folder = tiny_folder(root / "F")
        given = {"init_from": str(folder), "train.lora.rank": 2, "train.steps": 4, "train.batch_rows": 8}
        given |= {"data.transform.max_length": 300, "eval.batch_rows": 8, "optimizer.learning_rate": 0.03}
        found = api.fit("llama_finetune:smollm2", workdir=root / "run", show=False, **given).workdir
        folder.rename(root / "elsewhere")
    return found


def test_packed_and_unpacked_chats_cost_the_same():
    packed = prepare(tiny_chats(eval__batch_rows=5))
    alone = prepare(tiny_chats(eval__batch_size=5, train__batch_rows=None, train__batch_size=8))
    stream = packed.streams("validation")
    assert stream.rows.shape[1] > 1
    assert len(stream.rows) < len(alone.streams("validation").rows) == 13
    state = packed.init()
    one, records = packed.evaluate(state, "validation", predictions=True)
    other, expected = alone.evaluate(state, "validation", predictions=True)
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], abs=1e-5)
    assert one["accuracy"] == other["accuracy"]
    # The records are those of the chats, each from its first token on, however they are packed.
    assert [record["index"] for record in records] == list(range(13))
    for found, record in zip(records, expected, strict=True):
        assert found["label"] == record["label"]
        np.testing.assert_allclose(found["loss"], record["loss"], atol=1e-5)
    targets = stream.examples.targets
    for index, record in enumerate(records):
        (own,) = targets.take(np.array([index]))
        assert record["label"] == [*own.tolist(), *[-1] * (300 - len(own))]


def test_a_row_does_not_see_its_other_chats():
    """The scores of a row's last chat are the same when those before it are other chats."""
    experiment = prepare(tiny_chats())
    module = build_module(experiment.config)
    stream = experiment.streams("train")
    row = stream.rows[np.argmax((stream.rows >= 0).sum(axis=1))][None, :]
    batch = {**stream.examples.batch(row), "weight": np.ones(row.shape, np.float32)}
    params = {"params": experiment.init().params}
    last = int((row >= 0).sum())
    changed = {**batch, "tokens": np.where(batch["segments"] == last, batch["tokens"], (batch["tokens"] + 1) % 256)}
    losses = jax.jit(lambda each: LanguageModel().predictions(module.apply(params, each, train=False), each)["loss"])
    one, other = losses(batch), losses(changed)
    np.testing.assert_array_equal(one[0, last - 1], other[0, last - 1])
    assert np.abs(one[0, : last - 1] - other[0, : last - 1]).max() > 1e-3


@pytest.mark.extended
@pytest.mark.parametrize("rank", [2, None])
def test_interrupted_run_ends_equally(rank, tmp_path):
    config = tiny_chats(model__dropout=0.1, train__lora__rank=rank)
    whole = tiny.run(config, tmp_path / "whole")
    assert tiny.run(config, tmp_path / "cut", should_stop=tiny.stop_after(4))["status"] == "preempted"
    rest = tiny.run(config, tmp_path / "cut")
    assert (rest["params_sha256"], rest["metrics"]) == (whole["params_sha256"], whole["metrics"])
    assert rest["examples_seen"] > 48
    records = [json.loads(line) for line in (tmp_path / "cut/predictions/validation.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(13))


@pytest.mark.extended
def test_a_run_keeps_its_tokenizer_and_template(run, capsys):
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (run / "assets").iterdir()}
    generator = Generator.open(run)
    tokens = generator.chat([{"role": "user", "content": "hello"}])
    assert generator.tokenizer.decode(tokens, skip_special_tokens=False) == f"<user>hello{tiny_decoder.END}<assistant>"
    assert generator.ends == {generator.tokenizer.token_to_id(tiny_decoder.END)}
    assert generator.begins is None
    assert generate([f"--workdir={run}", "--chat", "--prompt=hello", "--max_tokens=3"]) == 0
    assert capsys.readouterr().out


@pytest.mark.extended
def test_an_exported_run_has_the_template_and_the_logits_of_its_additions(run, tmp_path):
    model = open_model(RunDir.open(run))
    assert all(np.any(leaf) for leaf in flatten_dict(detached(model.state.params)[1]).values())
    export(run, tmp_path / "out")
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert (settings["chat_template"], settings["eos_token"]) == (CHATML, tiny_decoder.END)
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 256
    ours, exported = Generator.open(run), Generator.open(tmp_path / "out")
    messages = [{"role": "user", "content": "é"}]
    assert ours.chat(messages) == exported.chat(messages)
    assert ours.ends == exported.ends

    module, variables = pretrained.load(str(tmp_path / "out"))
    batch = model.encoder.encode(instructions.generate(5, validation=True, seed=3)).batch(np.arange(5)[:, None])
    batch = {name: batch[name] for name in ("tokens", "segments", "positions")}
    merged = module.apply(variables, batch, train=False)["logits"]
    with lora_of(model.config).applied(train=False):  # as training computes them, with A and B beside the kernels
        added = model.module.apply({"params": model.state.params}, batch, train=False)["logits"]
    np.testing.assert_allclose(merged, added, atol=1e-5)


@pytest.mark.extended
def test_a_run_starts_another(run):
    config = tiny_chats(init_from=run)
    resolved = pretrained.resolve_init_from(config, (), "none").config.data.transform
    assert (resolved.tokenizer, resolved.chat_template) == (str(run / "assets/tokenizer.json"), str(run / "assets"))
    assert resolved.end_of_text == tiny_decoder.END
    assert _encoder(resolved).template.source == CHATML


def _encoder(transform):
    options = {key: value for key, value in transform.items() if key != "name"}
    return Chats(**options).fit({}, ArtifactCache())


def test_a_folder_without_a_template_keeps_the_built_in_one(tmp_path):
    folder = tiny_folder(tmp_path / "F")
    (folder / "tokenizer_config.json").unlink()
    config = pretrained.resolve_init_from(tiny_chats(init_from=folder), (), "none").config
    assert (config.data.transform.chat_template, config.data.transform.end_of_text) == ("chatml", tiny_decoder.END)
    encoder = _encoder(config.data.transform)
    assert encoder.template.prompt([{"role": "user", "content": "x"}]) == (
        f"<|im_start|>user\nx{tiny_decoder.END}\n<|im_start|>assistant\n"
    )


def _write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def _chats(count):
    return [
        {
            "messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}],
            "meta": {"from": [i]},
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("form", ["jsonl", pytest.param("parquet", marks=pytest.mark.extended)])
def test_own_chats(form, tmp_path, capsys):
    rows = _chats(40)
    path = _write(tmp_path / "chats.jsonl", rows)
    if form == "parquet":
        path = tmp_path / "chats.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    given = overrides(train__steps=2, data__train=str(path))
    run = api.fit("llama_finetune:embedded", workdir=tmp_path / "run", show=True, **given)
    said = capsys.readouterr().out
    assert f"generate: python -m research.generate --workdir={tmp_path}/run --chat --prompt=TEXT" in said
    assert run.config.data.name == "files"
    assert tuple(run.config.data.kinds) == ("messages=json",)
    assert run.summary["data"]["source"] == "files"
    records = [json.loads(line) for line in (run.workdir / "predictions/validation.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        answer = [token for token in record["label"] if token >= 0]
        assert bytes(answer[:-1]).decode() == str(record["key"])
        assert answer[-1] == 257


BAD = {
    "no such column": ({"chat": []}, r"has no column 'messages'"),
    "none in a row": ({"text": "a"}, r"row 2 \(counting from 0\) of .*chats.jsonl: 'messages': there is no value"),
    "unknown role": (
        {"messages": [{"role": "bot", "content": "a"}]},
        r"row 2 .*'messages': message 0 has the role 'bot'; known: system, user, assistant",
    ),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "row 2 .*no message has the role 'assistant'"),
    "not JSON": ("{", r"line 3, column 2 of .*chats.jsonl is not valid JSON"),
    "a number": ({"messages": 7}, r"row 2 .*column 'messages' is 7, and"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_own_chats_is_one_line(name, tmp_path):
    row, message = BAD[name]
    rows = [row] if name == "no such column" else [*_chats(2), row, *_chats(8)]
    files = {"train": _write(tmp_path / "chats.jsonl", rows), "validation": _write(tmp_path / "held.jsonl", _chats(3))}
    given = overrides(train__steps=1, **{f"data.{split}": str(path) for split, path in files.items()})
    with pytest.raises(UserError, match=message) as error:
        api.fit("llama_finetune:embedded", workdir=tmp_path / "run", show=False, **given)
    assert "\n" not in str(error.value)


def test_truncated_chats_are_counted_in_warnings():
    lines = truncation_warnings(prepare(tiny_chats(data__transform__max_length=60)))
    assert [line.split(" are truncated: the longest has ")[0].split("% of ")[1] for line in lines] == [
        "the examples of train",
        "the examples of validation",
    ]


def test_own_files_take_the_place_of_the_dataset():
    assert load("llama_finetune:embedded", ["data.train=x.jsonl"]).config.data.name == "files"
    assert load("llama_finetune:embedded", ["data.train=x", "data.name=line"]).config.data.name == "line"
    assert load("llama_finetune:embedded", ["data.train=None"]).config.data.name == "instructions"
