"""BERT fine-tuned on a task of GLUE (Wang et al. 2018, arXiv:1804.07461): the recipe of bert_sst2's `base`, per task.

python -m research.train --config=configs/bert_glue.py:mrpc      # or cola, sst2, stsb, qqp, mnli, qnli, rte, wnli
python -m research.train --config=configs/bert_glue.py           # mnli if available, else embedded
python -m research.glue --workdirs runs/bert_glue-* --out=submission   # scores, and the files for the leaderboard

Hardware: an accelerator; `embedded` (bert_sst2's: generated sentences, not GLUE) takes 2 minutes on 2 CPU cores.
The learning rate and the warm-up follow the encoder's size unless they are given (research/interop/recipes.py): 1e-4
and 0.06 if its hidden size is below 512, else 2e-5 and 0.1.

Measured from all-MiniLM-L6-v2 (--config.init_from=FOLDER; hidden size 384), 2 CPU cores (AMD EPYC, AVX-512), JAX
0.10.1, seed 0, on the dev split:
  stsb: Pearson 0.8636, Spearman 0.8629; 31 minutes at low priority on a busy machine.
Not yet measured with these settings: cola, sst2 with 3 epochs (bert_sst2's `minilm` makes one), mrpc, qqp, mnli, qnli,
rte, wnli.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.configs import bert_sst2

PRESETS = ("embedded", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
FULL = "mnli"

SENTENCES = ("sentence1", "sentence2")


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, and one for each task."""
    preset = preset or FULL
    config = bert_sst2.get_config("embedded" if preset == "embedded" else "base")
    config.preset = preset
    if preset not in ("embedded", "sst2"):
        {
            "cola": _cola,
            "mrpc": _mrpc,
            "stsb": _stsb,
            "qqp": _qqp,
            "mnli": _mnli,
            "qnli": _qnli,
            "rte": _rte,
            "wnli": _wnli,
        }[preset](config)
    return config


def _task(config: ConfigDict, inputs: tuple[str, ...], metric: str, *, batch_rows: int, every: int) -> None:
    """Sets a task's columns, its metric (the leaderboard's, the first if it has two), and its size.

    Args:
      batch_rows: rows of 256 tokens that hold about 32 examples, from the task's mean length in wordpieces. For STS-B
        that is 26.4 with its own vocabulary; for the others it is assumed, not yet measured: 11 (CoLA), 53 (MRPC), 30
        (QQP), 39 (MNLI), 50 (QNLI), 64 (RTE), 37 (WNLI). `train.batch_size=32` means exactly 32, one per row.
      every: steps between evaluations, about an epoch; the best checkpoint is kept.
    """
    config.data.name = f"glue/{config.preset}"
    config.data.transform.inputs = inputs
    config.data.transform.update(max_length=128, pad_to=(32, 64, 96, 128), row_length=256)
    config.train.batch_rows = batch_rows
    config.eval.metric = metric
    config.eval.every_steps = every


def _cola(config: ConfigDict) -> None:
    """8,551 sentences: are they English?"""
    _task(config, ("sentence",), "matthews", batch_rows=4, every=260)
    config.data.transform.row_length = 96


def _mrpc(config: ConfigDict) -> None:
    """3,668 pairs of sentences: do they mean the same? Five epochs, as in transformers' run_glue for a small task."""
    _task(config, SENTENCES, "f1", batch_rows=7, every=110)
    config.train.epochs = 5


def _stsb(config: ConfigDict) -> None:
    """5,749 pairs of sentences: how similar are they, from 0 to 5?"""
    _task(config, SENTENCES, "spearman", batch_rows=4, every=160)
    config.model.num_classes = 1
    config.task = ConfigDict({"name": "regression", "hidden_label": placeholder(float)})
    config.task.hidden_label = -1.0


def _qqp(config: ConfigDict) -> None:
    """363,846 pairs of questions: do they ask the same?"""
    _task(config, ("question1", "question2"), "f1", batch_rows=4, every=11_000)


def _mnli(config: ConfigDict) -> None:
    """392,702 premises and hypotheses: entailment, neutral or contradiction?

    Its model also answers the diagnostic set, glue/ax, which only has a test split: `research.glue` does so.
    """
    _task(config, ("premise", "hypothesis"), "accuracy", batch_rows=5, every=12_000)
    config.model.num_classes = 3
    config.eval.splits = ("validation_matched", "validation_mismatched")


def _qnli(config: ConfigDict) -> None:
    """104,743 questions and sentences: does the sentence contain the answer?"""
    _task(config, ("question", "sentence"), "accuracy", batch_rows=7, every=3_200)


def _rte(config: ConfigDict) -> None:
    """2,490 pairs of sentences: does the first entail the second?"""
    _task(config, SENTENCES, "accuracy", batch_rows=8, every=80)


def _wnli(config: ConfigDict) -> None:
    """635 pairs of sentences: the same, with a pronoun resolved. Five epochs, as in transformers' run_glue."""
    _task(config, SENTENCES, "accuracy", batch_rows=5, every=20)
    config.train.epochs = 5
