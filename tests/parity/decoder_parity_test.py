# mypy: disable-error-code="arg-type, assignment, call-overload, dict-item, misc"
"""Decoders against transformers: logits, gradients, folders in and out."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.base.leaves import path_name
from research.core.sampling import Sampling
from research.inference.generate import Generator, Request
from research.interop import pretrained
from research.interop.decoder_families import FAMILIES
from research.interop.export import export
from research.interop.tensors import Naming, tensor_names
from research.models.decoder import Decoder
from tests.interop import tiny_decoder
from tests.models.random_params import random_params

pytestmark = pytest.mark.parity

SMOLLM2 = Path("~/models/SmolLM2-135M-Instruct").expanduser()
# llama3 with wavelengths on either side of both bounds and between them.
_ROPE = (
    {"rope_type": "default"},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 60},
    {"rope_type": "linear", "factor": 2.5},
)  # fmt: skip


def _draw(seed):
    """(family, its settings for transformers): sizes, heads, biases, eps, theta, activation, tied or not."""
    rng = np.random.default_rng(seed)
    family = ("gpt2", "llama")[seed % 2]
    heads, size = int(rng.choice([1, 2, 4, 6])), int(rng.choice([4, 8, 10]))
    layers, longest = int(rng.integers(1, 4)), int(rng.integers(8, 20))
    common = {
        "vocab_size": int(rng.integers(30, 80)), "initializer_range": 0.1, "tie_word_embeddings": bool(seed // 2 % 2),
    }  # fmt: skip
    eps = float(rng.choice([1e-6, 1e-5, 1e-3]))
    if family == "gpt2":
        return family, common | {
            "n_embd": heads * size, "n_layer": layers, "n_head": heads, "n_positions": longest,
            "n_inner": None if seed % 4 else int(rng.integers(8, 60)), "layer_norm_epsilon": eps,
            "activation_function": str(rng.choice(["gelu_new", "gelu", "gelu_pytorch_tanh", "relu"])),
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": 1,
        }  # fmt: skip
    bias = bool(rng.integers(2))
    return family, common | {
        "hidden_size": heads * size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([g for g in range(1, heads + 1) if heads % g == 0])),
        "head_dim": None if seed % 4 == 1 else int(rng.choice([4, 6, 12])),
        "intermediate_size": int(rng.integers(8, 60)),
        "max_position_embeddings": longest, "rms_norm_eps": eps, "attention_bias": bias, "mlp_bias": bias,
        "rope_parameters": {
            "rope_theta": float(rng.choice([100.0, 1e4, 5e5])), **_ROPE[seed // 2 % len(_ROPE)],
        },
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


def _theirs(family, seed, **settings):
    """A random transformers model, with biases and norms other than 0 and 1."""
    import torch
    import transformers

    names = {"gpt2": ("GPT2Config", "GPT2LMHeadModel"), "llama": ("LlamaConfig", "LlamaForCausalLM")}[family]
    config = getattr(transformers, names[0])(attn_implementation="eager", **settings)
    torch.manual_seed(seed)
    model = getattr(transformers, names[1])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _batch(rng, vocab_size, length, rows=5):
    """Texts of different lengths, one per row, and for each token the next one; -1 for none."""
    lengths = rng.integers(2, length + 1, rows)
    real = np.arange(length)[None, :] < lengths[:, None]
    tokens = np.where(real, rng.integers(0, vocab_size, real.shape), 0)
    targets = np.where(np.arange(length)[None, :] < lengths[:, None] - 1, np.roll(tokens, -1, axis=1), -1)
    positions = np.where(real, np.arange(length)[None, :], 0)
    batch = {"tokens": tokens, "segments": real, "positions": positions}
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}, targets


def _loss(logits, targets):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(losses * (targets >= 0)) / jnp.sum(targets >= 0)


def _ours(folder, batch, targets):
    """Logits [B, L, V] and the gradients of the mean cross-entropy."""
    module, variables = pretrained.load(str(folder))

    def loss(params):
        logits = module.apply({"params": params}, batch, train=False)["logits"]
        return _loss(logits, targets), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return logits, gradients


def _torch_inputs(batch):
    import torch

    names = {"input_ids": "tokens", "attention_mask": "segments"}
    return {theirs: torch.tensor(np.asarray(batch[ours]), dtype=torch.long) for theirs, ours in names.items()}


def _expected_gradient(naming: Naming, path, gradients):
    """Transformers' gradient of the variable at `path`."""
    expected = gradients[tensor_names(naming, path)[0]]
    part = next((part for own, part in naming.columns.items() if f"/{own.split('/', 1)[1]}/" in path), None)
    if part is None:
        return expected.T if path.endswith("kernel") else expected
    return np.split(expected, part[1], axis=-1)[part[0]]


@pytest.mark.parametrize("seed", range(12))
def test_random_decoders(seed, tmp_path):
    """Measured over these 12: logits differ by up to 1.2e-6, gradients 2.6e-6 relative."""
    import torch

    family, settings = _draw(seed)
    theirs = _theirs(family, seed, **settings)
    theirs.save_pretrained(tmp_path)
    longest = settings.get("n_positions", settings.get("max_position_embeddings"))
    batch, targets = _batch(np.random.default_rng(seed), settings["vocab_size"], longest)

    logits, gradients = _ours(tmp_path, batch, targets)
    out = theirs(**_torch_inputs(batch)).logits
    labels = torch.tensor(targets, dtype=torch.long)
    torch.nn.functional.cross_entropy(out.flatten(0, 1), labels.flatten(), ignore_index=-1).backward()

    real = np.asarray(batch["segments"], bool)
    np.testing.assert_allclose(logits[real], out.detach().numpy()[real], atol=1e-5)
    naming = FAMILIES[family].naming
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    unmatched = set(expected)
    for keys, ours in jax.tree_util.tree_leaves_with_path(gradients):
        path = f"params/{path_name(keys)}"
        unmatched.discard(tensor_names(naming, path)[0])
        gradient = _expected_gradient(naming, path, expected)
        # The gradients of the key biases are 0 up to rounding, as softmax is invariant to constants.
        scale = largest if path.endswith("key/bias") else np.abs(gradient).max()
        np.testing.assert_allclose(ours, gradient, atol=1e-5 * scale, err_msg=path)
    assert not unmatched


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", [2, 3])
def test_folders_of_half_precision_and_several_files(seed, dtype, tmp_path):
    """Measured: logits differ by up to 5e-7 from those of transformers in float32."""
    import torch
    import transformers

    family, settings = _draw(seed)
    _theirs(family, seed, **settings).to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    batch, targets = _batch(np.random.default_rng(seed), settings["vocab_size"], 8)
    logits, _ = _ours(tmp_path, batch, targets)
    with torch.no_grad():
        expected = theirs(**_torch_inputs(batch)).logits.numpy()
    real = np.asarray(batch["segments"], bool)
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "section"),
    [
        ("gpt2", {}, {}),
        ("gpt2", {"tie_word_embeddings": False}, {"use_bias": False, "activation": "relu"}),
        ("llama", {"tie_word_embeddings": True}, {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {"rope_theta": 1e6}),
    ],
)
def test_an_exported_run_has_the_same_logits_in_transformers(family, changes, section, tmp_path):
    """From text to logits, including the tokenizer. Measured: differences of at most 1.2e-6."""
    import torch
    import transformers

    tiny_decoder.write(tmp_path / "F", family, **changes)
    section = tiny_decoder.section(tmp_path / "F") | section
    module = Decoder(**section)
    params = random_params(module, tiny_decoder.batch())
    export(tiny_decoder.write_run(tmp_path / "W", section, params), tmp_path / "out")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs.eval()
    assert not any(report.values())
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (256, 256)
    assert tokenizer.eos_token == tiny_decoder.END
    for text in ("a film", "not bad, not at all", "é"):
        inputs = tokenizer(text, return_tensors="pt")
        tokens = inputs["input_ids"].numpy()
        assert tokens[0].tolist() == tiny_decoder.tokenizer().encode(text).ids
        batch = {
            "tokens": tokens,
            "segments": np.ones_like(tokens),
            "positions": np.arange(tokens.shape[1])[None, :],
        }
        logits = module.apply({"params": params}, batch, train=False)["logits"]
        with torch.no_grad():
            expected = theirs(**inputs).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.realdata
def test_smollm2():
    """200 tokens of text, at once and in parts with a cache.

    Measured: differences of at most 1.5e-4, for logits of up to 36.
    """
    import torch
    import transformers

    assert (SMOLLM2 / "model.safetensors").is_file(), f"this test needs the model in {SMOLLM2}"
    text = Path("README.md").read_text()[:2000]
    tokens = np.array(transformers.AutoTokenizer.from_pretrained(SMOLLM2)(text)["input_ids"])[None, :200]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()

    module, variables = pretrained.load(str(SMOLLM2))
    batch = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": np.arange(200)[None, :]}
    logits = jax.jit(lambda v: module.apply(v, batch, train=False)["logits"])(variables)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), np.argmax(expected, axis=-1))

    step = jax.jit(partial(module.apply, method="step"), donate_argnums=3)
    cache, found = module.empty_cache(1, 200), []
    for start in (0, 100):
        logits, cache = step(variables, tokens[:, start : start + 100], np.array([100]), cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-3)


PROMPTS = (
    "What is the capital of France?", "Write a haiku about the sea.", "Name three prime numbers.", "Who wrote Faust?",
    "Explain gravity to a child.", "Translate 'good morning' into Spanish.", "What is 17 + 25?", "List two fruits.",
    "Why is the sky blue?", "Give a synonym of 'quick'.", "Tell me a joke.", "What does HTTP stand for?",
    "How do I boil an egg?", "Summarize: the cat sat on the mat.", "What is a neural network?", "Count to five.",
    "Is the earth flat?", "Write a function that adds two numbers in Python.", "What rhymes with 'light'?", "Say hi.",
)  # fmt: skip


@pytest.mark.realdata
def test_smollm2_writes_the_same_as_transformers():
    """20 chats of up to 64 tokens, token for token; eight at the same time."""
    import torch
    import transformers

    generator = Generator.open(SMOLLM2)
    requests = [
        Request(generator.chat([{"role": "user", "content": prompt}]), Sampling(temperature=0), max_tokens=64)
        for prompt in PROMPTS
    ]
    found: dict[int, list[int]] = {index: [] for index in range(len(PROMPTS))}
    for index, piece in generator.write(requests):
        found[index] += [piece.token.id] if piece.token else []
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    for index, prompt in enumerate(PROMPTS):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert asked["input_ids"][0].tolist() == list(requests[index].prompt)
        with torch.no_grad():
            tokens = model.generate(**asked, max_new_tokens=64, do_sample=False)
        expected = tokens[0, asked["input_ids"].shape[1] :].tolist()
        ends = [i for i, token in enumerate(expected) if token in generator.ends]
        assert found[index] == expected[: ends[0] if ends else None], prompt
