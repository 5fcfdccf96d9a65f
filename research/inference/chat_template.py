"""Chats as text: a model's own template turns messages into the prompt that it was trained on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.interop.tensors import read_json

_FILES = ("chat_template.jinja", "tokenizer_config.json")
ROLES = ("system", "user", "assistant")
LONGEST = 10**6  # characters of a prompt


class ChatTemplate:
    """A template in Jinja as transformers saves it, rendered in Jinja's sandbox: it can call no other code."""

    def __init__(self, source: str, special: Mapping[str, str]):
        """`special`: names of special tokens, such as bos_token, and the tokens. Raises UserError if it can't be read."""
        try:
            import jinja2
            import jinja2.sandbox
        except ModuleNotFoundError as error:
            raise UserError("chat templates need jinja2: pip install 'research[chat]'") from error

        self._errors = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template can't be read: {error}") from error
        self._special = dict(special)

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a folder; None if it has none. Raises UserError if it can't be read."""
        path, settings = (folder / name for name in _FILES)
        config = read_json(settings) if settings.is_file() else {}
        source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several by name
            source = {str(each.get("name")): each.get("template") for each in source}.get("default")
        return cls(source, _special(config)) if isinstance(source, str) else None

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for the assistant's next message; messages have a role and a content.

        Raises UserError if the template refuses them.
        """
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True, **self._special)
        except self._errors as error:
            raise UserError(f"the model's chat template refuses the messages: {error}") from error
        if len(text) > LONGEST:
            raise UserError(f"the chat has {len(text)} characters; at most {LONGEST} are read")
        return text


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json by name; a token is a text or an object with its content."""
    tokens = {key: value for key, value in config.items() if key.endswith("_token") and value}
    return {key: value["content"] if isinstance(value, dict) else str(value) for key, value in tokens.items()}


def _refuse(message: str) -> None:
    raise ValueError(message)
