# mypy: disable-error-code="arg-type, assignment, call-overload, dict-item, misc"
"""Pretrained weights in and out against transformers: hidden states, logits, gradients, tokens."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.base.leaves import path_name
from research.core import metrics
from research.core.tasks import Regression
from research.data.columns import as_text
from research.data.sources import tfds_source
from research.data.text.wordpiece import read_tokenizer
from research.interop import pretrained, source
from research.interop.export import export
from research.interop.families import FAMILIES
from research.interop.tensors import tensor_names
from research.models.bert import POOLERS
from tests.interop import tiny_encoder

pytestmark = pytest.mark.parity

MINILM = Path("~/models/all-MiniLM-L6-v2").expanduser()
CLASSES = 3


@pytest.fixture
def minilm():
    assert (MINILM / "model.safetensors").is_file(), f"this test needs the model in {MINILM}"
    return MINILM


def _theirs(family, **settings):
    """A random transformers model, with biases and LayerNorms other than 0 and 1."""
    import torch
    import transformers

    names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    config = getattr(transformers, f"{names[family]}Config")(
        num_labels=CLASSES, attn_implementation="eager", **settings
    )
    model = getattr(transformers, f"{names[family]}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _draw(seed):
    """(family, its settings for transformers, a batch): sizes, heads, eps, activation, types, masks and pairs."""
    rng = np.random.default_rng(seed)
    family = ("bert", "roberta", "distilbert")[seed % 3]
    heads, layers = int(rng.choice([1, 2, 3, 4])), int(rng.integers(1, 3))
    width = heads * int(rng.choice([4, 8, 10]))
    activation = str(rng.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]))
    common = {"vocab_size": int(rng.integers(30, 80)), "initializer_range": 0.2}
    longest = int(rng.integers(8, 20))
    if family == "distilbert":
        settings = {
            "dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": int(rng.integers(8, 60)),
            "activation": activation, "max_position_embeddings": longest, "sinusoidal_pos_embds": seed % 2 == 0,
        }  # fmt: skip
    else:
        pad = 0 if family == "bert" else int(rng.integers(0, 3))
        settings = {
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": int(rng.integers(8, 60)), "hidden_act": activation,
            "layer_norm_eps": float(rng.choice([1e-12, 1e-7, 1e-5, 1e-3])), "pad_token_id": pad,
            "type_vocab_size": int(rng.integers(1, 5)) if family == "bert" else int(rng.integers(1, 3)),
            "max_position_embeddings": longest + (pad + 1 if family == "roberta" else 0),
        }  # fmt: skip

    lengths = rng.integers(1, longest + 1, 5)
    real = np.arange(longest)[None, :] < lengths[:, None]
    tokens = np.where(real, rng.integers(5, common["vocab_size"], real.shape), settings.get("pad_token_id", 0))
    second = np.arange(longest)[None, :] >= rng.integers(1, longest + 1, (5, 1))  # of a pair
    types = np.where(real & second, settings.get("type_vocab_size", 1) - 1, 0)
    batch = {
        "tokens": tokens,
        "segments": real,
        "positions": np.where(real, np.arange(longest)[None, :], 0),
        "type_ids": types,
        "starts": np.zeros((5, 1)),
    }
    return family, common | settings, {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


def _ours(folder, batch, labels):
    """(hidden states [B, L, D], pooler output [B, D], logits [B, C]), the gradients of the loss, and the parameters."""
    module, variables = pretrained.load(str(folder), CLASSES)
    params = variables["params"]

    def loss(params):
        logits, found = module.apply({"params": params}, batch, train=False, capture_intermediates=True)
        found = found["intermediates"]
        pooled = POOLERS[module.pooler](found["pooler"]["__call__"][0][:, 0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], labels)
        return jnp.mean(losses), (found["encoder"]["__call__"][0], pooled, logits[:, 0])

    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
    return outputs, gradients, params


def _torch_inputs(family, batch):
    import torch

    names = {"tokens": "input_ids", "segments": "attention_mask", "type_ids": "token_type_ids"}
    inputs = {theirs: torch.tensor(np.asarray(batch[ours]), dtype=torch.long) for ours, theirs in names.items()}
    if family == "distilbert":
        inputs.pop("token_type_ids")
    return inputs


@pytest.mark.parametrize("seed", range(24))
def test_random_encoders(seed, tmp_path):
    """Measured over these 24: hidden and pooled states differ by up to 2e-6, logits 6e-7, gradients 2e-6 relative.

    With larger random weights both deviate equally from float64: by 2e-5 with a standard deviation of 0.45.
    """
    import torch

    torch.manual_seed(seed)
    family, settings, batch = _draw(seed)
    theirs = _theirs(family, **settings)
    theirs.save_pretrained(tmp_path)
    _write_vocabulary(tmp_path, settings["vocab_size"])

    labels = np.arange(5) % CLASSES
    (hidden, pooled, logits), gradients, _ = _ours(tmp_path, batch, labels)
    kept = {}
    last = theirs.get_submodule("classifier.out_proj" if family == "roberta" else "classifier")
    last.register_forward_hook(lambda module, inputs, out: kept.update(pooled=inputs[0]))
    out = theirs(**_torch_inputs(family, batch), labels=torch.tensor(labels), output_hidden_states=True)
    out.loss.backward()

    real = np.asarray(batch["segments"], bool)
    np.testing.assert_allclose(hidden[real], out.hidden_states[-1].detach().numpy()[real], atol=1e-5)
    np.testing.assert_allclose(pooled, kept["pooled"].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-5)

    expected_gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in expected_gradients.values())
    for keys, ours in jax.tree_util.tree_leaves_with_path(gradients):
        path = path_name(keys)
        expected = expected_gradients.pop(tensor_names(FAMILIES[family].naming, f"params/{path}")[0])
        expected = expected.T if path.endswith("kernel") else expected
        # The gradients of the key biases are 0 up to rounding, as softmax is invariant to constants.
        scale = 0.1 * largest if path.endswith("key/bias") else np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=1e-4 * scale, err_msg=path)
    assert not expected_gradients


def _write_vocabulary(folder, size):
    words = [*tiny_encoder.VOCABULARY[:5], *(f"word{i}" for i in range(size - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


@pytest.mark.realdata
def test_minilm(minilm):
    """Measured: hidden states differ by up to 3.4e-6, pooled vectors 4e-7, logits of a random classifier 1e-7."""
    import torch
    import transformers

    theirs = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 8)
    real = np.arange(64)[None, :] < lengths[:, None]
    batch = {
        "tokens": np.where(real, rng.integers(999, 30_522, real.shape), 0),
        "segments": real,
        "positions": np.where(real, np.arange(64)[None, :], 0),
        "type_ids": np.where(real, rng.integers(0, 2, real.shape), 0),
        "starts": np.zeros((8, 1)),
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    (hidden, pooled, logits), _, params = _ours(minilm, batch, np.zeros(8, np.int32))
    with torch.no_grad():
        out = theirs(**_torch_inputs("bert", batch))
        kernel, bias = (torch.tensor(np.asarray(params["classifier"][name])) for name in ("kernel", "bias"))
        expected = out.pooler_output @ kernel + bias
    np.testing.assert_allclose(np.asarray(hidden)[real], out.last_hidden_state.numpy()[real], atol=1e-5)
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("outputs", [CLASSES, 1])
@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_an_exported_run_has_the_same_logits_in_transformers(family, outputs, tmp_path):
    """From texts to logits, including the tokenizer; one output means a regression, here also with a padded embedding.

    Measured: differences of at most 3e-7.
    """
    import torch
    import transformers

    rows = tiny_encoder.CONFIGS[family]["vocab_size"] + (7 if outputs == 1 else 0)
    tiny_encoder.write(tmp_path / "F", family, num_classes=outputs, vocab_size=rows)
    export(tiny_encoder.write_run(tmp_path / "W", tmp_path / "F", outputs), tmp_path / "out")
    module, variables = pretrained.load(str(tmp_path / "out"), outputs)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    theirs.eval()
    assert not any(report.values())
    assert theirs.config.id2label == {i: f"LABEL_{i}" for i in range(outputs)}
    assert theirs.get_input_embeddings().weight.shape[0] == rows
    texts, others = ["a film", "not bad, not at all", "x"], ["superb", "dull", "y and z"]
    for pairs in (None, others):
        inputs = tokenizer(texts, pairs, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).logits.numpy()
        tokens, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
        types = inputs["token_type_ids"].numpy() if family == "bert" else np.zeros_like(tokens)
        batch = {
            "tokens": tokens,
            "segments": mask,
            "positions": mask * np.arange(tokens.shape[1])[None, :],
            "type_ids": types,
            "starts": np.zeros((len(texts), 1), np.int64),
        }
        logits = module.apply(variables, batch, train=False)
        np.testing.assert_allclose(logits[:, 0], expected, atol=1e-5)
        if outputs == 1:  # transformers' own loss treats it as a regression too
            labels = np.array([0.5, 2.0, 4.5], np.float32)
            ours = Regression().scores(logits, {"labels": labels[:, None], "weight": np.ones((3, 1), np.float32)})
            with torch.no_grad():
                loss = theirs(**inputs, labels=torch.tensor(labels)).loss.item()
            assert metrics.compute(ours)["loss"] == pytest.approx(loss, rel=1e-5)
        run_tokenizer = read_tokenizer(str(tmp_path / "W/assets/tokenizer.json"), lowercase=True)
        run_tokenizer.no_padding()
        run_tokenizer.no_truncation()
        for row, text in enumerate(texts):
            ours = run_tokenizer.encode(text, pairs[row] if pairs else None).ids
            assert ours == tokens[row][mask[row] == 1].tolist()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "columns"), [("glue/sst2", ("sentence",)), ("glue/stsb", ("sentence1", "sentence2"))]
)
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_tokens_match_transformers(dataset, columns, file, minilm):
    """All splits, with a limit of 32 tokens, which truncates some texts."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    kind, config = source.kind_of(minilm)
    transform = kind.read(minilm, config).transform
    ours = read_tokenizer(str(minilm / file), lowercase=transform["lowercase"])
    ours.no_padding()
    ours.enable_truncation(32, strategy="longest_first")
    cut = 0
    for split in tfds_source.load(dataset, None).values():
        parts = [[as_text(text) for text in split[name]] for name in columns]
        expected = theirs(*parts, truncation="longest_first", max_length=32)
        encodings = ours.encode_batch(parts[0] if len(parts) == 1 else list(zip(*parts, strict=True)))
        assert [encoding.ids for encoding in encodings] == expected["input_ids"]
        assert [encoding.type_ids for encoding in encodings] == expected["token_type_ids"]
        cut += sum(len(encoding.ids) == 32 for encoding in encodings)
    assert cut > 100
