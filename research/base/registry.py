"""Build things from a config section: look the name up in a table, call it with the rest of the section."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from research.base.errors import UserError


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown `word`: the nearest known one, or all of them."""
    known = sorted(known)
    if not known:
        return "there are none here"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`; raises UserError naming the nearest known name."""
    if name not in table:
        raise UserError(f"{what} {name!r} is unknown; {nearest(name, table)}")
    return table[name]


def config_keys(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keys that a section may have for `function`. What a `partial` has bound is part of its name, and no key."""
    # Flax modules take `parent` and `name` themselves; those are not for configs.
    fixed = {"parent", "name", *(function.keywords if isinstance(function, functools.partial) else ())}
    return {key: value for key, value in inspect.signature(function).parameters.items() if key not in fixed}


def expand_variant(table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any]) -> dict[str, Any]:
    """A section whose name is a `partial`'s, by the name of what it is a variant of and with all keys."""
    function = table.get(section["name"])
    if not isinstance(function, functools.partial):
        return dict(section)
    name = next(name for name, whole in table.items() if whole is function.func)
    return {**function.keywords, **section, "name": name}


def build(table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], what: str, **extra: Any) -> Any:
    """Calls `table[section["name"]]` with the section's other keys and `extra`.

    Raises UserError for an unknown name or key (naming the nearest known one), and for a missing key.
    """
    arguments = dict(section)
    name = arguments.pop("name")
    function = lookup(table, name, f"{what}.name")
    parameters = config_keys(function)
    for key in arguments:
        if key not in parameters or key in extra:
            raise UserError(f"{what}.{key} is not a key of {name!r}; {nearest(key, set(parameters) - set(extra))}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments and key not in extra:
            raise UserError(f"{what}.{key} is missing; {name!r} needs it")
    return function(**arguments, **extra)


def regex(key: str, pattern: str) -> re.Pattern[str]:
    """The config key's regular expression. Raises UserError where it is not a valid one."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{key}={pattern!r} is not a valid regular expression: {error}") from error
