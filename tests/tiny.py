# mypy: disable-error-code="list-item"
"""Small configs shared by the tests: the configs of the project, shrunk until they compile in seconds."""

import itertools

import numpy as np
from PIL import Image

from research.configs import bert_glue, bert_mlm, bert_sst2, gpt_shakespeare, logistic_digits, resnet_digits
from research.data.sources import python_docs, sentiment, tfds_source
from research.training.loop import train_and_evaluate


def run(config, workdir, **options):
    """The summary of a run that prints nothing."""
    return train_and_evaluate(config, workdir, show=False, **options)


def stop_after(steps):
    """A `should_stop` that returns True when it is asked for the `steps`-th time."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def bert(**train):
    """A tiny version of the embedded BERT with dropout; packed, unless a `batch_size` is given."""
    config = bert_sst2.get_config("embedded")
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, dropout=0.1, attention_dropout=0.1)
    config.eval.every_steps = 5
    return _train(config, **{"steps": 10, "batch_rows": None if "batch_size" in train else 8, **train})


def mlm(**train):
    """Tiny masked language modelling with dropout, in rows of 16 tokens."""
    config = bert_mlm.get_config("embedded")
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, dropout=0.1, vocab_size=300)
    config.data.transform.update(row_length=16, vocab_size=300)
    config.optimizer.learning_rate = 1e-2
    config.eval.every_steps = 10
    return _train(config, **{"steps": 10, "batch_size": 8, **train})


def gpt(**train):
    """Tiny language modelling of bytes with dropout, in rows of 16."""
    config = gpt_shakespeare.get_config("embedded")
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, num_kv_heads=2, head_size=8)
    config.model.update(max_positions=16, dropout=0.1, attention_dropout=0.1)
    config.data.transform.row_length = 16
    config.optimizer.learning_rate = 1e-2
    config.eval.every_steps = 10
    return _train(config, **{"steps": 10, "batch_size": 8, **train})


def resnet(**train):
    """A tiny ResNet on digits, with batch statistics."""
    config = resnet_digits.get_config("embedded")
    config.model.update(stage_sizes=(1, 1), width=4)
    return _train(config, **{"steps": 10, "batch_size": 16, **train})


def mixed_resnet(**train):
    """The same, with crops, flips and mixup."""
    config = resnet(**train)
    config.data.transform.augment.update(crop_padding=1, flip=True, mixup=0.2, cutmix=1.0)
    return config


def logistic(**train):
    """Logistic regression on digits, which compiles quickly."""
    return _train(logistic_digits.get_config("embedded"), **{"steps": 10, "batch_size": 16, **train})


def bert_glue_task(task, **train):
    """A tiny GLUE task, for the substitute dataset that `glue` makes."""
    config = bert_glue.get_config(task)
    config.init_from = None
    config.dtype = "float32"
    config.model.update(hidden_size=16, mlp_size=32, num_layers=1, num_heads=2, vocab_size=300, max_positions=32)
    config.data.transform.update(vocab_size=300, max_length=24, pad_to=(24,), row_length=48)
    config.optimizer.learning_rate = 1e-2
    config.eval.update(every_steps=5, batch_rows=8)
    return _train(config, **{"steps": 10, "batch_rows": 8, **train})


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


GLUE_INPUTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
}


def glue_columns(name):
    """A small substitute for the TFDS dataset "glue/<task>": its columns and splits, unordered, test labels hidden."""
    task = name.removeprefix("glue/")
    rng = np.random.default_rng(len(task))
    sizes = {"train": 80, "validation": 40, "test": 30}
    if task == "mnli":
        parts = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
        sizes = {"train": 80} | {part: 40 if part.startswith("v") else 30 for part in parts}
    elif task == "ax":
        sizes = {"test": 30}
    words = "a the film is was never not very dull superb quite one of its kind and so on".split()

    def columns(split, size):
        inputs = {
            column: [" ".join(rng.choice(words, rng.integers(3, 9))).encode() for _ in range(size)]
            for column in GLUE_INPUTS[task]
        }
        if task == "stsb":
            labels = np.full(size, -1.0) if split == "test" else rng.integers(0, 26, size) / 5
        else:
            classes = 3 if task in ("mnli", "ax") else 2
            labels = np.full(size, -1) if split.startswith("test") else rng.integers(0, classes, size)
        return {**inputs, "label": labels.tolist(), "idx": rng.permutation(size).tolist()}

    return {split: columns(split, size) for split, size in sizes.items()}


def image_columns(shape):
    """A small substitute for a TFDS dataset of PNG images."""
    from tests.data.tiny_images import encoded, pixels

    images = [encoded(pixels(i, *shape)) for i in range(8)]
    return {split: {"image": images, "label": list(range(8))} for split in ("train", "validation", "test")}


def tfds_columns(name, data_dir):
    """Like `tfds_source.load`."""
    if name.startswith("glue/"):
        return glue_columns(name)
    if name.startswith("wikitext/"):
        texts = {"text": [b"superbly dullest filming", b"a dull film", b"not bad"]}
        return dict.fromkeys(("train", "validation"), texts)
    if name == "tiny_shakespeare":
        texts = {"text": [b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 40]}
        return dict.fromkeys(("train", "validation", "test"), texts)
    if name == "twenty_newsgroups":
        texts = {"text": [b"From: a\n\nOn a dull film.", b"", b"From: b\n\nOn a car."], "label": [0, 1, 19]}
        return dict.fromkeys(("train", "test"), texts)
    return image_columns({"mnist": (28, 28), "cifar10": (32, 32), "imagenet2012": (180, 200)}[name])


def tfds(monkeypatch):
    """Replaces TFDS's datasets by the substitutes."""
    monkeypatch.setattr(tfds_source, "load", tfds_columns)
    monkeypatch.setattr(tfds_source, "missing", lambda name, data_dir: None)
    monkeypatch.setattr(tfds_source, "state", lambda name, data_dir: None)


def few_documents(monkeypatch, documents=30):
    """Replaces Python's documentation by a few sentences of the generated corpus."""
    sentences = sentiment.generate(20 * documents, validation=False, seed=0)["sentence"]
    few = {f"document {i}": "\n".join(sentences[i::documents]) for i in range(documents)}
    monkeypatch.setattr(python_docs, "documents", lambda: few)


def batches(experiment, steps, start=0):
    """The first training batches of an experiment, on the host."""
    return list(itertools.islice(experiment.training_batches(start), steps - start))


def assert_trees_equal(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)


def own_file(folder, transform):
    """A file or folder for a config of own files with this transform."""
    if transform == "image":
        for name in ("circle", "square"):
            (folder / "images" / name).mkdir(parents=True)
            for i in range(20):
                image = np.full((12, 12, 3), 100 * (name == "circle") + i, np.uint8)
                Image.fromarray(image).save(folder / "images" / name / f"{i}.png")
        return folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    lines = (f"{i / 7},{'ab'[i % 2]},the text number {i} is here,{'yes' if i % 3 else 'no'}\n" for i in range(60))
    path.write_text("size,group,text,label\n" + "".join(lines))
    return path


WORDS = "a the film is was never not very dull superb quite one of its kind and so on".split()


def texts(count, seed=0):
    """Texts of 1 to 30 words; those of the same seed all differ."""
    rng = np.random.default_rng(seed)
    return [f"{seed} {i} " + " ".join(rng.choice(WORDS, rng.integers(1, 31))) for i in range(count)]


def shard(path, documents=None, *, group=16):
    """Writes texts to an array_record or a Parquet file, in row groups of so many."""
    documents = texts(60) if documents is None else documents
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        column = pyarrow.array(documents, pyarrow.string())
        parquet.write_table(pyarrow.table({"text": column}), path, row_group_size=group)
    else:
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for text in documents:
            writer.write(text.encode())
        writer.close()
    return path
