"""Parses overrides: the text that a user gives for a config key -> a value of the type declared for the key.

A key may be None if the config declares it as `placeholder(type)`, whatever value a preset assigns later.
"""

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from research.base.errors import UserError

_WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "text", tuple: "a tuple"}
_ITEMS: dict[Any, str] = {int: "integers", float: "numbers", str: "names", tuple: "tuples"}


@dataclasses.dataclass(frozen=True)
class Declared:
    """The declaration of a config key: its `kind` (a type, `object` for any), its value, and whether it may be None.

    `of`: the type of a tuple's items, if the value does not show it.
    """

    kind: type
    value: Any
    optional: bool
    of: type | None = None

    @property
    def items(self) -> type | None:
        """The type of a tuple's items, if known."""
        kinds = {type(item) for item in self.value} if isinstance(self.value, tuple) else set()
        return kinds.pop() if len(kinds) == 1 else self.of

    @property
    def wanted(self) -> str:
        """What a value must be, for an error message."""
        what = _WANTED.get(self.kind, "a number, text or a tuple of them")
        if self.items in _ITEMS:
            what += f" of {_ITEMS[self.items]}" + (f", such as {self.value!r}" if self.value else "")
        return what + (", or None" if self.optional else "")


def declared(config: ConfigDict, prefix: str = "") -> dict[str, Declared]:
    """The declarations of a config, by key such as "train.steps"."""
    found: dict[str, Declared] = {}
    for key, field in config.items(preserve_field_references=True):
        if isinstance(field, ConfigDict):
            found |= declared(field, f"{prefix}{key}.")
        elif isinstance(field, FieldReference):
            found[prefix + key] = Declared(field.get_type(), field.get(), optional=True)
        else:
            found[prefix + key] = Declared(object if field is None else type(field), field, optional=field is None)
    return found


def accepted(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Declared]:
    """Declarations of a function's parameters, from their annotations; those that a config can't set are omitted."""
    found = {key: _accepted(parameter.annotation, parameter.default) for key, parameter in parameters.items()}
    return {key: declared for key, declared in found.items() if declared}


def _accepted(annotation: Any, default: Any) -> Declared | None:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    choices = set(typing.get_args(annotation)) if union else {annotation}
    kinds = choices - {types.NoneType}
    if not all((typing.get_origin(kind) or kind) in _PARSERS for kind in kinds):
        return None
    value = None if default is inspect.Parameter.empty else default
    optional = types.NoneType in choices
    if len(kinds) > 1:
        return Declared(object, value, optional)
    (kind,) = kinds
    items = {typing.get_origin(item) or item for item in typing.get_args(kind) if item is not ...}
    return Declared(typing.get_origin(kind) or kind, value, optional, items.pop() if len(items) == 1 else None)


def parse(key: str, text: str, declared: Declared) -> Any:
    """Parses `text` to the key's value. Raises UserError, naming the key, the text and what it must be."""
    if text == "None":
        if not declared.optional:
            raise UserError(f"{key} can't be None; it must be {declared.wanted}")
        return None
    try:
        if not text and (declared.kind is not str or declared.optional):
            raise ValueError  # only text that is not optional may be empty
        return _PARSERS.get(declared.kind, _any)(text, declared.items)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"override not understood: {key}={text!r}; it must be {declared.wanted}") from None


def by_class(key: str, weights: Mapping[Any, Any], num_classes: int | None) -> tuple[Any, ...]:
    """Converts scikit-learn's {class: weight} to a weight for each class, 1 for omitted classes."""
    classes = range(num_classes or 0)
    if not all(type(label) is int and label in classes for label in weights):
        raise UserError(f"{key} is {dict(weights)}; its keys must be classes, 0 to {len(classes) - 1}")
    return tuple(weights.get(label, 1.0) for label in classes)


def _bool(text: str, _: Any) -> bool:
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[text.lower()]


def _tuple(text: str, items: type | None) -> tuple[Any, ...]:
    if text[:1] not in ("(", "[") and (items is str or (items is None and "=" in text)):
        names = tuple(text.split(","))  # "validation,test" or "age=number", without a shell's quotes around quotes
        if not all(names):
            raise ValueError
        return names
    value = _plain(ast.literal_eval(text))
    if items is None:
        if not isinstance(value, tuple):
            raise TypeError
        return value
    return tuple(_item(item, items) for item in (value if isinstance(value, tuple) else (value,)))


def _item(value: Any, wanted: type) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise TypeError
    return value


def _any(text: str, _: Any) -> Any:
    """Parses a Python literal; anything else is text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    """Converts to values that a config can hold: numbers, text, None, and tuples of these; lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if not isinstance(value, bool | int | float | str | None):
        raise TypeError
    return value


_PARSERS: Mapping[type, Callable[[str, type | None], Any]] = {
    bool: _bool,
    int: lambda text, _: int(text),
    float: lambda text, _: float(text),
    str: lambda text, _: text,
    tuple: _tuple,
}
