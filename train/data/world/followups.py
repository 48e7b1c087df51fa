"""Follow-ups and corrections: questions that mean something only after the turn before them.

The turn before is always one that training may ask, so that a test question never hides in a training history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from train.data.world.coffee import (
    DRINKS,
    MILK_AMOUNTS,
    OPENINGS,
    ROASTS,
    SHOTS,
    SIZES,
    SUGAR_AMOUNTS,
    Order,
    confirmation,
    description,
    random_order,
    random_phrase,
)
from train.data.world.facts import CAPITAL_FAMILIES, CAPITALS
from train.data.world.grammar import Family, Slots, fill, held_out, with_article
from train.data.world.living import ANIMAL_FAMILIES, LEGS, SOUNDS
from train.data.world.numbers import ARITHMETIC, LARGEST_TERM, spelled
from train.data.world.time import DAY_FAMILIES, DAYS
from train.data.world.words import FORM_FAMILIES, OPPOSITES, SPELLING_FAMILIES, SPELLINGS

EARLIER = (("{earlier_question}", "{earlier_answer}"),)


def _after(family: Family, then: Callable[[Random, Slots], Slots]) -> Callable[[Random], Slots]:
    """Draws an earlier turn of `family` as training has it, then the slots that `then` makes of that turn's slots."""

    def draw(rng: Random) -> Slots:
        question, slots = family.draw(rng, "train")
        return {
            "earlier_question": fill(question, slots),
            "earlier_answer": fill(family.answer, slots),
            **then(rng, slots),
        }

    return draw


def _another(table: list[Slots], key: str) -> Callable[[Random, Slots], Slots]:
    """Another row of the table than the one that was asked for before."""
    return lambda rng, before: rng.choice([slots for slots in table if slots[key] != before[key]])


FACT_FOLLOWUPS = (
    Family(
        "follow-ups",
        (
            "and of {country}?",
            "and the capital of {country}?",
            "what about {country}?",
            "and what about {country}?",
            "how about {country}?",
            "and {country}?",
            "the same for {country}, please.",
            "okay, and of {country}?",
        ),
        "the capital of {country} is {capital}.",
        _after(CAPITAL_FAMILIES[0], _another(CAPITALS, "country")),
        value="{country}",
        by_question=True,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "follow-ups",
        (
            "and {animal:a}?",
            "what about {animal:a}?",
            "and what about {animal:a}?",
            "how about {animal:a}?",
            "and what does {animal:a} say?",
            "the same for {animal:a}, please.",
        ),
        "{animal:a} says {says}.",
        _after(ANIMAL_FAMILIES[0], _another(SOUNDS, "animal")),
        value="sound of {animal}",
        by_question=True,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "follow-ups",
        (
            "how many does {animal:a} have?",
            "and how many has {animal:a}?",
            "and how many does {animal:a} have?",
            "how many for {animal:a}?",
        ),
        "{animal:a} has {legs} legs.",
        _after(ANIMAL_FAMILIES[2], _another(LEGS, "animal")),
        value="legs of {animal}",
        by_question=True,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "follow-ups",
        (
            "and of {word}?",
            "and the opposite of {word}?",
            "what about {word}?",
            "and {word}?",
            "how about {word}?",
            "okay, and of {word}?",
        ),
        "the opposite of {word} is {opposite}.",
        _after(FORM_FAMILIES[0], _another(OPPOSITES, "word")),
        value="opposite of {word}",
        by_question=True,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "follow-ups",
        (
            "and how do you spell {word}?",
            "and what about {word}?",
            "and the word {word}?",
            "now spell {word}.",
            "how about the word {word}?",
            "and can you spell {word}?",
        ),
        "{word} is spelled {letters}.",
        _after(SPELLING_FAMILIES[0], _another(SPELLINGS, "word")),
        value="spelling of {word}",
        by_question=True,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "follow-ups",
        (
            "and the day after that?",
            "and after that?",
            "and then?",
            "what comes after that?",
            "and which day comes next?",
            "and the next day?",
        ),
        "{then} comes after {day}.",
        _after(
            DAY_FAMILIES[0],
            lambda rng, before: {"day": before["then"], "then": DAYS[(DAYS.index(before["then"]) + 1) % 7]},
        ),
        history=EARLIER,
        carriers=False,
    ),
)

_NUMBER = {spelled(number): number for number in range(LARGEST_TERM + 1)}


def _other_term(sign: int) -> Callable[[Random, Slots], Slots]:
    """The first term of the sum before, with another second term to add (1) or to take away (-1)."""

    def then(rng: Random, before: Slots) -> Slots:
        first = _NUMBER[before["a"]]
        second = rng.randint(0, LARGEST_TERM if sign > 0 else first)
        return {"a": before["a"], "b": spelled(second), "result": spelled(first + sign * second)}

    return then


def _instead(sign: int) -> Family:
    """ "What about plus three?": the first term of the sum before stays, the second is replaced."""
    word = "plus" if sign > 0 else "minus"
    return Family(
        "follow-ups",
        (
            f"what about {word} {{b}}?",
            f"and {word} {{b}}?",
            f"and what about {word} {{b}}?",
            f"how about {word} {{b}}?",
            f"okay, and {word} {{b}}?",
            f"no, {word} {{b}}.",
            f"I meant {word} {{b}}.",
            f"sorry, I meant {word} {{b}}.",
        ),
        f"{{a}} {word} {{b}} is {{result}}.",
        _after(ARITHMETIC[0], _other_term(sign)),
        value=f"{word} {{b}}",
        by_question=True,
        avoid=f"{{a}} {word} {{b}}",
        history=EARLIER,
        carriers=False,
    )


def _order_turn(rng: Random) -> tuple[Order, Slots]:
    """An order that training may have, said with one of the grammar's openings, and its confirmation."""
    while held_out(confirmation(order := random_order(rng))):
        pass
    asked = f"{rng.choice(OPENINGS)} {random_phrase(order, rng)}"
    end = "?" if asked.startswith(("can", "may")) else "."
    return order, {"earlier_question": asked + end, "earlier_answer": confirmation(order)}


def _changed(slot: str, choices: tuple[str, ...], wanted: bool | None = None) -> Callable[[Random], Slots]:
    """An order, then another value for one of its slots; `wanted`: whether the order must have had that slot before."""

    def draw(rng: Random) -> Slots:
        while True:
            order, slots = _order_turn(rng)
            before = getattr(order, slot)
            if wanted is None or wanted == (before is not None):
                new = rng.choice([choice for choice in choices if choice != before])
                return {**slots, slot: new, "confirmation": confirmation(replace(order, **{slot: new}))}

    return draw


def _correction(slot: str, choices: tuple[str, ...], *questions: str, wanted: bool | None = None) -> Family:
    return Family(
        "corrections",
        questions,
        "{confirmation}",
        _changed(slot, choices, wanted),
        value=f"{{{slot}}}",
        by_question=True,
        avoid="{confirmation}",
        history=EARLIER,
        carriers=False,
    )


def _dropped(slot: str) -> Callable[[Random], Slots]:
    """An order with milk or sugar, and the same without it."""

    def draw(rng: Random) -> Slots:
        while True:
            order, slots = _order_turn(rng)
            if getattr(order, slot):
                return {**slots, "confirmation": confirmation(replace(order, **{slot: None}))}

    return draw


def _without(slot: str, *questions: str) -> Family:
    return Family(
        "corrections",
        questions,
        "{confirmation}",
        _dropped(slot),
        avoid="{confirmation}",
        history=EARLIER,
        carriers=False,
    )


def _recalled(rng: Random) -> Slots:
    order, slots = _order_turn(rng)
    return {**slots, "order": with_article(description(order))}


CORRECTIONS = (
    _correction(
        "size",
        SIZES,
        "no, make it {size:a} one.",
        "make it {size:a} one, please.",
        "actually, make it {size}.",
        "sorry, I meant {size:a} one.",
        "no, {size}, please.",
        "can you make it {size}?",
        "can I have it {size}?",
        "I'd like {size:a} one.",
        "could you make that {size}, please?",
    ),
    _correction(
        "drink",
        DRINKS,
        "no, I said {drink}.",
        "actually, make it {drink:a}.",
        "no, {drink:a}, please.",
        "sorry, I meant {drink:a}.",
        "{drink:a} instead, please.",
        "can I have {drink:a} instead?",
        "could I have {drink:a} instead of that?",
        "change that to {drink:a}.",
    ),
    _correction(
        "milk",
        MILK_AMOUNTS,
        "and with {milk}, please.",
        "add {milk}, please.",
        "can I have {milk} with that?",
        "could you add {milk}?",
        "and {milk}, please.",
        "oh, and {milk}.",
        "I'd like {milk} in it.",
        wanted=False,
    ),
    _correction(
        "sugar",
        SUGAR_AMOUNTS,
        "and with {sugar}, please.",
        "add {sugar}, please.",
        "can I have {sugar} with that?",
        "could you add {sugar}?",
        "and {sugar}, please.",
        "oh, and {sugar}.",
        "I'd like {sugar} in it.",
        wanted=False,
    ),
    _correction(
        "milk",
        MILK_AMOUNTS,
        "no, with {milk}.",
        "sorry, I meant with {milk}.",
        "make that with {milk}.",
        "with {milk} instead, please.",
        "can I have {milk} instead?",
        wanted=True,
    ),
    _correction(
        "roast",
        ROASTS,
        "make it {roast:a}.",
        "{roast}, please.",
        "I'd like {roast}.",
        "can I have {roast:a}?",
        "no, {roast}.",
        "and make it {roast}, please.",
    ),
    _correction(
        "number_of_shots",
        SHOTS,
        "make that {number_of_shots:a}.",
        "{number_of_shots}, please.",
        "no, {number_of_shots:a}.",
        "can I get {number_of_shots:a}?",
        "with {number_of_shots:a}, please.",
        "and make it {number_of_shots:a}, please.",
    ),
    _without(
        "milk",
        "without milk, please.",
        "no milk, please.",
        "no, without milk.",
        "leave out the milk.",
        "can I have it without milk?",
        "actually, no milk.",
        "I don't want milk.",
    ),
    _without(
        "sugar",
        "without sugar, please.",
        "no sugar, please.",
        "no, without sugar.",
        "leave out the sugar.",
        "can I have it without sugar?",
        "actually, no sugar.",
        "I don't want sugar.",
    ),
    Family(
        "corrections",
        (
            "what did I order?",
            "what was my order?",
            "can you repeat my order?",
            "tell me my order again.",
            "what did you write down?",
            "could you read back my order, please?",
            "what am I getting?",
        ),
        "you ordered {order}.",
        _recalled,
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "corrections",
        (
            "cancel that.",
            "cancel my order.",
            "please cancel my order.",
            "I changed my mind, cancel that.",
            "no, I don't want it.",
            "can you cancel my order?",
            "forget my order, please.",
        ),
        "okay, your order is cancelled.",
        lambda rng: _order_turn(rng)[1],
        history=EARLIER,
        carriers=False,
    ),
    Family(
        "corrections",
        (
            "that's right.",
            "yes, that's right.",
            "that is right.",
            "yes, please.",
            "perfect, thank you.",
            "that's all, thank you.",
            "yes, that's all.",
        ),
        "great, it will be ready soon.",
        lambda rng: _order_turn(rng)[1],
        history=EARLIER,
        carriers=False,
    ),
)

FAMILIES = (*FACT_FOLLOWUPS, _instead(1), _instead(-1), *CORRECTIONS)
