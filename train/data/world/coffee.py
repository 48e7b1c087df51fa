"""Coffee orders: the grammar of the barista recordings, how an order is confirmed, and nano's polite ways to ask.

The grammar: one of OPENINGS, "a" or "an", then size, roast and shots in any order (each may be missing), the drink,
and "with" milk, sugar, or both in either order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from random import Random

from train.data.world.grammar import Family, Slots, with_article

OPENINGS = (
    "brew", "can I get", "can I have", "I want", "get me", "give me", "I'd like", "make me", "may I have",
)  # fmt: skip
SIZES = ("small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce", "twenty ounce")
ROASTS = ("light roast", "medium roast", "dark roast")
SHOTS = ("single shot", "double shot", "triple shot")
DRINKS = (
    "americano", "cappuccino", "espresso", "iced mocha", "latte", "mocha",
    "coffee", "drip coffee", "house coffee", "iced coffee",
)  # fmt: skip
QUANTITIES = ("", "a little bit of", "a bit of", "some", "a lot of", "lots of")
MILKS = ("milk", "skim milk", "whole milk", "soy milk", "almond milk", "cream")
SUGARS = ("sugar", "brown sugar", "sweetener")
MILK_AMOUNTS = tuple(f"{quantity} {milk}".strip() for quantity in QUANTITIES for milk in MILKS)
SUGAR_AMOUNTS = tuple(f"{quantity} {sugar}".strip() for quantity in QUANTITIES for sugar in SUGARS)


@dataclass(frozen=True)
class Order:
    """One order, every slot as it is spoken ("a bit of soy milk"); None where the customer said nothing of it."""

    size: str | None
    roast: str | None
    number_of_shots: str | None
    drink: str
    milk: str | None
    sugar: str | None


def confirmation(order: Order) -> str:
    """What nano says to an order: "One large latte with soy milk and sugar, coming up." """
    return f"One {description(order)}, coming up."


def description(order: Order) -> str:
    """The order in its plainest form: size, roast, shots, drink, milk, sugar."""
    return next(_descriptions(order))


def order_phrases(order: Order) -> Iterator[str]:
    """Every sentence of the grammar that has just these slots; both articles, for people do read "a americano"."""
    for words in _descriptions(order):
        right = with_article(words).split()[0]
        for article in (right, "a" if right == "an" else "an"):
            for opening in OPENINGS:
                yield f"{opening} {article} {words}"


def _descriptions(order: Order) -> Iterator[str]:
    before = [words for words in (order.size, order.roast, order.number_of_shots) if words]
    after = [words for words in (order.milk, order.sugar) if words]
    for front in permutations(before):
        for back in permutations(after):
            yield " ".join((*front, order.drink)) + (f" with {' and '.join(back)}" if back else "")


def random_order(rng: Random) -> Order:
    """An order as the recordings have them: two or three slots besides the drink on average."""

    def perhaps(words: tuple[str, ...], share: float) -> str | None:
        return rng.choice(words) if rng.random() < share else None

    return Order(
        size=perhaps(SIZES, 0.5),
        roast=perhaps(ROASTS, 0.35),
        number_of_shots=perhaps(SHOTS, 0.35),
        drink=rng.choice(DRINKS),
        milk=perhaps(MILK_AMOUNTS, 0.4),
        sugar=perhaps(SUGAR_AMOUNTS, 0.35),
    )


def random_phrase(order: Order, rng: Random) -> str:
    """The order in one of its word orders, with its article: "a dark roast large mocha"."""
    return with_article(rng.choice(list(_descriptions(order))))


def _order_slots(rng: Random) -> Slots:
    order = random_order(rng)
    phrase = random_phrase(order, rng)
    return {"order": phrase, "bare": phrase.split(" ", 1)[1], "confirmation": confirmation(order)}


POLITE = (
    "could I have {order}, please?",
    "could I get {order}, please?",
    "can I get {order}, please?",
    "can I have {order}, please?",
    "I'd like {order}, please.",
    "I would like {order}, please.",
    "I'll have {order}.",
    "I'll take {order}, please.",
    "I will have {order}, thanks.",
    "could you make me {order}?",
    "can you make me {order}, please?",
    "would you make me {order}, please?",
    "please make me {order}.",
    "please get me {order}.",
    "may I have {order}, please?",
    "hello, can I get {order}?",
    "hi, I'd like {order}, please.",
    "hi, could I have {order}?",
    "good morning, may I have {order}?",
    "one {bare}, please.",
    "just {order}, please.",
    "for me {order}, please.",
    "I need {order}.",
    "let me get {order}.",
    "let me have {order}, please.",
)

FAMILIES = (
    Family(  # every opening is trained: these are the sentences that people were recorded with
        "coffee",
        tuple(f"{opening} {{order}}{'?' if opening.startswith(('can', 'may')) else '.'}" for opening in OPENINGS),
        "{confirmation}",
        _order_slots,
        value="{confirmation}",
        carriers=False,
        hold_questions=False,
    ),
    Family("coffee", POLITE, "{confirmation}", _order_slots, value="{confirmation}", carriers=False),
)

BEFORE = {"size": SIZES, "roast": ROASTS, "number_of_shots": SHOTS}  # the drink, in any order
AFTER = {"milk": MILK_AMOUNTS, "sugar": SUGAR_AMOUNTS}  # the drink and "with", in any order
GREETINGS = ("hello", "hi", "hey", "good morning", "good afternoon", "good evening", "okay")
ENDINGS = ("please", "thanks", "thank you", "coming up")


def parse_order(text: str) -> Order | None:
    """The order of a sentence of the grammar in any case, however it is opened; None if it is no such order.

    A greeting, one of the openings here or none, and an article may come first, "please" and the like last. What the
    grammar has no place for, and a slot that is given twice, make it no order, for half an order would be a wrong one.
    """
    words = re.findall(r"[\w']+", text.lower().replace("’", "'"))
    while ending := _ending(words):
        del words[-len(ending.split()) :]
    for beginnings in (GREETINGS, _BEGINNINGS, ("a", "an", "one")):
        _take(words, beginnings)
    before, drink, after = _take_slots(words, BEFORE), _take(words, DRINKS), None
    if drink and _take(words, ("with",)):
        after = _take_slots(words, AFTER, joining="and")
        drink = drink if after else None
    if before is None or drink is None or words:
        return None
    slots = before | (after or {})
    return Order(drink=drink, **{name: slots.get(name) for name in (*BEFORE, *AFTER)})


def _beginnings() -> tuple[str, ...]:
    """What may stand before "a latte": OPENINGS and what POLITE begins with, in lower case without commas."""
    polite = (re.split(r"{order}|{bare}", form)[0].lower().replace(",", "").split() for form in POLITE)
    found = {*(opening.lower() for opening in OPENINGS), *(" ".join(words) for words in polite)}
    return tuple(sorted(found - {"one", ""}))


_BEGINNINGS = _beginnings()


def _ending(words: list[str]) -> str:
    return next((ending for ending in ENDINGS if words[-len(ending.split()) :] == ending.split()), "")


def _take(words: list[str], choices: Iterable[str]) -> str | None:
    """Remove from the front of `words` the longest of `choices` that stands there, and return it."""
    matching = [choice for choice in choices if words[: len(choice.split())] == choice.split()]
    taken = max(matching, key=len, default=None)
    if taken is not None:
        del words[: len(taken.split())]
    return taken


def _take_slots(words: list[str], slots: Mapping[str, tuple[str, ...]], joining: str = "") -> dict[str, str] | None:
    """Remove the slots that `words` begin with, `joining` between them; None if one comes twice or nothing follows."""
    taken: dict[str, str] = {}
    while value := _take(words, (value for values in slots.values() for value in values)):
        name = next(name for name, values in slots.items() if value in values)
        if name in taken:
            return None
        taken[name] = value
        if joining and not _take(words, (joining,)):
            return taken
    return None if joining and taken else taken
