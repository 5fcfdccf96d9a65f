"""Small configs that the tests share: the real ones, shrunk until they compile in seconds."""

import itertools

import numpy as np

from configs import bert_mlm, bert_sst2, logistic_digits, resnet_digits
from research.data import python_docs, sentiment


def bert(**train):
    """The embedded BERT with dropout, tiny: packed, unless a `batch_size` is given."""
    config = bert_sst2.get_config("embedded")
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, dropout=0.1, attention_dropout=0.1)
    config.eval.every_steps = 5
    return _train(config, **{"steps": 10, "batch_rows": None if "batch_size" in train else 8, **train})


def mlm(**train):
    """Masked language modelling with dropout, tiny: rows of 16 tokens."""
    config = bert_mlm.get_config("embedded")
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, dropout=0.1, vocab_size=300)
    config.data.transform.update(row_length=16, vocab_size=300)
    config.optimizer.learning_rate = 1e-2
    config.eval.every_steps = 10
    return _train(config, **{"steps": 10, "batch_size": 8, **train})


def resnet(**train):
    """The ResNet on digits, with its batch statistics, tiny."""
    config = resnet_digits.get_config("embedded")
    config.model.update(stage_sizes=(1, 1), width=4)
    return _train(config, **{"steps": 10, "batch_size": 16, **train})


def logistic(**train):
    """Logistic regression on digits: compiles at once."""
    return _train(logistic_digits.get_config("embedded"), **{"steps": 10, "batch_size": 16, **train})


def _train(config, **train):
    config.train.update(epochs=None, batch_rows=None, batch_size=None)
    config.train.log_every = 5
    for key, value in train.items():
        config.train[key] = value
    return config


def few_sentences(monkeypatch, train=200, validation=50):
    """Makes the generated corpus small."""
    monkeypatch.setattr(sentiment, "TRAIN_SIZE", train)
    monkeypatch.setattr(sentiment, "VALIDATION_SIZE", validation)


def few_documents(monkeypatch, documents=30):
    """Makes Python's documentation small: sentences of the generated corpus."""
    sentences = sentiment.generate(20 * documents, validation=False, seed=0)["sentence"]
    few = {f"document {i}": "\n".join(sentences[i::documents]) for i in range(documents)}
    monkeypatch.setattr(python_docs, "documents", lambda: few)


def batches(experiment, steps, start=0):
    """The first training batches of an experiment, on the host."""
    return list(itertools.islice(experiment.training_batches(start), steps - start))


def assert_trees_equal(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)
