from typing import Any

import pytest

from research.base.errors import UserError
from research.interop.families import BERT, DISTILBERT, FAMILIES, ROBERTA, read_config, write_config
from tests.interop.tiny_encoder import CONFIGS

SAME = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "mlp_size": 12, "activation": "gelu", "max_positions": 32}
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02}
EXPECTED: dict[str, Any] = {
    "bert": {
        **SAME, **DROPOUT, "vocab_size": 57, "position_offset": 0, "type_vocab_size": 2, "pooler": "tanh",
        "pooler_dropout": 0.0, "classifier_dropout": None, "layer_norm_eps": 1e-12,
    },
    "roberta": {
        **SAME, **DROPOUT, "vocab_size": 261, "position_offset": 2, "type_vocab_size": 1, "pooler": "tanh",
        "pooler_dropout": 0.1, "classifier_dropout": None, "layer_norm_eps": 1e-5,
    },
    "distilbert": {
        **SAME, **DROPOUT, "vocab_size": 57, "position_offset": 0, "type_vocab_size": 0, "pooler": "relu",
        "pooler_dropout": 0.0, "classifier_dropout": 0.2, "layer_norm_eps": 1e-12,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", [BERT, ROBERTA, DISTILBERT], ids=lambda family: family.model_type)
def test_config_round_trips(family):
    config = CONFIGS[family.model_type]
    found, model = read_config(config, "config.json")
    assert (found, model) == (family, EXPECTED[family.model_type])
    found, written = write_config({**model, "num_classes": 3}, pad_token_id=config["pad_token_id"])
    assert found is family
    assert {key: written[key] for key in config.keys() & written.keys() - {"architectures"}} == {
        key: value for key, value in config.items() if key not in ("architectures", "sinusoidal_pos_embds")
    }
    assert written["architectures"] == [family.architecture]
    assert written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert written["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert read_config(written, "config.json") == (family, model)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu")],
)
def test_activations(theirs, ours):
    _, model = read_config({**CONFIGS["bert"], "hidden_act": theirs}, "")
    assert model["activation"] == ours
    _, written = write_config({**model, "num_classes": 2}, pad_token_id=0)
    assert read_config(written, "")[1]["activation"] == ours


def test_old_file_without_model_type_is_bert():
    old = {key: value for key, value in CONFIGS["bert"].items() if key not in ("model_type", "layer_norm_eps")}
    assert read_config(old, "") == (BERT, EXPECTED["bert"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swish"}, "F has the activation 'swish'; known: gelu"),
        ({"hidden_size": "8"}, "F has hidden_size '8'; it must be an integer"),
        ({"hidden_size": True}, "F has hidden_size True; it must be an integer"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder True; only False"),
        ({"classifier_dropout": "no"}, "F has classifier_dropout 'no'; it must be a number or null"),
        ({"layer_norm_eps": float("nan")}, "^F: model.layer_norm_eps is nan"),
        ({"num_hidden_layers": 10**9}, "^F: model.num_layers is 1000000000"),
        ({"num_attention_heads": 0}, "^F: model.num_heads is 0"),
        ({"vocab_size": 10**30}, "^F: model.vocab_size is 1000"),
        ({"hidden_dropout_prob": 2}, "^F: model.dropout is 2.0"),
    ],
)
def test_unsupported_value_is_a_one_line_error(change, message):
    with pytest.raises(UserError, match=message):
        read_config({**CONFIGS["bert"], **change}, "F")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_null_is_an_error_or_the_default(family):
    read = {*FAMILIES[family].keys.values(), *(["pad_token_id"] if family == "roberta" else [])}
    for key in CONFIGS[family].keys() - {"model_type", "seq_classif_dropout"}:  # from the caller; may be None
        config = {**CONFIGS[family], key: None}
        if key not in read:
            assert read_config(config, "F")[1] == EXPECTED[family]
            continue
        with pytest.raises(UserError, match=f"^F has {key} None; it must be "):
            read_config(config, "F")


def test_missing_key_is_named():
    with pytest.raises(UserError, match="F has no num_hidden_layers, which bert needs"):
        read_config({key: value for key, value in CONFIGS["bert"].items() if key != "num_hidden_layers"}, "F")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("bert", {"pooler": "relu"}, "none of bert, roberta, distilbert has .*model.pooler='relu'"),
        ("bert", {"type_vocab_size": 0}, "none of .* has .*model.type_vocab_size=0"),
        ("distilbert", {"layer_norm_eps": 1e-5}, "none of .* has .*model.layer_norm_eps=1e-05"),
        ("roberta", {"position_offset": 3}, "model.position_offset is 3, but the padding token's id is 1"),
    ],
)
def test_model_without_a_transformers_equivalent_is_a_one_line_error(family, change, message):
    with pytest.raises(UserError, match=message):
        write_config({**EXPECTED[family], "num_classes": 2, **change}, pad_token_id=CONFIGS[family]["pad_token_id"])
