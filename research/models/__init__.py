"""The models, by the name that a config's `model.name` gives. Each is `module(batch, *, train) -> outputs`."""

from flax import linen as nn

from research.models.bert import BertClassifier
from research.models.linear import LinearRegression, LogisticRegression, SparseLogisticRegression
from research.models.mlm import BertMaskedLM
from research.models.resnet import ResNet

MODELS: dict[str, type[nn.Module]] = {
    "bert": BertClassifier,
    "bert_mlm": BertMaskedLM,
    "linear": LinearRegression,
    "logistic": LogisticRegression,
    "resnet": ResNet,
    "sparse_logistic": SparseLogisticRegression,
}
