"""A generated corpus of film opinions whose labels depend on word order, for training without a download.

Every sentence is composed of clauses with a known polarity. A clause may negate its adjective, doubly negate it, or
negate a word other than the decisive one; a connective decides which of two clauses, or which of two phrases, prevails.
Most sentences contain both praise and blame, so their words alone say little about the label.

A template is a combination (connective, left clause, right clause). Every fifth template is held out for validation:
training sees its parts, but never their combination.
"""

import dataclasses
import random
from collections.abc import Callable

from research.data.examples import Columns
from research.data.sources import sentiment_words as words

TRAIN_SIZE = 60_000
VALIDATION_SIZE = 2_000
SEED = 2018

SENTIMENTS = ("negative", "positive")  # the labels 0 and 1

# Longer sentences are discarded: short rows make training fast.
MAX_WORDS = 24

# How often the parts of a two-part sentence disagree. If they agree, counting words suffices.
DISAGREEMENT = 0.65


@dataclasses.dataclass
class Writer:
    """Fills slots at random. Polarities are +1 (praise) and −1 (blame)."""

    random: random.Random

    def adjective(self, polarity: int) -> str:
        return self.random.choice(words.POSITIVE if polarity > 0 else words.NEGATIVE)

    def verb(self, polarity: int) -> str:
        return self.random.choice(words.POSITIVE_VERBS if polarity > 0 else words.NEGATIVE_VERBS)

    def thing(self) -> str:
        name = self.random.choice(words.ASPECTS)
        if self.random.random() < 0.1:
            return f"{self.random.choice(words.NAMES)} 's {name}"
        if self.random.random() < 0.1:
            return f"the {self.random.choice(words.WORKS)} 's {name}"
        return f"the {name}"

    def work(self) -> str:
        return f"{self.random.choice(['the', 'this'])} {self.random.choice(words.WORKS)}"

    def phrase(self, polarity: int) -> str:
        """An adjective with, two times in five, an intensifier."""
        adjective = self.adjective(polarity)
        return f"{self.random.choice(words.STRONG)} {adjective}" if self.random.random() < 0.4 else adjective

    def noun(self, polarity: int) -> str:
        """A thing described by an adjective: "the dull script"."""
        return f"the {self.phrase(polarity)} {self.random.choice(words.ASPECTS)}"


# Clauses: polarity p -> text whose meaning has polarity p.
Clause = Callable[[Writer, int], str]

PLAIN: dict[str, Clause] = {
    "is": lambda w, p: f"{w.thing()} is {w.phrase(p)}",
    "feels": lambda w, p: f"{w.thing()} feels {w.phrase(p)} {w.random.choice(words.NEUTRAL_ADVERBS)}",
    "found": lambda w, p: f"i found {w.thing()} {w.phrase(p)}",
    "verb": lambda w, p: f"{w.thing()} {w.verb(p)}",
    "turns": lambda w, p: f"{w.thing()} turns out to be {w.phrase(p)}",
    "name": lambda w, p: f"{w.random.choice(words.NAMES)} keeps {w.thing()} {w.phrase(p)}",
}
CLAUSES: dict[str, Clause] = {
    **PLAIN,
    # Negated, near and far.
    "is not": lambda w, p: f"{w.thing()} is not {w.phrase(-p)}",
    "never": lambda w, p: f"{w.thing()} is never {w.phrase(-p)}",
    "nothing": lambda w, p: f"nothing about {w.thing()} is {w.phrase(-p)}",
    "anything but": lambda w, p: f"{w.thing()} is anything but {w.phrase(-p)}",
    "would not call": lambda w, p: f"i would not call {w.thing()} {w.phrase(-p)}",
    "hardly": lambda w, p: f"hardly a moment of {w.thing()} is {w.phrase(-p)}",
    "fails": lambda w, p: f"{w.thing()} refuses to be {w.phrase(-p)}",
    # Doubly negated.
    "not not": lambda w, p: f"nobody could say that {w.thing()} is not {w.phrase(p)}",
    "untrue": lambda w, p: f"it is not true that {w.thing()} is never {w.phrase(p)}",
    "never less": lambda w, p: f"{w.thing()} is never less than {w.phrase(p)}",
    # The negation applies to one of two words.
    "this not that": lambda w, p: f"{w.thing()} is {w.phrase(p)} , not {w.phrase(-p)}",
    "not that but this": lambda w, p: f"{w.thing()} is not {w.phrase(-p)} but {w.phrase(p)}",
}

# Connectives of two clauses: which side prevails, and how they are joined.
JOINS: dict[str, tuple[str, str]] = {
    "but": ("right", "{left} , but {right}"),
    "yet": ("right", "{left} , yet {right}"),
    "although": ("right", "although {left} , {right}"),
    "even though": ("right", "even though {left} , {right}"),
    "granted": ("right", "granted , {left} ; in the end {right}"),
    "still": ("right", "{left} ; all the same , {right}"),
    "never mind": ("left", "{left} , never mind that {right}"),
    "even if": ("left", "{left} , even if {right}"),
    "postponed although": ("left", "{left} , although {right}"),
    "outweighs": ("left", "that {left} counts for more than that {right}"),
}

# Whole sentences around two phrases: polarity p, the other side q.
PAIRS: dict[str, Callable[[Writer, int, int], str]] = {
    "phrase outweighs": lambda w, p, q: f"{w.noun(p)} outweighs {w.noun(q)}",
    "outweighed": lambda w, p, q: f"{w.noun(q)} is outweighed by {w.noun(p)}",
    "makes up": lambda w, p, q: f"{w.noun(p)} more than makes up for {w.noun(q)}",
    "cannot make up": lambda w, p, q: f"{w.noun(q)} cannot make up for {w.noun(p)}",
    "buried": lambda w, p, q: f"{w.noun(q)} is buried under {w.noun(p)}",
    "eclipses": lambda w, p, q: f"{w.noun(p)} eclipses {w.noun(q)}",
    "more than": lambda w, p, q: f"{w.work()} is more {w.adjective(p)} than {w.adjective(q)}",
    "less than": lambda w, p, q: f"{w.work()} is less {w.adjective(q)} than {w.adjective(p)}",
    "weak strong": lambda w, p, q: (
        f"{w.work()} is {w.random.choice(words.WEAK)} {w.adjective(q)} "
        f"and {w.random.choice(words.STRONG)} {w.adjective(p)}"
    ),
    "strong weak": lambda w, p, q: (
        f"{w.work()} is {w.random.choice(words.STRONG)} {w.adjective(p)} "
        f"and {w.random.choice(words.WEAK)} {w.adjective(q)}"
    ),
}

# How often each kind of sentence is generated. The plain ones (no negation) teach the polarity of words and the effect
# of a connective.
WEIGHTS = {"plain": 10, "negated": 4, "pair": 4, "plain join": 4, "join": 6}

# Frames around a sentence that do not change its label.
FRAMES: dict[str, Callable[[Writer, str], str]] = {
    "bare": lambda w, s: f"{s} .",
    "opener": lambda w, s: f"{w.random.choice(words.OPENERS)} , {s} .",
    "closer": lambda w, s: f"{s} , {w.random.choice(words.OPENERS)} .",
    "critic": lambda w, s: f"as {w.random.choice(words.NAMES)} writes , {s} .",
    "agree": lambda w, s: f"we all agree : {s} .",
}

Template = tuple[str, ...]


def templates() -> list[Template]:
    """All templates: (frame, clause), (frame, pair), and (join, left clause, right clause)."""
    return (
        [(frame, clause) for frame in FRAMES for clause in CLAUSES]
        + [(frame, pair) for frame in FRAMES for pair in PAIRS]
        + [(join, left, right) for join in JOINS for left in CLAUSES for right in CLAUSES]
    )


def kind_of(template: Template) -> str:
    """The kind of a template, as in WEIGHTS."""
    if len(template) == 3:
        return "plain join" if template[1] in PLAIN and template[2] in PLAIN else "join"
    if template[1] in PAIRS:
        return "pair"
    return "plain" if template[1] in PLAIN else "negated"


def held_out(template: Template) -> bool:
    """Whether only validation uses the template: one in five, spread evenly over all parts."""
    position = {name: i for table in (FRAMES, CLAUSES, PAIRS, JOINS) for i, name in enumerate(table)}
    return sum((2 * place + 1) * position[name] for place, name in enumerate(template)) % 5 == 0


def write(template: Template, polarity: int, writer: Writer) -> str:
    """Writes a sentence from the template whose opinion is `polarity`."""
    other = -polarity if writer.random.random() < DISAGREEMENT else polarity
    if len(template) == 3:
        join, left, right = template
        prevails, text = JOINS[join]
        outcomes = (polarity, other) if prevails == "left" else (other, polarity)
        return text.format(left=CLAUSES[left](writer, outcomes[0]), right=CLAUSES[right](writer, outcomes[1])) + " ."
    frame, core = template
    inner = CLAUSES[core](writer, polarity) if core in CLAUSES else PAIRS[core](writer, polarity, other)
    return FRAMES[frame](writer, inner)


def generate(size: int, *, validation: bool, seed: int) -> Columns:
    """Generates `size` sentences with labels 0 (blame) and 1 (praise): columns `sentence`, `label`, `template`."""
    rng = random.Random(f"{seed} {validation}")
    writer = Writer(rng)
    kinds: dict[str, list[Template]] = {kind: [] for kind in WEIGHTS}
    for template in templates():
        if held_out(template) == validation:
            kinds[kind_of(template)].append(template)
    sentences: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    while len(sentences) < size:
        (kind,) = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
        template = rng.choice(kinds[kind])
        label = rng.randrange(2)
        sentence = write(template, 2 * label - 1, writer)
        if len(sentence.split()) <= MAX_WORDS:
            sentences.append(sentence)
            labels.append(label)
            names.append(" | ".join(template))
    return {"sentence": sentences, "label": labels, "template": names}


def sentiment() -> dict[str, Columns]:
    """The corpus: 60,000 training and 2,000 validation sentences, always the same."""
    return {
        "train": generate(TRAIN_SIZE, validation=False, seed=SEED),
        "validation": generate(VALIDATION_SIZE, validation=True, seed=SEED),
    }
