"""Generated instructions with their answers, for fine-tuning a language model without a download.

This project made them from a dozen templates and lists of words; nobody asked these questions, and no model answered
them. A program knows every answer: numbers in words, names in order, words backwards, objects in JSON. They teach a
model a form of answers and show that it learns; they do not make an assistant of it.

A chat is a template filled with values: numbers, nouns, names, cities. Of each kind of value a fifth is held out:
training has none of these, and the chats of validation have no others. So what is measured is whether the model can do
with other values what it was shown, not whether it remembers.
"""

import json
import random
import zlib
from collections.abc import Callable, Sequence

from research.data.examples import Columns
from research.data.sources import instruction_words as words

TRAIN_SIZE = 1600
VALIDATION_SIZE = 200
SEED = 2023

NUMBERS = range(1000)

SYSTEM = "Answer with the result alone."
_SYSTEM_SHARE = 0.25  # of the chats have a system message
_SECOND_SHARE = 0.2  # of the chats have a second question

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
""".split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number from 0 to 999 in words: "three hundred and forty-seven"."""
    hundreds, rest = divmod(number, 100)
    below = _ONES[rest] if rest < 20 else _TENS[rest // 10] + (f"-{_ONES[rest % 10]}" if rest % 10 else "")
    if not hundreds:
        return below
    return f"{_ONES[hundreds]} hundred" + (f" and {below}" if rest else "")


def held_out(value: object) -> bool:
    """Whether only validation has chats about the value, a number or a word: one in five."""
    return zlib.crc32(str(value).encode()) % 5 == 0


class Values:
    """The values that are held out, or the others, drawn at random."""

    def __init__(self, draw: random.Random, *, validation: bool):
        def ours(values: Sequence[object]) -> list[str]:
            return [str(value) for value in values if held_out(value) == validation]

        self._draw = draw
        self._numbers, self._nouns, self._names, self._cities = map(
            ours, (NUMBERS, words.NOUNS, words.NAMES, words.CITIES)
        )

    def number(self) -> int:
        return int(self._draw.choice(self._numbers))

    def nouns(self, low: int, high: int) -> list[str]:
        """Different nouns, from `low` to `high` of them."""
        return self._draw.sample(self._nouns, self._draw.randint(low, high))

    def names(self, low: int, high: int) -> list[str]:
        return self._draw.sample(self._names, self._draw.randint(low, high))

    def city(self) -> str:
        return self._draw.choice(self._cities)


Question = tuple[str, str]  # with its answer


def _to_words(values: Values) -> Question:
    number = values.number()
    return f"Write the number {number} in words.", in_words(number)


def _to_digits(values: Values) -> Question:
    number = values.number()
    return f"Write {in_words(number)} in digits.", str(number)


def _reversed(values: Values) -> Question:
    nouns = values.nouns(2, 4)
    return f"Reverse the order of the words: {' '.join(nouns)}", " ".join(reversed(nouns))


def _sorted(values: Values) -> Question:
    names = values.names(3, 4)
    return f"Sort these names: {', '.join(names)}", ", ".join(sorted(names))


def _longer(values: Values) -> Question:
    one, other = values.nouns(2, 2)
    while len(one) == len(other):
        one, other = values.nouns(2, 2)
    return f"Which word is longer, {one} or {other}?", max(one, other, key=len)


def _capitals(values: Values) -> Question:
    (noun,) = values.nouns(1, 1)
    return f"Write {noun} in capital letters.", noun.upper()


def _spelled(values: Values) -> Question:
    (noun,) = values.nouns(1, 1)
    return f"Spell the word {noun}.", "-".join(noun)


def _counted(values: Values) -> Question:
    nouns = values.nouns(2, 6)
    return f"How many words are these: {' '.join(nouns)}?", in_words(len(nouns)).capitalize()


def _last(values: Values) -> Question:
    nouns = values.nouns(2, 5)
    return f"What is the last of these words: {', '.join(nouns)}?", nouns[-1]


def _person(values: Values) -> Question:
    (name,), city = values.names(1, 1), values.city()
    answer = json.dumps({"name": name, "city": city})
    return f"Answer in JSON with the keys name and city: {name} lives in {city}.", answer


def _order(values: Values) -> Question:
    (name,), (noun,), number = values.names(1, 1), values.nouns(1, 1), values.number()
    answer = json.dumps({"item": noun, "count": number})
    return f"Answer in JSON with the keys item and count: {name} buys {number} of the kind {noun}.", answer


def _listed(values: Values) -> Question:
    nouns = values.nouns(2, 3)
    return f"Make a list of these words: {', '.join(nouns)}", "\n".join(f"- {noun}" for noun in nouns)


QUESTIONS: dict[str, Callable[[Values], Question]] = {
    "to words": _to_words,
    "to digits": _to_digits,
    "reversed": _reversed,
    "sorted": _sorted,
    "longer": _longer,
    "capitals": _capitals,
    "spelled": _spelled,
    "counted": _counted,
    "last": _last,
    "person": _person,
    "order": _order,
    "listed": _listed,
}


def generate(size: int, *, validation: bool, seed: int) -> Columns:
    """`size` different chats, the columns `messages`, in JSON, and `template`: the name of the first question."""
    draw = random.Random(f"{seed} {validation}")
    values, names = Values(draw, validation=validation), list(QUESTIONS)
    chats: dict[str, str] = {}
    while len(chats) < size:
        name = names[len(chats) % len(names)]
        messages = [{"role": "system", "content": SYSTEM}] if draw.random() < _SYSTEM_SHARE else []
        several = [name] if draw.random() >= _SECOND_SHARE else [name, draw.choice(names)]
        for question, answer in (QUESTIONS[each](values) for each in several):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        chats.setdefault(json.dumps(messages), name)
    return {"messages": list(chats), "template": list(chats.values())}


def instructions() -> dict[str, Columns]:
    """Generated instructions with answers that a program knows: 1,600 chats and 200 about values that these lack."""
    return {
        "train": generate(TRAIN_SIZE, validation=False, seed=SEED),
        "validation": generate(VALIDATION_SIZE, validation=True, seed=SEED),
    }
