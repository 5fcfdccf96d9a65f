"""Builds objects from a config section: looks the name up in a table, and calls the entry with the other keys."""

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from research.base.errors import UserError

# Aliases: a word -> the names that a hint suggests for it, if they exist. An alias itself is never accepted.
ALIASES: dict[str, tuple[str, ...]] = {
    # keys
    **dict.fromkeys(("lr", "learning_rate", "step_size", "eta"), ("optimizer.learning_rate",)),
    **dict.fromkeys(("wd", "weight_decay", "l2"), ("optimizer.weight_decay",)),
    **dict.fromkeys(("warmup", "warmup_ratio", "warmup_steps"), ("optimizer.warmup_fraction",)),
    **dict.fromkeys(("scheduler", "lr_schedule", "lr_scheduler"), ("optimizer.schedule",)),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip"), ("optimizer.clip_norm",)),
    **dict.fromkeys(("optimizer", "optim"), ("optimizer.name",)),
    **dict.fromkeys(("bs", "batch", "batch_size"), ("train.batch_size", "train.batch_rows")),
    **dict.fromkeys(("epoch", "epochs", "num_epochs", "max_epochs", "n_epochs", "num_train_epochs"), ("train.epochs",)),
    **dict.fromkeys(("step", "steps", "num_steps", "max_steps", "iterations"), ("train.steps",)),
    **dict.fromkeys(("grad_accum", "gradient_accumulation_steps"), ("train.accumulate",)),
    "ema": ("train.ema_decay",),
    **dict.fromkeys(("seed", "random_seed", "random_state", "rng"), ("seed", "train.seeds")),
    **dict.fromkeys(("precision", "mixed_precision", "bf16", "fp16"), ("dtype",)),
    **dict.fromkeys(("patience", "early_stopping"), ("eval.patience",)),
    **dict.fromkeys(("dataset", "dataset_name", "data"), ("data.name",)),
    "num_workers": ("data.workers",),
    **dict.fromkeys(("max_len", "max_seq_length", "seq_len"), ("data.transform.max_length",)),
    **dict.fromkeys(("model", "arch", "architecture"), ("model.name",)),
    **dict.fromkeys(("dropout", "dropout_rate"), ("model.dropout",)),
    **dict.fromkeys(("d_model", "hidden_dim", "width"), ("model.hidden_size",)),
    **dict.fromkeys(("depth", "n_layers", "num_hidden_layers"), ("model.num_layers",)),
    **dict.fromkeys(("n_heads", "num_attention_heads"), ("model.num_heads",)),
    **dict.fromkeys(("num_labels", "n_classes", "classes"), ("model.num_classes",)),
    "pretrained": ("init_from",),
    # names
    "adam": ("adamw",),
    **dict.fromkeys(("normal_equations", "ols", "lstsq"), ("closed_form",)),
    **dict.fromkeys(("cross_entropy", "crossentropy", "ce", "softmax"), ("classification",)),
    **dict.fromkeys(("mse", "l2_loss", "squared_error", "mean_squared_error"), ("regression",)),
    **dict.fromkeys(("hinge", "svm"), ("squared_hinge",)),
    "mlm": ("masked_lm", "bert_mlm"),
    **dict.fromkeys(("val", "dev"), ("validation",)),
}

# The similarity at which a hint suggests a word. Of 41 typos in keys, flags and names, all had a similarity of at least
# 0.67 to what was meant ("sdg", "mpl") except "valid", which is found as a prefix. Of 25 words without a meaning here,
# all had at most 0.56 to anything ("logger") except "wine", a letter away from "line".
_ALIKE = 0.6
_LISTED = 12  # the most names that a hint lists
_SUGGESTED = 5


def nearest(word: str, known: Iterable[str], *, unlikely: Collection[str] = (), whole: bool = False) -> str:
    """A hint for an unknown `word`: the nearest known words, or a list of known ones.

    For keys such as "train.steps" the last part decides, and the section breaks ties.

    Args:
      unlikely: words that an alias may stand for, but not here.
      whole: whether a dot has no special meaning, as in a file name.
    """
    known = sorted(known)
    if not known:
        return "there are none here"
    section, last = _parts(word, whole)
    scores = {name: _alike_keys((section, last), _parts(name, whole)) for name in known}
    best = max(scores.values())
    aliases = ALIASES.get(_plain(word)) or ALIASES.get(last, ())
    meant = [name for alias in aliases for name in (alias, alias.rpartition(".")[2]) if name in {*known} - {*unlikely}]
    if meant and (not section or best[0] < 1):
        return _suggestion(list(dict.fromkeys(meant)))
    if best[0] >= _ALIKE:
        return _suggestion([name for name in known if scores[name] == best])
    beside = [name for name in known if section and _parts(name, whole)[0] == section] or known
    more = f" and {len(beside) - _LISTED} more" if len(beside) > _LISTED else ""
    return f"known: {', '.join(beside[:_LISTED])}{more}"


def _suggestion(names: Sequence[str]) -> str:
    *others, last = map(repr, names[:_SUGGESTED])
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _parts(key: str, whole: bool) -> tuple[str, str]:
    section, _, last = ("", "", key) if whole else key.rpartition(".")
    return _plain(section), _plain(last)


def _alike_keys(one: tuple[str, str], other: tuple[str, str]) -> tuple[float, float]:
    """The similarity of the last parts of two keys, and of their sections."""
    section = _alike(one[0], other[0])
    return _alike(one[1], other[1], prefix=5), section if section >= _ALIKE else 0.0


def _alike(one: str, other: str, *, prefix: int = 4) -> float:
    """Similarity of two words: 1 − (insertions, deletions, substitutions, adjacent swaps) / (length of the longer).

    A word of at least `prefix` letters that is a prefix or suffix of the other is just similar enough for a hint.
    0: too dissimilar for one.
    """
    longer = max(len(one), len(other))
    if one == other:
        return 1.0
    short, long = sorted((one, other), key=len)
    part = _ALIKE if len(short) >= prefix and (long.startswith(short) or long.endswith(f"_{short}")) else 0.0
    if abs(len(one) - len(other)) > (1 - _ALIKE) * longer:
        return part
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, above, row = row, before, [i]
        for j, its in enumerate(other, start=1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and its == one[i - 2]:
                edits = min(edits, above[j - 2] + 1)
            row.append(edits)
    return max(part, 1 - row[-1] / longer)


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`. Raises UserError for an unknown name, suggesting the nearest known one."""
    if name not in table:
        raise UserError(f"{what} {name!r} is unknown; {nearest(name, table)}")
    return table[name]


def config_keys(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keys that a section may have for `function`. Arguments bound by a `partial` are not keys."""
    # Flax modules also take `parent` and `name`, which are not for configs.
    fixed = {"parent", "name", *(function.keywords if isinstance(function, functools.partial) else ())}
    return {key: value for key, value in inspect.signature(function).parameters.items() if key not in fixed}


def expand_variant(table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any]) -> dict[str, Any]:
    """Expands a section that names a variant, a `partial`: the name of the base entry, with all keys."""
    function = table.get(section["name"])
    if not isinstance(function, functools.partial):
        return dict(section)
    name = next(name for name, whole in table.items() if whole is function.func)
    return {**function.keywords, **section, "name": name}


def build(table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], what: str, **extra: Any) -> Any:
    """Calls `table[section["name"]]` with the section's other keys and `extra`.

    Raises UserError for an unknown name or key, suggesting the nearest known one, for a missing key, and for an entry
    that does not take `extra`.
    """
    arguments = dict(section)
    name = arguments.pop("name")
    function = lookup(table, name, f"{what}.name")
    parameters = config_keys(function)
    for key in arguments:
        if key not in parameters or key in extra:
            raise UserError(f"{what}.{key} is not a key of {name!r}; {nearest(key, set(parameters) - set(extra))}")
    for key in extra:
        if key not in parameters:
            raise UserError(
                f"{what} {name!r} has no field {key}, which it is given: declare it, for a Flax module as "
                f"`{key}: Any = None`"
            )
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments and key not in extra:
            raise UserError(f"{what}.{key} is missing; {name!r} needs it")
    return function(**arguments, **extra)


def regex(key: str, pattern: str) -> re.Pattern[str]:
    """Compiles the regular expression of a config key. Raises UserError if it is not valid."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{key}={pattern!r} is not a valid regular expression: {error}") from error
