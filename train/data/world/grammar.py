"""The core of nano's world: families of paraphrases, the values they take, and what is kept out of training.

A family is a list of questions that mean the same, one form of answer, and a table (or a draw) of values:

    Family("capitals", ("what is the capital of {country}?", ...), "the capital of {country} is {capital}.", values=...)

Texts are written in lower case where a sentence may have something before it; the first letter is made large in the
end. `{animal:a}` gives "a dog", "an owl". A fifth of each family's questions and a fifth of its values are held out:
chosen by a hash of their names, so they stay the same on every machine and however often the tables grow.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal

HELD_OUT = 0.2
Slots = Mapping[str, str]
Kind = Literal["train", "template", "value"]

PREFIXES = (
    "hey MoST,", "MoST,", "hi MoST,", "hello,", "okay,", "okay MoST,", "so,", "well,", "excuse me,", "now,", "hey,",
    "quick question:", "I have a question:", "here is a question:", "one more:", "next question:", "let's see,", "um,",
)  # fmt: skip
SUFFIXES = {"?": ("please", "please", "MoST", "do you know"), ".": ("please", "please", "MoST", "thank you", "thanks")}
POLITE = re.compile(r"please|thank|you|,|:")  # in a question that takes none of them


@dataclass(frozen=True)
class Exchange:
    """One question with its answer, in spoken form: words only, light punctuation. `history` are the (user, assistant)
    turns it needs; `held_out` says why it is in the test split: "template", "value", or "" in training."""

    topic: str
    template: str
    question: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()
    held_out: str = ""


@dataclass(frozen=True, eq=False)
class Family:
    """Questions that mean the same, with one form of answer.

    `values`: a table of slots, or a function that draws them. `value`: what one value is called, as a format of the
    slots, where a fifth of the values shall be held out. `by_question`: a value is held out of some of the questions
    only and trained with the others; for facts, which nobody can work out who never met them. `avoid`: a value (as a
    format) which this family leaves alone when another family holds it out. `carriers`: "hey MoST," and the like may
    go around the question. `hold_questions`: False where every wording has to be trained.
    """

    topic: str
    questions: tuple[str, ...]
    answer: str
    values: Sequence[Slots] | Callable[[Random], Slots] = ({},)
    value: str = ""
    by_question: bool = False
    avoid: str = ""
    history: tuple[tuple[str, str], ...] = ()
    carriers: bool = True
    hold_questions: bool = True

    @cached_property
    def held_questions(self) -> frozenset[str]:
        """The fifth of the questions that the test alone asks, rounded; never the first, which is the plainest."""
        count = round(HELD_OUT * len(self.questions)) if self.hold_questions else 0
        ranked = sorted(self.questions[1:], key=lambda question: hash_share(self.template(question)))
        return frozenset(ranked[:count])

    def template(self, question: str) -> str:
        """The stable name of one question: "capitals/what-is-the-capital-of-country"."""
        words = re.sub(r"{(\w+):a}", r"a \1", question).replace("'", "").lower()
        return f"{self.topic}/{'-'.join(re.findall(r'[a-z]+', words))}"

    def kinds(self) -> tuple[Kind, ...]:
        """Why this family's items may be in the test split."""
        kinds: dict[Kind, bool] = {"template": bool(self.held_questions), "value": bool(self.value)}
        return tuple(kind for kind, offered in kinds.items() if offered)

    def draw(self, rng: Random, kind: Kind) -> tuple[str, Slots]:
        """A question, not filled in, and its slots, of the asked kind."""
        if not callable(self.values):
            return rng.choice(self.cells[kind])
        questions = [
            question for question in self.questions if (question in self.held_questions) == (kind == "template")
        ]
        for _ in range(1000):
            question, slots = rng.choice(questions), self.values(rng)
            if self.kind(question, slots) == kind:
                return question, slots
        raise ValueError(f"the family of {self.template(self.questions[0])!r} drew no {kind!r} item: widen its values")

    @cached_property
    def cells(self) -> dict[Kind, list[tuple[str, Slots]]]:
        """Every (question, slots) of a family with a table, by kind."""
        cells: dict[Kind, list[tuple[str, Slots]]] = {"train": [], "template": [], "value": []}
        for question in self.questions:
            for slots in self.values:
                if kind := self.kind(question, slots):
                    cells[kind].append((question, slots))
        return cells

    def kind(self, question: str, slots: Slots) -> Kind | None:
        """Where a question with these slots belongs; None: nowhere, for it is new in two ways at once."""
        if self.avoid and held_out(fill(self.avoid, slots)):
            return None
        held_question = question in self.held_questions
        if self.value and not (held_question and self.by_question):
            name = fill(self.value, slots)
            if held_out(f"{self.template(question)}|{name}" if self.by_question else name):
                return None if held_question else "value"
        return "template" if held_question else "train"

    def exchange(self, rng: Random, kind: Kind) -> Exchange:
        question, slots = self.draw(rng, kind)
        text = fill(question, slots)
        return Exchange(
            topic=self.topic,
            template=self.template(question),
            question=sentence(carried(text, rng) if self.carriers else text),
            answer=sentence(fill(self.answer, slots)),
            history=tuple((sentence(fill(user, slots)), sentence(fill(most, slots))) for user, most in self.history),
            held_out="" if kind == "train" else kind,
        )


def hash_share(name: str) -> float:
    """A number in [0, 1) that belongs to a name for ever (Python's own hash changes with every process)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def held_out(name: str) -> bool:
    return hash_share(name) < HELD_OUT


def with_article(noun: str) -> str:
    """ "a dog", "an owl", "an eight ounce latte": by sound, which for this world's words the first letter tells."""
    vowel = noun[0].lower() in "aeio" or noun.startswith(("hour", "umbrella", "uncle"))
    return f"{'an' if vowel else 'a'} {noun}"


class _Filler(string.Formatter):
    def format_field(self, value: Any, spec: str) -> str:
        return with_article(value) if spec == "a" else super().format_field(value, spec)


_FILLER = _Filler()


def fill(text: str, slots: Slots) -> str:
    return _FILLER.vformat(text, (), slots)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def carried(question: str, rng: Random) -> str:
    """The question as people say it: about half of the time with a few words before or after it."""
    body, end = question[:-1], question[-1]
    if rng.random() < 0.25 and not POLITE.search(body):
        body = f"{body}, {rng.choice(SUFFIXES[end])}"
    if rng.random() < 0.4 and "MoST" not in body:
        body = f"{rng.choice(PREFIXES)} {body}"
    return body + end
