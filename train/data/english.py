"""Open English to hear and to read aloud: real sentences, everyday speech from a small grammar, and lists of words.

Every text belongs to one split, which a hash of its letters decides, so that no test text can be met in training.
Real sentences are WordNet's examples; `text/README.md` says how they were chosen and under which licence they come.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal
from zlib import crc32

from train.data.utterance import spoken_letters

Split = Literal["train", "test"]
TEXT = Path(__file__).with_name("text")
REAL_SHARE = 0.65
MOST_WORDS = 16  # of a sentence, which has at least three
LONGEST_LIST = 8
LETTERS = "BCDEFGHJKLMNOPQRSTUVWXYZ"  # without A and I, which are words

# What agrees with a subject, by the pronoun that stands for it.
_FORMS = (
    *("they", "them", "their", "themselves", "is", "isn't", "was", "wasn't"),
    *("has", "hasn't", "does", "doesn't", "'s", "'ve"),
)
_AGREEMENT = {
    pronoun: dict(zip(_FORMS, forms.split("|"))) | {"'ll": "'ll", "'d": "'d"}
    for pronoun, forms in {
        "I": "I|me|my|myself|am|am not|was|wasn't|have|haven't|do|don't|'m|'ve",
        "you": "you|you|your|yourself|are|aren't|were|weren't|have|haven't|do|don't|'re|'ve",
        "we": "we|us|our|ourselves|are|aren't|were|weren't|have|haven't|do|don't|'re|'ve",
        "he": "he|him|his|himself|is|isn't|was|wasn't|has|hasn't|does|doesn't|'s|'s",
        "she": "she|her|her|herself|is|isn't|was|wasn't|has|hasn't|does|doesn't|'s|'s",
        "they": "they|them|their|themselves|are|aren't|were|weren't|have|haven't|do|don't|'re|'ve",
    }.items()
}
_SUBJECTS = ("I", "I", "you", "we", "he", "he", "she", "she", "they", "someone")
_NOT_TO_ONESELF = {"I": {"me", "us"}, "we": {"me", "us"}, "you": {"your brother", "your sister"}}
_MAY_REPEAT = {"digit", "doing", "number", "hour"}  # what else a sentence drew is not drawn again


def sentence(split: Split, seed: int, index: int) -> str:
    """An English sentence of 3 to 16 words in spoken form, two in three real; the same for the same arguments."""
    rng, real = random.Random(f"sentence/{split}/{seed}/{index}"), all_sentences(split)
    if rng.random() < REAL_SHARE:
        return rng.choice(real)
    return _draw(lambda: _everyday(rng), split, MOST_WORDS)


def word_list(split: Split, seed: int, index: int) -> str:
    """One to eight unconnected words, numbers and now and then letters: "orange basket window", "three, one, four".

    Lists keep to their split as sentences do; a single word may occur in both.
    """
    rng = random.Random(f"words/{split}/{seed}/{index}")
    count = rng.randint(1, LONGEST_LIST)
    words, common, grammar = _words(), _common_words(), _grammar()

    def draw() -> str:
        style, comma = rng.random(), rng.choice((" ", ", "))
        if style < 0.12:
            return comma.join(rng.choice(grammar["digit"]) for _ in range(count))
        if style < 0.15:
            return comma.join(rng.choice(LETTERS) for _ in range(count))
        sources = rng.choices((words, common, grammar["number"], grammar["digit"]), (60, 30, 4, 6), k=count)
        return comma.join(rng.choice(source) for source in sources)

    return _draw(draw, split, LONGEST_LIST)


def vocabulary() -> frozenset[str]:
    """Every word, in lower case, that the training sentences can contain."""
    return frozenset(_words())


@cache
def all_sentences(split: Split) -> tuple[str, ...]:
    """The real sentences of a split, in the order of the file."""
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}: choose train or test")
    lines = (TEXT / "sentences.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if _split_of(spoken_letters(line)) == split)


def _split_of(letters: str) -> Split:
    return "test" if crc32(letters.encode()) % 10 == 0 else "train"


def _draw(draw: Callable[[], str], split: Split, most_words: int) -> str:
    """The first text drawn that is of the split, or a single word, and is not too long."""
    while True:
        text = draw()
        letters = spoken_letters(text)
        if (_split_of(letters) == split or " " not in letters) and letters.count(" ") < most_words:
            return text


@cache
def _grammar() -> dict[str, tuple[str, ...]]:
    """`everyday.txt`: the entries of each section."""
    sections: dict[str, list[str]] = {}
    for line in (TEXT / "everyday.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            entries = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            entries += line.split(" / ")
    return {name: tuple(entries) for name, entries in sections.items()}


def _everyday(rng: random.Random) -> str:
    grammar = _grammar()
    pattern = rng.choice(grammar["pattern"])
    subject, who, used = "", "you", set()
    if "{S}" in pattern:
        who = rng.choice(_SUBJECTS)
        subject = rng.choice(grammar[who])
        used.add(subject)
        who = rng.choice(("he", "she")) if who == "someone" else who
    elif "{P}" in pattern:
        subject = who = rng.choice(tuple(_AGREEMENT))

    def fill(slot: re.Match[str]) -> str:
        nonlocal who
        name, mark, form = re.fullmatch(r"([@'\w]+)([.+]?)(\w*)", slot[1]).groups()
        if name in ("S", "P"):
            return subject
        if name.startswith("@"):
            who = name[1:]
            return ""
        if name in _AGREEMENT[who]:
            return _AGREEMENT[who][name]
        avoid = _NOT_TO_ONESELF.get(who, set()) | (set() if name in _MAY_REPEAT else used)
        entry = rng.choice([entry for entry in grammar[name] if entry not in avoid])
        used.add(entry)
        if mark == "+":
            entry = _plural(entry)
        elif mark == ".":
            entry = _in_form(entry, ("now" if who in ("he", "she") else "") if form == "now" else form)
        return re.sub(r"\{(.*?)\}", fill, entry)

    text = re.sub(r"\{(.*?)\}", fill, pattern)
    text = re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))(?!one\b|euro)", r"\1n ", text)
    return text[0].upper() + text[1:]


@cache
def _irregular(section: str) -> dict[str, list[str]]:
    return {forms[0]: forms[1:] for forms in map(str.split, _grammar()[section])}


def _plural(noun: str) -> str:
    """`noun` may be a phrase: its last word, or the one before "of", is put in the plural."""
    head, of, rest = noun.partition(" of ")
    words = head.split()
    irregular = _irregular("plural").get(words[-1])
    return " ".join([*words[:-1], irregular[0] if irregular else _with_s(words[-1])]) + of + rest


def _with_s(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|sh|ch|x|z|[^aeiou]o)$", word) else "s")


def _in_form(phrase: str, form: str) -> str:
    """`phrase` with its first word, a verb, as "now" (he goes), "past", "part"(iciple), "ing" or "", the bare verb."""
    verb, space, rest = phrase.partition(" ")
    doubles = verb == "forget" or re.fullmatch(r"(qu|[^aeiou])*[aeiou][^aeiouwxy]", verb)
    stem = verb + verb[-1] if doubles else verb
    irregular = _irregular("irregular").get(verb)
    if form == "now":
        verb = "has" if verb == "have" else _with_s(verb)
    elif form == "ing":
        verb = re.sub(r"(?<=[^e])e$", "", stem) + "ing"
    elif form and irregular:
        verb = irregular[0 if form == "past" else 1]
    elif form:
        verb = re.sub(r"(?<=[^aeiou])y$", "i", stem).removesuffix("e") + "ed"
    return verb + space + rest


@cache
def _common_words() -> tuple[str, ...]:
    """The words of the everyday grammar, as the patterns can inflect and join them."""
    grammar = {name: entries for name, entries in _grammar().items() if name not in ("irregular", "plural")}
    texts = [entry for entries in grammar.values() for entry in entries]
    slots = set(re.findall(r"\{(\w+)([.+])(\w*)\}", "\n".join(texts)))
    spoken = [spoken_letters(re.sub(r"\{.*?\}(\w|')*", " ", text)) for text in texts]
    for name, mark, form in slots:
        inflect = _plural if mark == "+" else lambda entry, form=form: _in_form(entry, form)
        spoken += [spoken_letters(re.sub(r"\{.*?\}(\w|')*", " ", inflect(entry))) for entry in grammar[name]]
    for name, ending in set(re.findall(r"\{(\w+)\}((?:\w|')+)", "\n".join(texts))):
        spoken += [spoken_letters(entry + ending) for entry in grammar.get(name, ())]
    for pronoun, forms in _AGREEMENT.items():
        spoken += [spoken_letters(pronoun + form if form[0] == "'" else form) for form in forms.values()]
    return tuple(sorted({word for text in spoken for word in text.split()} | {"an"}))


@cache
def _words() -> tuple[str, ...]:
    real = {word for text in all_sentences("train") for word in spoken_letters(text).split()}
    return tuple(sorted(real | set(_common_words())))
