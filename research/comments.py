"""The keys of a config with their values and the comments that the config files have on them."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.base.trees import flatten
from research.config_files import FOLDER
from research.training import own_files

_COLUMN = 44  # at which comments begin, where the key and its value leave room


def with_comments(config: ConfigDict, file: Path) -> str:
    """Every key of a config that `file` made, a line each: "KEY = VALUE  # COMMENT", in the order of the files."""
    notes = _comments(config, file)
    order = {key: position for position, key in enumerate(notes)}
    values = flatten(config.to_dict())
    for key in own_files.inferred(config):
        notes[key] = "; ".join(filter(None, (notes.get(key), "inferred from the data unless given")))

    def position(key: str) -> list[int]:
        """The positions of the key's sections and of the key itself; what no file declares comes last."""
        parts = key.split(".")
        return [order.get(".".join(parts[: i + 1]), len(order)) for i in range(len(parts))]

    lines = []
    for key in sorted(values, key=position):
        line = f"{key} = {values[key]!r}"
        lines.append(f"{line:{_COLUMN}}  # {notes[key]}" if notes.get(key) else line)
    return "\n".join(lines)


def _comments(config: ConfigDict, file: Path) -> dict[str, str]:
    """The comment on each section and key that the files declare or assign, in their order; "" for none.

    A key's comments are those on its declaration, and where a file assigns the value that the config has.
    """
    sections = {"": config, **_sections(config)}
    values = flatten(config.to_dict())
    declared: dict[str, str] = {}
    assigned: dict[str, str] = {}
    for path in _sources(file, {}):
        source = path.read_text()
        tree, (above, beside) = ast.parse(source), _tokens(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for section in _described(node, sections):
                    for key, text in _of_dict(node, f"{section}." if section else "", above, beside):
                        declared[key] = declared.get(key) or text
            elif isinstance(node, ast.Assign) and node.lineno in beside:
                key = _assigned_key(node.targets[0])
                if key in values and _is(node.value, values[key]):
                    assigned.setdefault(key, beside[node.lineno])
    return {
        key: "; ".join(dict.fromkeys(text for text in (declared.get(key), assigned.get(key)) if text))
        for key in {**declared, **assigned}
    }


def _sections(config: ConfigDict, prefix: str = "") -> dict[str, ConfigDict]:
    found: dict[str, ConfigDict] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= {prefix + key: value, **_sections(value, f"{prefix}{key}.")}
    return found


def _sources(file: Path, seen: dict[Path, None]) -> list[Path]:
    """The file, and the files of this package's configs that it imports: themselves, and those they import."""
    if file.is_file() and file not in seen:
        seen[file] = None
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("research.configs"):
                names = [*(node.module or "").split(".")[2:3], *(alias.name for alias in node.names)]
                for name in names:
                    _sources(FOLDER / f"{name}.py", seen)
    return list(seen)


def _tokens(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """The comments of a source by line: those alone on their line, and those beside code."""
    above: dict[int, str] = {}
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            (above if alone else beside)[token.start[0]] = token.string.lstrip("# ")
    return above, beside


def _described(node: ast.Dict, sections: Mapping[str, ConfigDict]) -> Iterator[str]:
    """The sections that a dict literal declares: it has their `name`, or all of their keys."""
    keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
    for name, section in sections.items():
        if keys and keys <= set(section) and ("name" in keys or keys == set(section)):
            yield name


def _of_dict(
    node: ast.Dict, prefix: str, above: Mapping[int, str], beside: Mapping[int, str]
) -> Iterator[tuple[str, str]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        if isinstance(value, ast.Dict):
            yield f"{prefix}{key.value}", ""
            yield from _of_dict(value, f"{prefix}{key.value}.", above, beside)
            continue
        first = key.lineno
        while first - 1 in above:
            first -= 1
        lines = [above[line] for line in range(first, key.lineno)]
        lines += [beside[value.end_lineno or key.lineno]] if (value.end_lineno or key.lineno) in beside else []
        yield f"{prefix}{key.value}", " ".join(lines)


def _assigned_key(target: ast.expr) -> str:
    """ "train.steps" of `config.train.steps = …`; "" for other targets."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    return ".".join(names) if isinstance(target, ast.Name) and target.id == "config" else ""


def _is(node: ast.expr, value: Any) -> bool:
    """Whether an expression is the literal `value`."""
    try:
        return bool(ast.literal_eval(node) == value)
    except (ValueError, TypeError):
        return False
