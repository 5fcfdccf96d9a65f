# mypy: disable-error-code="arg-type"
"""Folders of transformers as models, and what an export is served as. Compared with transformers in tests/parity."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.base.errors import UserError
from research.inference.predictor import Predictor
from research.inference.samples import parse_samples, read_samples
from research.interop import pretrained
from research.interop.export import export
from research.runs.rundir import RunDir
from research.serve.limits import Limits
from research.serve.model import ServedModel
from research.serve.operations import USUAL
from research.serve.repository import Source, check
from tests.interop import tiny_encoder, tiny_resnet
from tests.serve.conftest import TEXTS, answer_all

# One shape or two of each length.
FEW = Limits(batch_ms=1000.0, batch_items=32, batch_rows=2)


def opened(folder, operations=USUAL):
    """The model of a folder, compiled."""
    source = Source.of(f"m={folder}", operations=operations)
    model = ServedModel.open("m", source.run, operations=source.operations)
    for _ in model.warm_up(FEW):
        pass
    return model


def write_masked(folder, family="bert", **changes):
    """A tiny masked language model: the encoder of `tiny_encoder`, and a head -> its tensors."""
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family]
    tensors = tiny_encoder.write(folder, family, **{"architectures": [f"{name}ForMaskedLM"], **changes})
    dense, norm, head = {
        "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"),
        "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head"),
        "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    }[family]
    size, rows = 8, tiny_encoder.CONFIGS[family]["vocab_size"]
    tensors |= {
        f"{dense}.weight": np.sin(np.arange(size * size, dtype=np.float32)).reshape(size, size),
        f"{dense}.bias": np.cos(np.arange(size, dtype=np.float32)),
        f"{norm}.weight": 1 + 0.1 * np.arange(size, dtype=np.float32),
        f"{norm}.bias": 0.1 * np.arange(size, dtype=np.float32),
        f"{head}.bias": np.sin(3 * np.arange(rows, dtype=np.float32)),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def write_classifier(folder, names=("no", "yes"), **changes):
    """A tiny BERT for sequence classification with these labels -> its tensors."""
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
    changes = {"architectures": ["BertForSequenceClassification"], **labels, **changes}
    return tiny_encoder.write(folder, num_classes=len(names), **changes)


def logits(folder, text, pair=None):
    """What the network of a folder computes for one input, without the service."""
    module, variables = pretrained.load(str(folder))
    tokenizer = Source.of(f"m={folder}").run.encoder.text.tokenizer
    encoding = tokenizer.encode(text, pair)
    tokens = np.array([encoding.ids], np.int32)
    batch = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "positions": np.arange(tokens.size, dtype=np.int32)[None],
        "type_ids": np.array([encoding.type_ids], np.int32),
        "starts": np.zeros((1, 1), np.int32),
    }
    return np.asarray(module.apply(variables, batch, train=False))[0, 0]


@pytest.mark.extended
def test_texts_and_pairs_of_a_classifier(tmp_path):
    write_classifier(tmp_path / "f")
    model = opened(tmp_path / "f")
    assert (model.signature.kind, model.signature.label_names) == ("text_or_pair", ("no", "yes"))
    assert (model.operation, list(model.others)) == ("predict", [])
    texts, pairs = ["well made", "a film", "so"], ["a b c", None, None]
    answers, _ = answer_all(model, model.encode({"text": texts, "text_pair": pairs}))
    for answer, text, pair in zip(answers, texts, pairs, strict=True):
        np.testing.assert_allclose(answer.values["outputs"], logits(tmp_path / "f", text, pair), atol=1e-5)
    (alone,), _ = model.answer(model.encode({"text": ["a film"]}))
    np.testing.assert_allclose(alone.values["scores"], answers[1].values["scores"], atol=1e-6)
    assert alone.version == model.version == Source.of(str(tmp_path / "f")).version()
    assert len(model.version) == 8


@pytest.mark.extended
def test_a_regression_gives_a_number(tmp_path):
    write_classifier(tmp_path / "f", names=("LABEL_0",))
    model = opened(tmp_path / "f")
    (answer,), _ = model.answer(model.encode({"text": ["a film"]}))
    np.testing.assert_allclose(answer.values["prediction"], logits(tmp_path / "f", "a film")[0], atol=1e-5)
    assert "scores" not in answer.values
    assert model.signature.label_names is None


@pytest.mark.extended
def test_an_encoder_without_a_head_has_embeddings_only(tmp_path):
    tiny_encoder.write(tmp_path / "f")
    model = opened(tmp_path / "f")
    assert (model.operation, list(model.others)) == ("embed", ["embed_all"])
    assert (model.signature.kind, model.signature.inputs) == ("text", ("text",))
    parts = model.encode({"text": ["a film", "so"]})
    means, _ = answer_all(model, parts)
    each, _ = answer_all(model.others["embed_all"], parts)
    for mean, tokens, part in zip(means, each, parts, strict=True):
        assert tokens.values["embedding"].shape == (part.length, 8)
        np.testing.assert_allclose(mean.values["embedding"], tokens.values["embedding"].mean(axis=0), atol=1e-5)


def test_limits_of_a_text_in_other_files(tmp_path):
    tiny_encoder.write(tmp_path / "f")
    limit = lambda: Source.of(str(tmp_path / "f")).run.signature.limits["max_length"]  # noqa: E731
    assert limit() == 32
    (tmp_path / "f/tokenizer_config.json").write_text(json.dumps({"model_max_length": 20}))
    assert limit() == 20
    (tmp_path / "f/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    assert limit() == 12


def test_new_weights_are_another_version(tmp_path):
    tensors = write_classifier(tmp_path / "f")
    source = Source.of(str(tmp_path / "f"))
    before = source.version()
    assert source.version() == before
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] + 1}, tmp_path / "f/model.safetensors")
    assert source.version() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5'; known: bert"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"architectures": ["BertForImageClassification"]}, "BertForImageClassification"),
        ({"architectures": None}, "architectures None"),
        ({"problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification'"),
        ({"problem_type": "regression"}, "2 labels and problem_type 'regression'"),
        ({"id2label": {"0": "a", "2": "b"}}, "0 to the number of classes"),
        ({"architectures": ["BertForMaskedLM"]}, "lacks cls.predictions.bias"),
        ({"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"architectures": ["BertForMaskedLM"], "hidden_act": "relu"}, "activation 'relu'"),
        ({"num_attention_heads": 3}, "num_heads=3 does not divide"),
        ({"hidden_size": 16}, "has shape"),
    ],
)
def test_folders_that_are_refused(tmp_path, changes, message):
    write_classifier(tmp_path / "f")
    config = json.loads((tmp_path / "f/config.json").read_text())
    (tmp_path / "f/config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message) as refused:
        Source.of(str(tmp_path / "f"))
    assert "\n" not in str(refused.value)


def test_folders_with_files_missing_or_damaged_are_refused(tmp_path):
    write_classifier(tmp_path / "f")
    weights = tmp_path / "f/model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-10], b"", b"\0" * 100):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"model.safetensors can't be read"):
            Source.of(str(tmp_path / "f"))
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        Source.of(str(tmp_path / "f"))
    weights.write_bytes(whole)
    (tmp_path / "f/vocab.txt").unlink()
    with pytest.raises(UserError, match=r"neither tokenizer.json nor vocab.txt"):
        Source.of(str(tmp_path / "f"))


@pytest.mark.extended
def test_a_resnet_resizes_images_as_its_processor_says(tmp_path):
    sizes = {"size": {"shortest_edge": 28}, "crop_pct": 0.875, "resample": 2}
    tiny_resnet.write(tmp_path / "f", preprocessor={**tiny_resnet.PREPROCESSOR, **sizes})
    model = opened(tmp_path / "f")
    assert (model.signature.kind, model.signature.limits) == ("image", {"channels": 3, "size": 28})
    images = tiny_resnet.images()  # of 32 × 32, of which the centre is left
    answers, _ = answer_all(model, model.encode({"image": images}))
    module, variables = pretrained.load(str(tmp_path / "f"))
    batch = {"images": images[:, 2:30, 2:30], "weight": np.ones(2, np.float32)}
    expected = np.asarray(module.apply(variables, batch, train=False))
    np.testing.assert_allclose([answer.values["outputs"] for answer in answers], expected, rtol=1e-4, atol=1e-4)


def test_a_resnet_whose_images_are_resized_otherwise_is_refused(tmp_path):
    tiny_resnet.write(tmp_path / "f", preprocessor={**tiny_resnet.PREPROCESSOR, "size": {"height": 32, "width": 32}})
    with pytest.raises(UserError, match="only a shortest_edge below 384"):
        Source.of(str(tmp_path / "f"))


@pytest.mark.extended
def test_an_export_is_served_as_its_run(runs, tmp_path, caplog):
    run, folder = runs["text"], tmp_path / "f"
    step = export(run.path, folder)
    model, source, predictor = opened(folder), Source.of(str(folder)), Predictor.open(run.path)
    assert model.signature == predictor.signature
    assert model.samples.predictions == {model.version: read_samples(run).predictions[str(step)]}
    check(model, source.run)
    assert not caplog.records, "it was checked"
    columns = {"sentence": [TEXTS[0], "film " * 100]}  # the second one is truncated as in the run
    for part, expected in zip(model.encode(columns), predictor.predict(columns), strict=True):
        (answer,), _ = model.answer([part])
        np.testing.assert_allclose(answer.values["scores"], expected["scores"], atol=1e-5)

    saved, tensors = json.loads((folder / "samples.json").read_text()), load_file(folder / "model.safetensors")
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] + [0, 1]}, folder / "model.safetensors")
    changed = opened(folder)
    check(changed, source.run)
    assert "no sample inputs" in caplog.text, "predictions of other weights are no reason to refuse these"
    predictions = {changed.version: saved["predictions"][model.version]}
    changed.samples = parse_samples({**saved, "predictions": predictions}, "the test")
    with pytest.raises(UserError, match="sample input 0"):
        check(changed, source.run)


def test_images_without_a_size_need_a_sample(tmp_path):
    tiny_resnet.write(tmp_path / "F")
    export(tiny_resnet.write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "f")
    with pytest.raises(UserError, match="no sample of its inputs"):
        opened(tmp_path / "f")


def test_an_export_of_a_run_without_samples(tmp_path):
    tiny_encoder.write(tmp_path / "F", num_classes=3)
    workdir = tiny_encoder.write_run(tmp_path / "W", tmp_path / "F")
    assert RunDir.open(workdir).samples() is None
    export(workdir, tmp_path / "f")
    folder = Source.of(str(tmp_path / "f")).run
    assert folder.samples is None
    assert (folder.signature.kind, folder.signature.inputs) == ("text", ("sentence",))


@pytest.mark.extended
def test_a_run_is_not_a_folder(runs, tmp_path):
    assert isinstance(Source.of(str(runs["features"].path)).run, RunDir)
    with pytest.raises(UserError, match="not a run directory"):
        Source.of(str(tmp_path))
