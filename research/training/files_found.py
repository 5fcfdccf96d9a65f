"""What own files say: the columns of a table and their kinds, or the classes and the images of a folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.registry import nearest
from research.data.files import folders, source
from research.data.files.kinds import LABELS, Summary, declare, declared, infer, summarize
from research.data.files.tables import row_name
from research.data.images.decoding import MODES, decode

# A label of integers has classes if it has at most this many values, and numbers otherwise.
_CLASSES = 20
_SAMPLED = 1000  # images, for the mean and standard deviation
# Images that are not all of one size, or larger than this, are resized to the second number.
_LARGEST_SIZE, _SIZE = 96, 64


@dataclasses.dataclass(frozen=True)
class Found:
    """What the files say.

    Attributes:
      settings: config keys and their values.
      classes: the names of the label's classes; None for a label of numbers.
      rows: the number of rows, or images, of data.train.
      words: the number of words of a row's text, on average.
      lines: describe the columns to the user.
    """

    settings: Mapping[str, Any]
    classes: tuple[str, ...] | None
    rows: int
    words: float
    lines: tuple[str, ...]


def look(config: ConfigDict, path: Path) -> Found:
    """What the file or folder `path`, data.train, says. Raises UserError as `own_files.fill_in`."""
    return _in_folder(config, path) if path.is_dir() else _in_table(config, path)


# Folders


def _in_folder(config: ConfigDict, path: Path) -> Found:
    transform = config.data.transform
    if transform.name not in ("image", "pixels"):
        raise UserError(
            f"data.train={path} is a folder, which is for images; data.transform {transform.name!r} reads a table: "
            ".csv, .tsv, .jsonl, .parquet"
        )
    classes = folders.classes(path)
    images = [image for files in classes.values() for image in files]
    counts = {name: len(files) for name, files in classes.items()}
    lines = [f"data: {path}: {len(images):,} images in {len(classes)} classes: {_sizes(counts)}"]
    settings, line = _of_images(images, config)
    names = {"data.transform.inputs": ("image",), "data.transform.label": "label", "data.kinds": ()}
    return Found({**names, **settings}, tuple(classes), len(images), 0.0, (*lines, line, *_rare(counts, config)))


def _sizes(counts: Mapping[str, int]) -> str:
    """The first 20 classes with their numbers of rows."""
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:20])


def _rare(counts: Mapping[str, int], config: ConfigDict) -> list[str]:
    """Warnings about the first classes that are too small to be cut; none if nothing is cut off data.train."""
    if config.data.validation:
        return []
    return [
        f"  warning: class {name!r} has 1 row: it cannot be in both train and validation"
        for name in [name for name, count in counts.items() if count < 2][:3]
    ]


def _of_images(images: list[Path], config: ConfigDict) -> tuple[dict[str, Any], str]:
    """Channels, sizes, mean and standard deviation of images, from a sample; and a line about them.

    Raises UserError for an image that can't be decoded.
    """
    sample = images[:: max(1, len(images) // _SAMPLED)]
    decoded = [_decoded(image) for image in sample]
    grey = all((image[:, :, :1] == image).all() for image in decoded)
    channels = 1 if grey else 3
    pixels = [image[:, :, :channels].reshape(-1, channels).astype(np.float64) for image in decoded]
    count = sum(map(len, pixels))
    mean = sum(part.sum(axis=0) for part in pixels) / count
    std = np.sqrt(sum(((part - mean[None, :]) ** 2).sum(axis=0) for part in pixels) / count)
    shapes = {image.shape[:2] for image in decoded}
    (height, width), *others = shapes
    same = not others and max(height, width) <= _LARGEST_SIZE
    size = None if same else _SIZE
    if same and config.data.transform.get("augment", {}).get("random_resized_crop") is not None:
        size = min(height, width)  # which the crops are resized to
    settings = {
        "data.transform.channels": channels,
        "data.transform.resize": size,
        "data.transform.size": size,
        "model.mean": tuple(round(float(x), 1) for x in mean),
        "model.std": tuple(max(round(float(x), 1), 0.1) for x in std),
    }
    if config.init_from and not same:  # pretrained networks expect their own sizes
        settings |= {"data.transform.resize": 256, "data.transform.size": 224}
    kind = "grey" if grey else "colour"
    shape = f"{height}×{width}" if not others else f"{len(shapes)} sizes"
    final = settings["data.transform.size"]
    resized = "" if same and (final is None or height == width) else f", resized to {final}×{final}"
    return settings, f"  {kind}, {shape}{resized}; mean {settings['model.mean']}, std {settings['model.std']}"


def _decoded(image: Path) -> np.ndarray:
    try:
        return decode(folders.contents(image), max(MODES))
    except ValueError as error:
        raise UserError(f"{image} can't be decoded: {error}; remove it, or mend it") from error


# Tables


def _in_table(config: ConfigDict, path: Path) -> Found:
    listed = tuple(config.data.kinds)
    ignored = {text.rpartition("=")[0] for text in listed if text.endswith("=ignored")}
    transform = config.data.transform
    chats = transform.name == "chat"
    summaries = summarize(path, ignored, nested=chats)
    known = declared(listed, {**summaries, **dict.fromkeys(ignored)})
    label = _label(config, summaries, path) if "label" in config.data.transform else None
    kinds = {name: known[name] for name in summaries if name in known}
    inputs = tuple(transform.inputs)
    for name in inputs:
        if name not in summaries:
            raise UserError(f"data.transform.inputs: {path} has no column {name!r}; {nearest(name, summaries)}")
    if label in inputs:
        raise UserError(f"data.transform.inputs has the label, {label!r}; leave it out")
    strict = transform.name == "table"
    apart = {label, config.data.group_by, config.data.time_by}
    for name, summary in summaries.items():
        if name not in kinds and (name in inputs or (not inputs and name not in apart)):
            kinds[name] = _kind(name, summary, path, strict=strict or name in inputs)
    wanted = {"table": ("number", "category"), "image": ("image",), "pixels": ("image",)}.get(transform.name, ("text",))
    wanted = ("json",) if chats and len(inputs) == 1 else wanted  # else a prompt and its answer, which are text
    if not inputs:
        inputs = tuple(name for name in summaries if kinds.get(name) in wanted and name != label)
        if wanted == ("text",):
            inputs = inputs or tuple(name for name in summaries if kinds.get(name) in ("category", "key"))[:1]
            if len(inputs) > 1:
                raise UserError(
                    f"{path} has several columns of text: {', '.join(inputs)}; name the one to read, or the two of "
                    f"pairs: --config.data.transform.inputs={inputs[0]}"
                )
        if not inputs:
            if transform.name == "table" and "text" in kinds.values():
                raise UserError(
                    f"{path} has text and no column of numbers or categories; configs/text_files.py reads text"
                )
            kinds_there = ", ".join(f"{name} ({kinds.get(name, 'label')})" for name in summaries)
            raise UserError(
                f"{path} has no column of {' or '.join(wanted)} for data.transform {transform.name!r}: {kinds_there}; "
                f"declare one: {declare('COLUMN', wanted[0])}"
            )
    kinds |= {name: wanted[0] for name in inputs if kinds[name] not in wanted}
    classes = None
    if label is not None:
        classes = _classes(label, summaries[label], known, path)
        kinds[label] = "number" if classes is None else "category"
    return _described(config, path, summaries, kinds, inputs, label, classes)


def _kind(name: str, summary: Summary, path: Path, *, strict: bool) -> str:
    """The inferred kind. Without `strict`, a column that is no feature is ignored."""
    try:
        return infer(name, summary, path)
    except UserError:
        if strict:
            raise
        return "ignored"


def _label(config: ConfigDict, names: Mapping[str, Any], path: Path) -> str:
    label = str(config.data.transform.label)
    if label:
        if label not in names:
            raise UserError(f"data.transform.label: {path} has no column {label!r}; {nearest(label, names)}")
        return label
    found = [name for name in LABELS if name in names]
    if not found:
        raise UserError(
            f"which column of {path} is the label? --config.data.transform.label=COLUMN, one of {', '.join(names)}"
        )
    return found[0]


def _classes(label: str, summary: Summary, known: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    """The names of a label's classes, in order; None for a label of numbers."""
    if summary.missing:
        raise UserError(
            f"{row_name(summary.first_missing or 0, path)}: the label {label!r} is missing, as in "
            f"{summary.missing:,} of {summary.rows:,} rows; give it, or remove the rows"
        )
    kind = known.get(label)
    if kind is None:
        whole = summary.numbers == summary.values
        few = summary.distinct is not None and len(summary.distinct) <= _CLASSES
        kind = "number" if whole and not few else "category"
    if kind == "number":
        return None
    if kind != "category":
        raise UserError(f"the label {label!r} is declared as {kind}; it must be category, for classes, or number")
    if summary.dates == summary.values:
        raise UserError(f"{path}: the label {label!r} has dates; it must be classes or numbers")
    if summary.distinct is None:
        raise UserError(f"{path}: the label {label!r} has more than 1,000 values; are these its classes?")
    if len(summary.distinct) < 2:
        raise UserError(
            f"{path}: the label {label!r} is {next(iter(summary.distinct))!r} in all rows; at least two classes are "
            "needed"
        )
    return source.sorted_names(tuple(summary.distinct))


def _described(
    config: ConfigDict,
    path: Path,
    summaries: Mapping[str, Summary],
    kinds: Mapping[str, str],
    inputs: tuple[str, ...],
    label: str | None,
    classes: tuple[str, ...] | None,
) -> Found:
    """Puts together what is known of a table, and describes it."""
    key = next((name for name in summaries if kinds.get(name) == "key" and name not in inputs), None)
    read = {name: kinds[name] for name in (*inputs, *([label] if label else []), *([key] if key else []))}
    settings: dict[str, Any] = {"data.transform.inputs": inputs, **({"data.transform.label": label} if label else {})}
    rows = summaries[inputs[0]].rows
    lines = [f"data: {path}: {rows:,} rows"]
    for kind in dict.fromkeys(read[name] for name in inputs):
        names = [name for name in inputs if read[name] == kind]
        lines.append(f"  {kind}: {', '.join(_counted(name, summaries[name], kind) for name in names)}")
    if label:
        counts = {name: (summaries[label].distinct or {})[name] for name in classes or ()}
        what = "numbers" if classes is None else f"{len(classes)} classes: {_sizes(counts)}"
        lines += [f"  label: {label} ({what})", *_rare(counts, config)]
    others = [name for name in summaries if name not in read]
    if key:
        lines.append(f"  key: {key}")
    if others:
        lines.append(f"  not read: {', '.join(others)} (to read one: {declare('COLUMN', 'KIND')})")
    if config.data.transform.name in ("image", "pixels"):
        images = [path.parent / name for name in _first_column(path, inputs[0])]
        more, line = _of_images(images, config)
        settings |= more
        lines.append(line)
    words = sum(summaries[name].words for name in inputs) / rows
    settings["data.kinds"] = tuple(f"{name}={kind}" for name, kind in sorted(read.items()))
    # What the user declared is in it too.
    config.data.kinds = settings["data.kinds"]
    return Found(settings, classes, rows, words, tuple(lines))


def _counted(name: str, summary: Summary, kind: str) -> str:
    missing = f", {summary.missing:,} missing" if summary.missing else ""
    if kind == "category" and summary.distinct is not None:
        return f"{name} ({len(summary.distinct)} values{missing})"
    return f"{name} ({missing.removeprefix(', ')})" if missing else name


def _first_column(path: Path, name: str) -> list[str]:
    from research.data.cache import NO_CACHE
    from research.data.files.columns import read_columns

    return list(read_columns(path, {name: "image"}, NO_CACHE)[name])
