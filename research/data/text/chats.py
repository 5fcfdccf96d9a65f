"""Chats: rows of whole ones, in which the tokens of the assistant's messages are to be predicted."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm import tqdm

from research.base.errors import UserError
from research.base.paths import expanded
from research.base.ranges import TOKENS, Range
from research.data.cache import ArtifactCache, digest
from research.data.columns import as_text, column, place
from research.data.encoder import ColumnsOf, Encoder, Signature
from research.data.examples import Columns, Ragged, TextExamples
from research.data.text.chat_template import CHATML, CHATML_START, SETTINGS, ChatTemplate, settings_of
from research.data.text.reversible import TOKENIZERS, end_token, token_bytes
from research.data.text.wordpiece import VERSION, read_tokenizer, tokenizer_of

if TYPE_CHECKING:
    import tokenizers

BUILT_IN = "chatml"  # of `data.transform.chat_template`; any other value is the path of a folder
ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)

Chat = list[dict[str, Any]]  # messages, each with a role and a content

# Part of the cache keys: raise it when the tokens or targets of a chat change.
_VERSION = f"1, {VERSION}"
_PIECE = 1024  # chats that are tokenized together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chats:
    """Chats as tokens, of which those of the assistant's messages, with the one that ends each, are to be predicted.

    A chat is tokenized as transformers does it: the template writes all of it, and the tokenizer reads that text, whose
    special tokens it knows.

    Attributes:
      inputs: a column of chats, each a list of messages, in JSON or not: {"role": "user", "content": "…"}; or two
        columns of texts, a prompt and its answer.
      tokenizer: bpe, byte, character, learned from `train`; or a tokenizer.json.
      vocab_size: the maximum size of a learned vocabulary.
      chat_template: chatml, with `end_of_text` after each message; or a folder with a template, chat_template.jinja or
        tokenizer_config.json.
      end_of_text: the token at which a text ends; "": none.
      max_length: the most tokens of a chat; a longer one is truncated at its end.
      row_length: tokens per row, at least max_length.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": Range(2, 2**24, integer=True),
        "max_length": TOKENS,
        "row_length": TOKENS,
    }

    inputs: tuple[str, ...]
    tokenizer: str
    vocab_size: int
    chat_template: str
    end_of_text: str
    max_length: int
    row_length: int

    def __post_init__(self) -> None:
        if len(self.inputs) not in (1, 2):
            raise UserError(
                f"data.transform.inputs is {tuple(self.inputs)}; it must name one column of chats, or two of prompts "
                "and answers"
            )
        if self.max_length > self.row_length:
            raise UserError(
                f"data.transform.max_length is {self.max_length}; it must be at most row_length, {self.row_length}"
            )

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "ChatEncoder":
        options = dataclasses.replace(self, inputs=tuple(self.inputs))
        definition = options.learn_tokenizer(splits, cache)
        return ChatEncoder(options, definition, cache.text(SETTINGS, options.template_settings))

    def template_settings(self) -> str:
        """The template and its special tokens, in the JSON of tokenizer_config.json."""
        if self.chat_template == BUILT_IN:
            found: Mapping[str, str] | None = {"eos_token": self.end_of_text, "chat_template": CHATML}
        else:
            folder = expanded(self.chat_template)
            found = settings_of(folder) if folder.is_dir() else None
        if found is None:
            raise UserError(
                f"data.transform.chat_template={self.chat_template!r} is not a folder with a chat template "
                f"(tokenizer_config.json, chat_template.jinja); {BUILT_IN!r} is built in"
            )
        return json.dumps(found, ensure_ascii=False, indent=2)

    def learn_tokenizer(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> str:
        """The given tokenizer.json, or one made from the messages of `train`."""
        special = tuple(token for token in (CHATML_START, self.end_of_text) if token)

        def learn() -> str:
            if self.tokenizer not in TOKENIZERS:
                return read_tokenizer(self.tokenizer, lowercase=False).to_str()
            chats = self.chats(ColumnsOf(splits, "train"), "train")
            texts = (f"{message['role']}\n{message['content']}" for chat in chats for message in chat)
            return TOKENIZERS[self.tokenizer](texts, vocab_size=self.vocab_size, special=special).to_str()

        key = (_VERSION, self.tokenizer, self.inputs, self.vocab_size, special, "chats")
        return cache.text("tokenizer.json", learn, key=key if self.tokenizer in TOKENIZERS else None)

    def chats(self, columns: Columns, split: str) -> Iterator[Chat]:
        """The chats of a split. Raises UserError for a value that is none, with its row."""
        parts = [column(columns, name, split) for name in self.inputs]
        for index, values in enumerate(zip(*parts, strict=True)):
            try:
                yield _pair(*values) if len(values) == 2 else _chat(values[0])
            except ValueError as error:
                where = place(columns, split, index)
                raise UserError(f"{where}: {' and '.join(map(repr, self.inputs))}: {error}") from error


def _pair(prompt: Any, answer: Any) -> Chat:
    return [{"role": "user", "content": as_text(prompt)}, {"role": ASSISTANT, "content": as_text(answer)}]


def _chat(value: Any) -> Chat:
    """The chat that a value, or its JSON, is. Raises ValueError, with a message, for anything else."""
    if isinstance(value, str | bytes):
        if not value.strip():
            raise ValueError("there is no value; it must be a list of messages")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{as_text(value)!r:.40} is not valid JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.40} is not a list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} is not an object with a role and a content that is text")
        if message.get("role") not in ROLES:
            raise ValueError(f"message {number} has the role {message.get('role')!r}; known: {', '.join(ROLES)}")
    if all(message["role"] != ASSISTANT for message in value):
        raise ValueError(f"no message has the role {ASSISTANT!r}, whose messages are what is learned")
    return value


def written(template: ChatTemplate, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
    """The text of a chat, and where in it each answer of the assistant begins and ends.

    An answer is what the template adds to the prompt for it. Raises ValueError, with a message, if the template does
    not write it as a continuation of that prompt, or writes it otherwise with the messages that follow.
    """
    text, spans = template.text(chat), []
    for number, message in enumerate(chat):
        if message["role"] != ASSISTANT:
            continue
        prompt = template.text(chat[:number], prompt=True)
        whole = text if number == len(chat) - 1 else template.text(chat[: number + 1])
        if not (len(prompt) < len(whole) and whole.startswith(prompt) and text.startswith(whole)):
            raise ValueError(
                f"the chat template does not write message {number} as a continuation of the prompt for it, the same "
                "whatever follows: its tokens can't be told from the others"
            )
        spans.append((len(prompt), len(whole)))
    return text, spans


def targets(tokens: np.ndarray, offsets: np.ndarray, spans: Sequence[tuple[int, int]], ends: np.ndarray) -> np.ndarray:
    """The token to predict after each of a chat's: int32 [T], −1 where it is not of an answer.

    Args:
      tokens: int32 [T].
      offsets: int [T, 2], where in the text each begins and ends.
      spans: where each answer begins and ends. A token that is only in part of an answer counts as such.
      ends: the tokens that end an answer. What the template writes after it, such as a line break, is not predicted.
    """
    answer = np.zeros(len(tokens) + 1, bool)
    for start, stop in spans:
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < stop))
        last = np.flatnonzero(np.isin(tokens[inside], ends))
        answer[inside[: last[-1] + 1] if len(last) else inside] = True
    return np.where(answer[1:], np.append(tokens[1:], -1), -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class ChatEncoder(Encoder):
    """Chats as tokens; their labels are the numbers of tokens to predict.

    Attributes:
      definition: tokenizer.json.
      settings: the template and its special tokens, in the JSON of tokenizer_config.json.
    """

    options: Chats
    definition: str
    settings: str

    def __post_init__(self) -> None:
        _ = self.ends  # refuses a token that the tokenizer lacks

    @property
    def signature(self) -> Signature:
        limits = {"max_length": self.options.max_length, "unit": "tokens"}
        return Signature("documents", self.options.inputs, None, limits)

    @functools.cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer. Unlike that of documents it knows the special tokens in a text: the template writes them."""
        return tokenizer_of(self.definition)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.read(json.loads(self.settings))

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text: that of the options, and the template's, which in some models is another one."""
        end = end_token(self.tokenizer, self.options.end_of_text)
        own = self.tokenizer.token_to_id(json.loads(self.settings).get("eos_token") or "")
        return frozenset(token for token in (end, own) if token is not None)

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> TextExamples:
        options = self.options
        made_by = digest(self.definition, self.settings)
        key = (_VERSION, made_by, options.max_length, options.inputs, options.end_of_text, split)
        arrays = cache.arrays("chats", lambda: self._tokenized(columns, split), key=key)
        tokens = Ragged(arrays["tokens"], arrays["offsets"])
        return TextExamples(
            tokens=tokens,
            type_ids=Ragged(np.broadcast_to(np.int32(0), tokens.values.shape), tokens.offsets),
            labels=arrays["counts"] if labels else None,
            pad_to=(options.row_length,),
            row_length=options.row_length,
            full_lengths=arrays["full_lengths"],
            targets=Ragged(arrays["targets"], arrays["offsets"]),
            token_bytes=token_bytes(self.definition),
        )

    def _tokenized(self, columns: Columns, split: str) -> dict[str, np.ndarray]:
        most, ends = self.options.max_length, np.array(sorted(self.ends), np.int32)
        chats = enumerate(self.options.chats(columns, split))
        sequences: list[np.ndarray] = []
        following: list[np.ndarray] = []
        lengths: list[int] = []
        with tqdm(desc=f"tokenizing {split}", unit="chat", delay=1, leave=False, disable=None) as bar:
            while piece := [self._written(*chat, columns, split) for chat in itertools.islice(chats, _PIECE)]:
                encodings = self.tokenizer.encode_batch([text for text, _ in piece], add_special_tokens=False)
                for encoding, (_, spans) in zip(encodings, piece, strict=True):
                    tokens = np.array(encoding.ids, np.int32)
                    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                    sequences.append(tokens[:most])
                    following.append(targets(tokens, offsets, spans, ends)[:most])
                    lengths.append(len(tokens))
                bar.update(len(piece))
        kept = [len(sequence) for sequence in sequences]
        return {
            "tokens": np.concatenate([np.zeros(0, np.int32), *sequences]),
            "targets": np.concatenate([np.zeros(0, np.int32), *following]),
            "offsets": np.cumsum([0, *kept], dtype=np.int64),
            "full_lengths": np.array(lengths, np.int32),
            "counts": np.array([np.count_nonzero(found >= 0) for found in following], np.int32),
        }

    def _written(self, index: int, chat: Chat, columns: Columns, split: str) -> tuple[str, list[tuple[int, int]]]:
        try:
            return written(self.template, chat)
        except (UserError, ValueError) as error:
            raise UserError(f"{place(columns, split, index)}: {error}") from error
