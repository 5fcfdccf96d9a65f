"""BERT for sentence sentiment (SST-2, Socher et al. 2013): fine-tuned, from scratch, or on a generated corpus.

python -m research.train --config=configs/bert_sst2.py            # base if available, else embedded
python -m research.train --config=configs/bert_sst2.py:embedded
python -m research.train --config=configs/bert_sst2.py:scratch
python -m research.train --config=configs/bert_sst2.py:minilm

Measured on 2 CPU cores (AMD EPYC, AVX-512), seed 0, with JAX 0.10.1 (embedded) and 0.10.2:
  embedded: validation accuracy 0.9745, 2 minutes and 17 seconds; seeds 1 and 2: 0.9950 and 0.9925.
  scratch: dev accuracy 0.8073, 1 minute and 40 seconds. (scikit-learn's logistic regression on tf-idf bigrams: 0.822.)
  minilm with --config.init_from=FOLDER, which holds all-MiniLM-L6-v2, seeds 0, 1 and 2: dev accuracy 0.8865, 0.9002 and
    0.9071; with --config.train.epochs=3 0.9025; with --config.optimizer.learning_rate=5e-5 0.8911, 0.8945 and 0.8865.
    5 to 9 minutes per epoch, with other work on the machine. 872 sentences: one standard error is a point.
  base, large from their own weights: not yet measured; they need an accelerator.

--config.train.lora.rank=8 trains low-rank additions, the pooler and the classifier: not yet measured; see
configs/defaults.py.

base and large start from the weights of `init_from`, which --config.init_from=FOLDER_OR_HUB_ID replaces: any BERT,
RoBERTa or DistilBERT. The weights determine the keys of `model` and the tokenizer and, if the encoder is narrow, the
learning rate and the warm-up (research/interop/recipes.py), except keys given on the command line.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.configs.defaults import classification, defaults

PRESETS = ("embedded", "scratch", "minilm", "base", "large")
FULL = "base"
ON_CPU = "minilm"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `scratch`, `minilm`, `base`, `large`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = classification()
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.weight_decay = 0.01
    config.optimizer.eps = 1e-6
    config.optimizer.clip_norm = 1.0
    config.train.lora.trains = "^(pooler|classifier)/"
    {"embedded": _embedded, "scratch": _scratch, "minilm": _minilm, "base": _base, "large": _large}[config.preset](
        config
    )
    return config


def _model(hidden_size: int, num_layers: int, num_heads: int, *, vocab_size: int, max_positions: int) -> ConfigDict:
    return ConfigDict(
        {
            "name": "bert",
            "num_classes": 2,
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "head_size": placeholder(int),  # None: hidden_size / num_heads
            "mlp_size": 4 * hidden_size,
            "activation": "gelu",  # gelu, gelu_tanh, relu
            "max_positions": max_positions,
            "position_offset": 0,  # unused rows of the position embedding before the first
            "type_vocab_size": 2,  # 0: no type embedding
            "pooler": "tanh",  # tanh, relu
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "pooler_dropout": 0.0,  # on the pooler's input
            "classifier_dropout": placeholder(float),  # on the classifier's input; None: as `dropout`
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "remat": False,  # less memory for more computation
            "remat_policy": "nothing",  # what it saves nevertheless: nothing, products
            "scan": False,  # compiles in the same time whatever the number of layers
        }
    )


def _text(vocab_size: int, max_length: int, pad_to: tuple[int, ...], row_length: int) -> ConfigDict:
    return ConfigDict(
        {
            "name": "wordpiece",
            "inputs": ("sentence",),
            "label": "label",
            "tokenizer": placeholder(str),  # a tokenizer.json; None: one is trained on the training split
            "vocab_size": vocab_size,
            "lowercase": True,
            "max_length": max_length,  # truncates 1.9 % of the sentences in `embedded`, 0.01 % in `scratch`
            "pad_to": pad_to,  # with train.batch_size
            "row_length": row_length,  # with train.batch_rows
        }
    )


def _embedded(config: ConfigDict) -> None:
    """A three-layer encoder on the generated corpus; needs no network."""
    config.model = _model(64, 3, 4, vocab_size=2000, max_positions=32)
    config.model.initializer_range = 0.05  # 0.02 is for wide layers; a narrow one learns from it much later
    config.model.attention_dropout = 0.0  # its random numbers take a fifth of the step, and the data suffices
    config.data.name = "sentiment"
    config.data.transform = _text(2000, 28, (28,), 72)
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 3
    config.train.batch_rows = 16  # about 64 examples
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500


def _scratch(config: ConfigDict) -> None:
    """A small encoder from random weights on the real SST-2."""
    config.model = _model(128, 2, 2, vocab_size=8000, max_positions=128)
    config.model.initializer_range = 0.05
    config.model.dropout = 0.2  # two epochs of phrases are enough to overfit with less
    config.data.name = "glue/sst2"
    config.data.transform = _text(8000, 64, (16, 32, 48, 64), 112)
    config.optimizer.learning_rate = 5e-4
    config.train.epochs = 2
    config.train.batch_rows = 8  # about 66 examples
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500


def _base(config: ConfigDict) -> None:
    """Devlin et al. 2018, appendix A.3: 3 epochs, batch 32, learning rate 2e-5."""
    config.model = _model(768, 12, 12, vocab_size=30_522, max_positions=512)
    config.data.name = "glue/sst2"
    config.data.transform = _text(30_522, 112, (32, 64, 112), 112)
    config.init_from = "google-bert/bert-base-uncased"
    config.needs_accelerator = True
    config.dtype = "bfloat16"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.follow_encoder = True
    config.train.epochs = 3
    config.train.batch_rows = 4  # about 33 examples; --config.train.batch_size=32 for exactly 32, one per row
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500


def _minilm(config: ConfigDict) -> None:
    """As `base`, with an encoder of six narrow layers (Wang et al. 2020, arXiv:2002.10957).

    A CPU trains it in minutes. Its learning rate and warm-up are those of a narrow encoder.
    """
    _base(config)
    config.model = _model(384, 6, 12, vocab_size=30_522, max_positions=512)
    config.init_from = "sentence-transformers/all-MiniLM-L6-v2"
    config.needs_accelerator = False
    config.train.epochs = 1


def _large(config: ConfigDict) -> None:
    """As `base`, with the 24-layer encoder."""
    _base(config)
    config.model = _model(1024, 24, 16, vocab_size=30_522, max_positions=512)
    config.init_from = "google-bert/bert-large-uncased"
