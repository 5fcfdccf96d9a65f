"""BERT, RoBERTa and DistilBERT: the names of their settings and tensors, in transformers and here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.base.errors import UserError
from research.interop.kinds import check_kind, check_model, labels
from research.interop.tensors import Naming

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    Attributes:
      architecture: its class for sentence classification, or for causal language modelling.
      keys: a key of `model` -> theirs.
      defaults: transformers' defaults for keys missing from a config.json; all other keys are required.
      fixed: keys of `model` that their config does not set.
      naming: the names of that class's tensors, and of a masked language model's.
      reads_type_ids: whether it takes `token_type_ids`.
      activations: their names of activations -> ours; if several name one function, the first is written.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    naming: Naming
    reads_type_ids: bool = False
    activations: Mapping[str, str] = dataclasses.field(default_factory=lambda: ACTIVATIONS)


def _naming(prefix: str, layer: str, theirs: str, heads: dict[str, str]) -> Naming:
    """Makes a Naming. `theirs`: the eight modules of a layer, in the order here; `heads`: those outside the encoder."""
    ours = "attention/query attention/key attention/value attention/output attention_norm mlp_in mlp_out mlp_norm"
    embeddings = {
        "encoder/token_embedding": f"{prefix}.embeddings.word_embeddings",
        "encoder/position_embedding": f"{prefix}.embeddings.position_embeddings",
        "encoder/type_embedding": f"{prefix}.embeddings.token_type_embeddings",
        "encoder/embedding_norm": f"{prefix}.embeddings.LayerNorm",
    }
    layers = {
        f"encoder/layer_{{}}/{own}": f"{prefix}.{layer}.{{}}.{name}"
        for own, name in zip(ours.split(), theirs.split(), strict=True)
    }
    return Naming(prefix, embeddings | layers | heads)


_BERT_LAYER = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm "
    "intermediate.dense output.dense output.LayerNorm"
)
_DISTILBERT_LAYER = (
    "attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm ffn.lin1 ffn.lin2 "
    "output_layer_norm"
)
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "activation": "hidden_act",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
_BERT_DEFAULTS = {
    "activation": "gelu",
    "type_vocab_size": 2,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "classifier_dropout": None,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}

BERT = Family(
    model_type="bert",
    architecture="BertForSequenceClassification",
    keys=_BERT_KEYS,
    defaults=_BERT_DEFAULTS,
    fixed={"position_offset": 0, "pooler": "tanh", "pooler_dropout": 0.0},
    naming=_naming(
        "bert",
        "encoder.layer",
        _BERT_LAYER,
        {
            "pooler": "bert.pooler.dense",
            "classifier": "classifier",
            "transform": "cls.predictions.transform.dense",
            "transform_norm": "cls.predictions.transform.LayerNorm",
            "": "cls.predictions",
        },
    ),
    reads_type_ids=True,
)
# Its position_offset, max_positions and pooler_dropout depend on several settings: see read_config, write_config.
ROBERTA = Family(
    model_type="roberta",
    architecture="RobertaForSequenceClassification",
    keys=_BERT_KEYS,
    defaults=_BERT_DEFAULTS,
    fixed={"pooler": "tanh"},
    naming=_naming(
        "roberta",
        "encoder.layer",
        _BERT_LAYER,
        {
            "pooler": "classifier.dense",
            "classifier": "classifier.out_proj",
            "transform": "lm_head.dense",
            "transform_norm": "lm_head.layer_norm",
            "": "lm_head",
        },
    ),
    reads_type_ids=False,
)
DISTILBERT = Family(
    model_type="distilbert",
    architecture="DistilBertForSequenceClassification",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "mlp_size": "hidden_dim",
        "activation": "activation",
        "max_positions": "max_position_embeddings",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "classifier_dropout": 0.2,
        "initializer_range": 0.02,
    },
    fixed={
        "position_offset": 0,
        "type_vocab_size": 0,
        "pooler": "relu",
        "pooler_dropout": 0.0,
        "layer_norm_eps": 1e-12,
    },
    naming=_naming(
        "distilbert",
        "transformer.layer",
        _DISTILBERT_LAYER,
        {
            "pooler": "pre_classifier",
            "classifier": "classifier",
            "transform": "vocab_transform",
            "transform_norm": "vocab_layer_norm",
            "": "vocab_projector",
        },
    ),
    reads_type_ids=False,
)
FAMILIES = {family.model_type: family for family in (BERT, ROBERTA, DISTILBERT)}
UNNAMED = "bert"  # the model_type of a config.json without one, as in BERT's first files

# Required values of settings that would change what an encoder computes.
_EXPECTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
# Types of values and their names; all other keys are integers.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("dropout", "attention_dropout", "layer_norm_eps", "norm_eps", "initializer_range"), ((int, float), "a number")
    ),
    "tie_embeddings": ((bool,), "true or false"),
    "classifier_dropout": ((int, float, type(None)), "a number or null"),
    "activation": ((str,), "text"),
}
_INTEGER = ((int,), "an integer")


def read_settings(family: Family, config: Mapping[str, Any], where: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `model` that a family's config.json has, and those that are fixed.

    Raises UserError, naming `where`, for settings that are missing, of the wrong type or other than `expected`.
    """
    for key, value in expected.items():
        if config.get(key, value) not in (value, None):
            raise UserError(f"{where} has {key} {config[key]!r}; only {value!r} is supported")

    model = dict(family.fixed)
    for key, theirs in family.keys.items():
        if theirs not in config and key not in family.defaults:
            raise UserError(f"{where} has no {theirs}, which {family.model_type} needs")
        value = config.get(theirs, family.defaults.get(key))
        kinds, what = _KINDS.get(key, _INTEGER)
        check_kind(where, theirs, value, kinds, what)
        model[key] = float(value) if float in kinds and value is not None else value
    activations = family.activations
    if model["activation"] not in activations:
        raise UserError(f"{where} has the activation {model['activation']!r}; known: {', '.join(activations)}")
    model["activation"] = activations[model["activation"]]
    return model


def read_config(config: Mapping[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """A config.json of a family -> the family, and every key of `model` except `name` and `num_classes`.

    Raises UserError, naming `where`, for settings that are unsupported, missing or of the wrong type.
    """
    family = FAMILIES[config.get("model_type", UNNAMED)]
    model = read_settings(family, config, where, _EXPECTED)
    if family is ROBERTA:
        pad = config.get("pad_token_id", 1)
        check_kind(where, "pad_token_id", pad, *_INTEGER)
        model["position_offset"] = pad + 1
        model["max_positions"] -= model["position_offset"]
        model["pooler_dropout"] = model["dropout" if model["classifier_dropout"] is None else "classifier_dropout"]
    check_model(where, model)
    return family, model


def write_config(model: Mapping[str, Any], *, pad_token_id: int) -> tuple[Family, dict[str, Any]]:
    """The `model` section of a config -> the family that computes the same, and its config.json.

    Raises UserError if there is none, or if RoBERTa would count its positions from another padding token.
    """
    family = next((family for family in FAMILIES.values() if _computes(family, model)), None)
    if family is None:
        keys = ("position_offset", "type_vocab_size", "pooler", "layer_norm_eps")
        shown = ", ".join(f"model.{key}={model[key]!r}" for key in keys)
        raise UserError(f"none of {', '.join(FAMILIES)} has {shown}")
    config = {theirs: model[key] for key, theirs in family.keys.items()}
    config[family.keys["activation"]] = written_activation(family, model["activation"])
    if family is ROBERTA:
        config["max_position_embeddings"] += model["position_offset"]
        if pad_token_id != model["position_offset"] - 1:
            raise UserError(
                f"model.position_offset is {model['position_offset']}, but the padding token's id is {pad_token_id}: "
                "RoBERTa in transformers counts positions from that id on"
            )
    if family is DISTILBERT and config["seq_classif_dropout"] is None:
        config["seq_classif_dropout"] = model["dropout"]
    return family, {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **config,
        "pad_token_id": pad_token_id,
        **labels(model["num_classes"]),
    }


def written_activation(family: Family, activation: str) -> str:
    """Their name of an activation."""
    return next(theirs for theirs, ours in family.activations.items() if ours == activation)


def _computes(family: Family, model: Mapping[str, Any]) -> bool:
    """Whether the family computes the same as the section, apart from dropout."""
    own = {key: model[key] for key in family.fixed if key != "pooler_dropout"}
    return (
        own == {key: family.fixed[key] for key in own}
        and model.get("head_size") in (None, model["hidden_size"] / model["num_heads"])
        and (model["position_offset"] > 0) == (family is ROBERTA)
        and (model["type_vocab_size"] > 0) == ("type_vocab_size" in family.keys)
    )
