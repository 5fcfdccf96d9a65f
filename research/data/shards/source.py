"""Corpora in shards as a dataset: rows of `train` are made when they are needed, other splits are read into memory.

A tokenizer that is not given is trained on a sample of `train`, from which also the number of documents per group is
computed. The column of texts that `train` shows is that sample.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from research.base.errors import UserError
from research.data.bijection import Bijection, order_key
from research.data.cache import ArtifactCache, digest
from research.data.columns import only
from research.data.encoder import Encoder
from research.data.examples import Columns
from research.data.shards.files import Shards, counts, file_digest, find
from research.data.shards.order import Order, Schedule
from research.data.shards.rows import Plan, ShardRows
from research.data.splits import BySplit

NAME = "shards"  # of the dataset, in `data.name`
_SPLITS = ("train", "validation", "test")

# Documents of the sample from which the documents of a group are computed: the first ones. The error of their mean
# length is a few percent.
_MEASURED = 1000
_IN_MEMORY_BYTES = 2**31  # of the files of a split other than `train`


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The sources of a config's `data` section.

    Attributes:
      sources: those of `train`, each with its weight in `schedule`.
      others: the shards of the other splits that have some.
      settings: `data.shards`.
    """

    sources: tuple[Shards, ...]
    others: Mapping[str, Shards]
    schedule: Schedule
    settings: Mapping[str, Any]
    column: str

    @property
    def order(self) -> Order:
        return Order(tuple(map(len, self.sources)), self.schedule, self.settings["run"])

    def columns(self) -> Mapping[str, Columns]:
        """The texts of each split, read on first access: of `train` a sample, of others all of them."""
        return BySplit(dict.fromkeys(_SPLITS), self._texts)

    def _texts(self, split: str) -> Columns:
        if split == "train":
            return {self.column: self._sample}
        if split not in _SPLITS:
            raise UserError(f"shards have no split {split!r}; known: {', '.join(_SPLITS)}")
        if split not in self.others:
            raise UserError(
                f"data.{split} is missing: no split is cut off data.train; name its shards, "
                f"--config.data.{split}='corpus/{split}*.parquet'"
            )
        shards = self.others[split]
        if sum(shards.file_bytes) > _IN_MEMORY_BYTES:
            raise UserError(
                f"data.{split} has {sum(shards.file_bytes):,} bytes of shards, which are read into memory; at most "
                f"{_IN_MEMORY_BYTES:,}: name fewer of them"
            )
        return {self.column: shards.texts(np.arange(len(shards)))}

    @functools.cached_property
    def _sample(self) -> list[Any]:
        """Documents drawn as in training, whatever the run's seed; no more of a source than it has."""
        sources, draws = self.schedule(np.arange(min(self.settings["sample"], sum(map(len, self.sources)))))
        texts: list[Any] = []
        for source, shards in enumerate(self.sources):
            wanted = draws[(sources == source) & (draws < len(shards))]
            texts += shards.texts(Bijection(len(shards), order_key(0, 0, source))(wanted))
        # In the order of the corpora they would not be a sample of all of them from the first on.
        return [texts[i] for i in Bijection(len(texts), order_key(0, 0))(np.arange(len(texts))).tolist()]

    def rows(self, encoder: Encoder, cache: ArtifactCache) -> ShardRows:
        """The rows of `train`; the plan of groups is kept in the cache's assets, as it must not change."""

        def plan() -> str:
            texts = self._sample[:_MEASURED]
            rows = [self._tokens(encoder, [text]) for text in texts]
            lengths, whole = np.array([tokens for tokens, _ in rows]), self._tokens(encoder, texts)
            if not lengths.sum():
                raise UserError(f"no token was found in {len(texts):,} documents of data.train; is the column right?")
            made = Plan.of(lengths, whole[0] / whole[1], self.settings["rows"], self.settings["documents"])
            return json.dumps(dataclasses.asdict(made))

        kept = cache.text("groups.json", plan, key=(repr(encoder),))
        return ShardRows(encoder, self.sources, self.order, Plan(**json.loads(kept)))

    def _tokens(self, encoder: Encoder, texts: list[Any]) -> tuple[int, int]:
        """The number of tokens of texts, and of the rows that they fill."""
        examples = encoder.encode({self.column: texts}, split="train")
        assert examples.labels is not None
        return len(examples.labels), len(examples)


def _patterns(section: Mapping[str, Any]) -> tuple[str, ...]:
    """The globs of each source of `train`. Raises UserError if there are none, or not one for each weight."""
    weights = section["shards"]["weights"]
    if not section["train"]:
        raise UserError("data.train is missing: name the shards to train on, --config.data.train='corpus/*.parquet'")
    if not weights:
        return (section["train"],)
    patterns = tuple(part.strip() for part in section["train"].split(","))
    if len(patterns) != len(weights):
        raise UserError(
            f"data.shards.weights has {len(weights)} weights for {len(patterns)} globs in data.train, separated by "
            "commas; there must be one for each"
        )
    return patterns


def check(section: Mapping[str, Any]) -> str:
    """The column of texts of a section. Raises UserError for settings that shards do not support."""
    transform = section["transform"]
    if transform["name"] not in ("language_model", "masked_lm"):
        raise UserError(
            f"data.transform is {transform['name']!r}, which data.name={NAME} does not support; it must be "
            "language_model or masked_lm"
        )
    for key, off in (("heading", ""), ("blocks", "consecutive")):
        if transform.get(key, off) != off:
            raise UserError(
                f"data.transform.{key} is {transform[key]!r}, which data.name={NAME} does not support: each record is "
                f"a document, and rows are cut as they come; set it to {off!r}"
            )
    if section["train_fraction"] != 1:
        raise UserError(
            f"data.train_fraction is {section['train_fraction']}, which data.name={NAME} does not support; name fewer "
            "shards in data.train, or train for fewer steps"
        )
    return only(tuple(transform["inputs"]))


def state(section: Mapping[str, Any]) -> str:
    """A hash of the names, sizes and times of the files, and of the settings. Raises UserError as `_files`."""
    listed = []
    for split, sources in _files(section).items():
        for paths in sources:
            stats = [path.stat() for path in paths]
            listed.append((split, [(str(p), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)]))
    return digest(NAME, listed, _settings(section))


def fingerprint(section: Mapping[str, Any]) -> str:
    """A hash of the files' names, sizes, and the first and last bytes of each, and of the settings.

    Whole files are not read, as that may take days: a change in the middle of a file that leaves its size as it is goes
    unnoticed.
    """
    found = [
        (split, [(path.name, file_digest(path)) for path in _shown(paths)])
        for split, sources in _files(section).items()
        for paths in sources
    ]
    return digest(found, _settings(section))[:16]


def _shown(paths: tuple[Any, ...]) -> Any:
    return tqdm(paths, desc="hashing shards", unit="file", delay=2, leave=False, disable=None)


def _settings(section: Mapping[str, Any]) -> list[Any]:
    shards = section["shards"]
    return [check(section), list(shards["weights"]), *(shards[key] for key in ("rows", "documents", "run", "sample"))]


def _files(section: Mapping[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """The files of each source of each split that has some. Raises UserError as `_patterns` and `find`."""
    check(section)
    found = {"train": [find(pattern, "data.train") for pattern in _patterns(section)]}
    for split in _SPLITS[1:]:
        if section[split]:
            found[split] = [find(section[split], f"data.{split}")]
    return found


def load(section: Mapping[str, Any]) -> Corpus:
    """The corpora of a section. Raises UserError for a file that is empty, not valid or lacks the column."""
    column, cache = check(section), ArtifactCache(source=state(section))

    def index(paths: tuple[Any, ...]) -> Shards:
        def count() -> dict[str, np.ndarray]:
            listed = [counts(path, column) for path in tqdm(paths, desc="indexing shards", delay=2, leave=False)]
            return {"counts": np.concatenate(listed), "groups": np.array([len(each) for each in listed])}

        arrays = cache.arrays("shards", count, key=(list(map(str, paths)), column))
        return Shards.of(paths, np.split(arrays["counts"], np.cumsum(arrays["groups"])[:-1]), column)

    files = _files(section)
    sources = tuple(index(paths) for paths in files["train"])
    others = {split: index(files[split][0]) for split in _SPLITS[1:] if split in files}
    schedule = Schedule.of(section["shards"]["weights"] or (1.0,))
    return Corpus(sources, others, schedule, dict(section["shards"]), column)
