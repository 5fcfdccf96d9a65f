"""Chats as text: a model's own template turns messages into the text that it was trained on.

A template is a program that comes with the weights. It runs in Jinja's sandbox, with limits on its time and its output.
"""

import ctypes
import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.base.paths import read_json

SETTINGS = "tokenizer_config.json"  # the file with the special tokens by name, and often the template
_OWN_FILE = "chat_template.jinja"
LONGEST = 10**6  # characters of a text
SECONDS = 2.0  # for a text
_TOTAL = 20 * LONGEST  # characters of all texts, and items of all lists, that are put together on the way to it
_INDENT = 16  # spaces of JSON

# ChatML, for models that have no template; the token that ends their texts also ends messages.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}{{ eos_token }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_START = "<|im_start|>"
# What makes a large text or number of a small one, in one call that no limit of time can interrupt.
_MULTIPLIERS = frozenset(
    "batch center expandtabs format format_map indent ljust pprint replace rjust round slice translate urlize wordwrap "
    "xmlattr zfill".split()
)


class ChatTemplate:
    """A template in Jinja, as transformers saves it.

    Attributes:
      source: the template.
      special: the special tokens by name, such as bos_token.
    """

    def __init__(self, source: str, special: Mapping[str, str]):
        """Raises UserError if the source can't be read."""
        try:
            import jinja2
        except ModuleNotFoundError as error:
            raise UserError("chats need jinja2: pip install 'research[chat]'") from error

        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"the chat template can't be read: {error}") from error
        self.source = source
        self.special = dict(special)

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a folder; None if it has none. Raises UserError if it can't be read."""
        settings = settings_of(folder)
        return None if settings is None else cls.read(settings)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "ChatTemplate":
        """The template in these settings, which `settings_of` found."""
        return cls(settings["chat_template"], {key: text for key, text in settings.items() if key.endswith("_token")})

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for the assistant's next message; as `text`."""
        return self.text(messages, prompt=True)

    def text(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False) -> str:
        """The text of a chat, whose messages have a role and a content.

        `prompt`: with what precedes another message of the assistant.

        Raises UserError if the template refuses the messages, or takes too long.
        """

        def render() -> str:
            parts, size = [], 0
            for part in self._template.generate(messages=list(messages), add_generation_prompt=prompt, **self.special):
                parts.append(part)
                size += len(part)
                if size > LONGEST:
                    raise ValueError(f"the chat has more than {LONGEST:,} characters")
            return "".join(parts)

        try:
            return _within(SECONDS, render)
        except Exception as error:  # whatever its code raises
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"the chat template can't write these messages: {said:.300}") from error


def settings_of(folder: Path) -> dict[str, str] | None:
    """The template of a folder, "chat_template", and its special tokens by name; None if it has no template.

    Raises UserError if a file can't be read.
    """
    path, settings = folder / _OWN_FILE, folder / SETTINGS
    config = read_json(settings) if settings.is_file() else {}
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several by name
        source = {str(each.get("name")): each.get("template") for each in source}.get("default")
    return {**_special(config), "chat_template": source} if isinstance(source, str) else None


@functools.cache
def _environment() -> Any:
    import jinja2.compiler
    import jinja2.sandbox

    class Generator(jinja2.compiler.CodeGenerator):
        def visit_Concat(self, node: Any, frame: Any) -> None:  # the operator ~
            self.write("environment.concat((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        concat = staticmethod(_joined)  # type: ignore[assignment]
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "+":
                _spend(sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple)))
            elif operator == "**" or not all(isinstance(value, int | float) for value in (left, right)):
                raise ValueError(f"{operator} is only for numbers, and ** is not supported")
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str) and attr in _MULTIPLIERS:
                return False
            return bool(super().is_safe_attribute(obj, attr, value))

    made = Environment(trim_blocks=True, lstrip_blocks=True)
    for name in _MULTIPLIERS & set(made.filters):  # refused when they are called: other chats may do without
        made.filters[name] = functools.partial(_unsupported, name)
    made.filters["join"] = _join
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _refuse
    return made


_left = threading.local()  # what is left of _TOTAL in a thread of `_within`


def _spend(size: int) -> None:
    """Counts what is put together. Raises ValueError if it is too much."""
    _left.size = getattr(_left, "size", _TOTAL) - size
    if size > LONGEST or _left.size < 0:
        raise ValueError(f"it puts together texts of more than {LONGEST:,} characters")


def _joined(parts: Iterable[Any], between: str = "") -> str:
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    _spend(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise ValueError("join by attribute is not supported; use map(attribute=…) before")
    return _joined(value, str(d))


def _json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    if indent is not None and indent not in range(_INDENT + 1):
        raise ValueError(f"JSON has an indent of 0 to {_INDENT}, not {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _unsupported(name: str, *_: Any, **__: Any) -> None:
    raise ValueError(f"the filter {name} is not supported")


class _TooLong(Exception):
    def __str__(self) -> str:
        return f"it takes more than {SECONDS:g} s"


def _within(seconds: float, render: Any) -> str:
    """The result of `render`, which is interrupted after some seconds. Raises what it raises, or _TooLong."""
    found: list[str] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(render())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    while thread.is_alive():  # raises the exception in the thread, at its next bytecode
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLong))
        thread.join(seconds)
    if errors:
        raise errors[0]
    return found[0]


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json by name; a token is a text or an object with its content."""
    tokens = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    return {key: value["content"] if isinstance(value, dict) else str(value) for key, value in tokens.items()}


def _refuse(message: str) -> None:
    raise ValueError(message)
