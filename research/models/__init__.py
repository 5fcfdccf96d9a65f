"""The models, by their name in a config's `model.name`. Each builds a `module(batch, *, train) -> outputs`."""

from collections.abc import Callable

from flax import linen as nn

from research.models.bert import BertClassifier
from research.models.cnn import CNN
from research.models.decoder import Decoder
from research.models.linear import Constant, LinearRegression, LogisticRegression, SparseLogisticRegression
from research.models.mlm import BertMaskedLM
from research.models.mlp import MLP
from research.models.resnet import VARIANTS, ResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "bert": BertClassifier,
    "bert_mlm": BertMaskedLM,
    "cnn": CNN,
    "constant": Constant,
    "decoder": Decoder,
    "linear": LinearRegression,
    "logistic": LogisticRegression,
    "mlp": MLP,
    "resnet": ResNet,
    "sparse_logistic": SparseLogisticRegression,
    **VARIANTS,
}
