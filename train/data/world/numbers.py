"""Numbers: arithmetic, counting, strings of digits, units and money. Numbers are always written as words."""

from __future__ import annotations

from random import Random

from train.data.world.grammar import Family, Slots
from train.data.world.tables import listed

ONES = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = listed("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
LARGEST_TERM = 20  # of sums and differences
LARGEST_FACTOR = 10


def spelled(number: int) -> str:
    """0 .. 999,999 as spoken: "forty-two", "one hundred and five", "two thousand"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    scale, word = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % scale
    joint = " and " if 0 < rest < 100 else " "
    return f"{spelled(number // scale)} {word}{joint + spelled(rest) if rest else ''}"


def _pairs(low: int, high: int, result: str) -> list[Slots]:
    """Slots a, b and `result` for every pair of numbers whose sum, difference or product is wanted, none below zero."""
    rules = {"sum": int.__add__, "difference": int.__sub__, "product": int.__mul__}
    return [
        {"a": spelled(a), "b": spelled(b), result: spelled(value)}
        for a in range(low, high + 1)
        for b in range(low, high + 1)
        if (value := rules[result](a, b)) >= 0
    ]


SUMS = _pairs(0, LARGEST_TERM, "sum")
DIFFERENCES = _pairs(0, LARGEST_TERM, "difference")
PRODUCTS = _pairs(0, LARGEST_FACTOR, "product")

ARITHMETIC = (
    Family(
        "arithmetic",
        (
            "what is {a} plus {b}?",
            "what's {a} plus {b}?",
            "how much is {a} plus {b}?",
            "{a} plus {b}?",
            "can you add {a} and {b}?",
            "add {a} and {b}.",
            "add {b} to {a}.",
            "what is the sum of {a} and {b}?",
            "what do you get when you add {a} and {b}?",
            "what does {a} plus {b} make?",
            "could you tell me what {a} plus {b} is?",
            "do you know what {a} plus {b} is?",
            "please work out {a} plus {b}.",
            "if I have {a} and get {b} more, how many do I have?",
            "I have {a} apples and buy {b} more, how many are there?",
        ),
        "{a} plus {b} is {sum}.",
        SUMS,
        value="{a} plus {b}",
    ),
    Family(
        "arithmetic",
        (
            "what is {a} minus {b}?",
            "what's {a} minus {b}?",
            "how much is {a} minus {b}?",
            "{a} minus {b}?",
            "take {b} away from {a}.",
            "can you subtract {b} from {a}?",
            "subtract {b} from {a}.",
            "what is {a} take away {b}?",
            "what is left when you take {b} from {a}?",
            "could you tell me what {a} minus {b} is?",
            "do you know what {a} minus {b} is?",
            "please work out {a} minus {b}.",
            "I have {a} apples and eat {b}, how many are left?",
        ),
        "{a} minus {b} is {difference}.",
        DIFFERENCES,
        value="{a} minus {b}",
    ),
    Family(
        "arithmetic",
        (
            "what is {a} times {b}?",
            "what's {a} times {b}?",
            "how much is {a} times {b}?",
            "{a} times {b}?",
            "multiply {a} by {b}.",
            "can you multiply {a} by {b}?",
            "what is {a} multiplied by {b}?",
            "what do you get when you multiply {a} by {b}?",
            "could you tell me what {a} times {b} is?",
            "do you know what {a} times {b} is?",
            "please work out {a} times {b}.",
        ),
        "{a} times {b} is {product}.",
        PRODUCTS,
        value="{a} times {b}",
    ),
    Family(
        "arithmetic",
        (
            "what is double {a}?",
            "what's double {a}?",
            "double {a}.",
            "what is {a} doubled?",
            "can you double {a}?",
            "what do you get when you double {a}?",
        ),
        "double {a} is {double}.",
        [{"a": spelled(a), "double": spelled(2 * a)} for a in range(1, 51)],
        value="double {a}",
        by_question=True,
    ),
    Family(
        "arithmetic",
        (
            "what is half of {a}?",
            "what's half of {a}?",
            "how much is half of {a}?",
            "tell me half of {a}.",
            "what do you get when you halve {a}?",
        ),
        "half of {a} is {half}.",
        [{"a": spelled(2 * a), "half": spelled(a)} for a in range(1, 51)],
        value="half of {a}",
        by_question=True,
    ),
)

COUNTING = (
    Family(
        "counting",
        (
            "what number comes after {n}?",
            "which number comes after {n}?",
            "what is the number after {n}?",
            "what comes right after {n}?",
            "which number follows {n}?",
            "what is the next number after {n}?",
        ),
        "{next} comes after {n}.",
        [{"n": spelled(n), "next": spelled(n + 1)} for n in range(100)],
        value="{n}",
        by_question=True,
    ),
    Family(
        "counting",
        (
            "what number comes before {n}?",
            "which number comes before {n}?",
            "what is the number before {n}?",
            "what comes right before {n}?",
            "which number is just before {n}?",
        ),
        "{before} comes before {n}.",
        [{"n": spelled(n), "before": spelled(n - 1)} for n in range(1, 101)],
        value="{n}",
        by_question=True,
    ),
    Family(
        "counting",
        (
            "count from {a} to {b}.",
            "can you count from {a} to {b}?",
            "please count from {a} to {b}.",
            "count up from {a} to {b}.",
            "could you count from {a} up to {b}?",
            "I want you to count from {a} to {b}.",
        ),
        "{count}.",
        [
            {"a": spelled(a), "b": spelled(b), "count": ", ".join(map(spelled, range(a, b + 1)))}
            for a in range(21)
            for b in range(a + 2, min(a + 8, 21))
        ],
        value="from {a} to {b}",
    ),
    Family(
        "counting",
        (
            "count down from {a} to {b}.",
            "can you count down from {a} to {b}?",
            "please count down from {a} to {b}.",
            "count backwards from {a} to {b}.",
            "could you count backwards from {a} to {b}?",
        ),
        "{count}.",
        [
            {"a": spelled(a), "b": spelled(b), "count": ", ".join(map(spelled, range(a, b - 1, -1)))}
            for a in range(2, 16)
            for b in range(max(0, a - 7), a - 1)
        ],
        value="down from {a} to {b}",
    ),
    Family(
        "counting",
        (
            "what comes next: {a}, {b}, {c}?",
            "which number is next: {a}, {b}, {c}?",
            "how does it go on: {a}, {b}, {c}?",
            "{a}, {b}, {c}, what is next?",
            "finish the row: {a}, {b}, {c}.",
        ),
        "after {a}, {b}, {c} comes {d}.",
        [
            dict(zip("abcd", (spelled(start + step * place) for place in range(4))))
            for step in (1, 2, 3, 5, 10)
            for start in range(0, 31, 1 if step < 5 else step)
        ],
        value="{a} {b} {c}",
    ),
    Family(
        "counting",
        (
            "what number is between {a} and {c}?",
            "which number lies between {a} and {c}?",
            "what comes between {a} and {c}?",
            "tell me the number between {a} and {c}.",
        ),
        "{b} is between {a} and {c}.",
        [{"a": spelled(n), "b": spelled(n + 1), "c": spelled(n + 2)} for n in range(60)],
        value="between {a} and {c}",
        by_question=True,
    ),
)


def _digits(rng: Random) -> Slots:
    return {"digits": ", ".join(rng.choice(ONES[:10]) for _ in range(rng.choice((2, 3, 3, 4, 4, 5, 6))))}


DIGITS = (
    Family(
        "digits",
        (
            "{digits}.",
            "my number is {digits}.",
            "the code is {digits}.",
            "the number is {digits}.",
            "the digits are {digits}.",
            "please read back {digits}.",
            "call {digits}.",
            "my room is {digits}.",
            "write down {digits}.",
            "please note {digits}.",
            "I said {digits}.",
            "here are some digits: {digits}.",
        ),
        "you said {digits}.",
        _digits,
        value="{digits}",
        carriers=False,
    ),
)

UNIT_PARTS = (
    # whole, wholes, parts, how many; the largest number of wholes that is asked for
    ("minute", "minutes", "seconds", 60, 6),
    ("hour", "hours", "minutes", 60, 6),
    ("day", "days", "hours", 24, 4),
    ("week", "weeks", "days", 7, 10),
    ("year", "years", "months", 12, 10),
    ("century", "centuries", "years", 100, 9),
    ("decade", "decades", "years", 10, 10),
    ("metre", "metres", "centimetres", 100, 9),
    ("centimetre", "centimetres", "millimetres", 10, 10),
    ("kilometre", "kilometres", "metres", 1000, 9),
    ("kilogram", "kilograms", "grams", 1000, 9),
    ("litre", "litres", "millilitres", 1000, 9),
    ("foot", "feet", "inches", 12, 6),
    ("yard", "yards", "feet", 3, 10),
    ("pound", "pounds", "ounces", 16, 4),
    ("dollar", "dollars", "cents", 100, 9),
    ("dozen", "dozen", "eggs", 12, 6),
    ("pair", "pairs", "shoes", 2, 10),
)


def _units() -> list[Slots]:
    return [
        {
            "amount": f"{spelled(count)} {whole if count == 1 else wholes}",
            "are": "is" if count == 1 else "are",
            "parts": parts,
            "number": spelled(count * size),
        }
        for whole, wholes, parts, size, most in UNIT_PARTS
        for count in range(1, most + 1)
    ]


UNITS = (
    Family(
        "units",
        (
            "how many {parts} are in {amount}?",
            "how many {parts} are there in {amount}?",
            "how many {parts} does it take to make {amount}?",
            "how many {parts} make {amount}?",
            "{amount} {are} how many {parts}?",
            "what is {amount} in {parts}?",
            "what's {amount} in {parts}?",
            "can you tell me how many {parts} are in {amount}?",
            "do you know how many {parts} make {amount}?",
            "please turn {amount} into {parts}.",
            "I need to know how many {parts} make {amount}.",
            "tell me the number of {parts} in {amount}.",
        ),
        "{amount} {are} {number} {parts}.",
        _units(),
        value="{amount} in {parts}",
        by_question=True,
    ),
)

FAMILIES = ARITHMETIC + COUNTING + DIGITS + UNITS
