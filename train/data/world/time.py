"""Clock and calendar: hours, days, months, seasons. Nano has no watch: it works out times, it cannot tell the time."""

from __future__ import annotations

from train.data.world.grammar import Family, Slots
from train.data.world.numbers import ONES, ORDINALS, spelled
from train.data.world.tables import listed

DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = {  # of the north
    "winter": ("December", "January", "February"),
    "spring": ("March", "April", "May"),
    "summer": ("June", "July", "August"),
    "autumn": ("September", "October", "November"),
}
HOLIDAYS = {
    "Christmas": "December",
    "Halloween": "October",
    "New Year's Day": "January",
    "Valentine's Day": "February",
}
PARTS = ("{hour} o'clock", "a quarter past {hour}", "half past {hour}", "a quarter to {hour}")  # of an hour, as spoken


def spoken_time(minutes: int) -> str:
    """A multiple of 15 minutes after twelve o'clock, as people say it: 285 is "a quarter to five"."""
    hour, quarter = divmod(minutes // 15, 4)
    return PARTS[quarter].format(hour=ONES[(hour + (quarter == 3) - 1) % 12 + 1])


LAPSES = {
    **{f"{spelled(n)} hour{'s' if n > 1 else ''}": 60 * n for n in range(1, 7)},
    "half an hour": 30,
    "a quarter of an hour": 15,
}


def _times(sign: int) -> list[Slots]:
    return [
        {"time": spoken_time(start), "lapse": lapse, "then": spoken_time((start + sign * minutes) % 720)}
        for start in range(0, 720, 15)
        for lapse, minutes in LAPSES.items()
    ]


CLOCK = (
    Family(
        "clock",
        (
            "what time is it {lapse} after {time}?",
            "what time comes {lapse} after {time}?",
            "it is {time} now, what time is it in {lapse}?",
            "it's {time}, what time will it be in {lapse}?",
            "what is {lapse} after {time}?",
            "if it is {time}, what time is it {lapse} later?",
            "the time is {time}, what is the time {lapse} later?",
            "can you tell me what time it is {lapse} after {time}?",
            "my train leaves {lapse} after {time}, when is that?",
        ),
        "{lapse} after {time} is {then}.",
        _times(1),
        value="{lapse} after {time}",
    ),
    Family(
        "clock",
        (
            "what time is it {lapse} before {time}?",
            "what time comes {lapse} before {time}?",
            "what is {lapse} before {time}?",
            "it is {time} now, what time was it {lapse} ago?",
            "it's {time}, what was the time {lapse} ago?",
            "can you tell me what time it is {lapse} before {time}?",
            "I get up {lapse} before {time}, when is that?",
        ),
        "{lapse} before {time} is {then}.",
        _times(-1),
        value="{lapse} before {time}",
    ),
)

_DAY_STEPS = {"the day": 1, "two days": 2, "three days": 3, "four days": 4}
_MONTH_STEPS = {"the month": 1, "two months": 2, "three months": 3, "four months": 4}


def _steps(names: tuple[str, ...], steps: dict[str, int], sign: int) -> list[Slots]:
    return [
        {"name": name, "step": step, "then": names[(place + sign * count) % len(names)]}
        for place, name in enumerate(names)
        for step, count in steps.items()
    ]


def _next(names: tuple[str, ...], sign: int) -> list[Slots]:
    return [{"name": name, "then": names[(place + sign) % len(names)]} for place, name in enumerate(names)]


def _stepping(topic: str, unit: str, names: tuple[str, ...], steps: dict[str, int], sign: int) -> tuple[Family, Family]:
    """Questions on the next or the last name of a round of names, and on those a few steps away."""
    word, comes = ("after", "follows") if sign > 0 else ("before", "comes before")
    near = (
        f"what {unit} comes {word} {{name}}?",
        f"which {unit} comes {word} {{name}}?",
        f"what {unit} {comes if sign > 0 else 'is before'} {{name}}?",
        f"which {unit} is right {word} {{name}}?",
        f"what comes {word} {{name}}?",
        f"tell me the {unit} that comes {word} {{name}}.",
        f"do you know which {unit} {comes} {{name}}?",
    )
    far = (
        f"which {unit} is {{step}} {word} {{name}}?",
        f"what {unit} is it {{step}} {word} {{name}}?",
        f"what is {{step}} {word} {{name}}?",
        f"can you tell me which {unit} is {{step}} {word} {{name}}?",
        f"{{step}} {word} {{name}}, which {unit} is that?",
    )
    return (
        Family(
            topic,
            near,
            f"{{then}} comes {word} {{name}}.",
            _next(names, sign),
            value=f"{word} {{name}}",
            by_question=True,
        ),
        Family(
            topic,
            far,
            f"{{step}} {word} {{name}} is {{then}}.",
            _steps(names, steps, sign),
            value=f"{{step}} {word} {{name}}",
            by_question=True,
        ),
    )


DAY_FAMILIES = (
    *_stepping("days", "day", DAYS, _DAY_STEPS, 1),
    *_stepping("days", "day", DAYS, _DAY_STEPS, -1),
    Family(
        "days",
        (
            "how many days are there from {a} to {b}?",
            "how many days is it from {a} to {b}?",
            "today is {a}, how many days until {b}?",
            "it is {a}, how long is it until {b}?",
            "if today is {a}, how many days are left until {b}?",
            "how many days from {a} until {b}?",
        ),
        "from {a} to {b} it is {count}.",
        [
            {"a": a, "b": DAYS[(place + n) % 7], "count": f"{spelled(n)} day{'s' if n > 1 else ''}"}
            for place, a in enumerate(DAYS)
            for n in range(1, 7)
        ],
        value="from {a} to {b}",
        by_question=True,
    ),
    Family(
        "days",
        (
            "today is {day}, what day is tomorrow?",
            "if today is {day}, what is tomorrow?",
            "it is {day} today, which day is it tomorrow?",
            "it's {day}, so what is tomorrow?",
            "when today is {day}, what day is it tomorrow?",
        ),
        "tomorrow is {next}.",
        [{"day": day, "next": DAYS[(place + 1) % 7]} for place, day in enumerate(DAYS)],
        value="tomorrow {day}",
        by_question=True,
    ),
    Family(
        "days",
        (
            "today is {day}, what day was yesterday?",
            "if today is {day}, what was yesterday?",
            "it is {day} today, which day was it yesterday?",
            "it's {day}, so what was yesterday?",
            "when today is {day}, what day was it yesterday?",
        ),
        "yesterday was {last}.",
        [{"day": day, "last": DAYS[place - 1]} for place, day in enumerate(DAYS)],
        value="yesterday {day}",
        by_question=True,
    ),
    Family(
        "days",
        (
            "is {day} a weekday?",
            "is {day} on the weekend?",
            "does {day} belong to the weekend?",
            "tell me if {day} is a weekday.",
            "weekday or weekend: {day}?",
        ),
        "{day} is {kind}.",
        [{"day": day, "kind": "on the weekend" if day.startswith("S") else "a weekday"} for day in DAYS],
        value="weekday {day}",
        by_question=True,
    ),
)

MONTH_FAMILIES = (
    *_stepping("months", "month", MONTHS, _MONTH_STEPS, 1),
    *_stepping("months", "month", MONTHS, _MONTH_STEPS, -1),
    Family(
        "months",
        (
            "how many days does {month} have?",
            "how many days are in {month}?",
            "how many days has {month}?",
            "how long is {month}?",
            "can you tell me how many days {month} has?",
            "what is the number of days in {month}?",
        ),
        "{month} has {days} days.",
        [{"month": month, "days": spelled(days)} for month, days in zip(MONTHS, MONTH_DAYS)],
        value="length of {month}",
        by_question=True,
    ),
    Family(
        "months",
        (
            "which month of the year is {month}?",
            "what number is {month} in the year?",
            "what place does {month} have in the year?",
            "{month} is which month of the year?",
        ),
        "{month} is the {place} month of the year.",
        [{"month": month, "place": place} for month, place in zip(MONTHS, ORDINALS)],
        value="place of {month}",
        by_question=True,
    ),
    Family(
        "months",
        (
            "what is the {place} month of the year?",
            "which month is the {place} of the year?",
            "what's the {place} month?",
            "name the {place} month of the year.",
        ),
        "the {place} month of the year is {month}.",
        [{"month": month, "place": place} for month, place in zip(MONTHS, ORDINALS)],
        value="month at {place}",
        by_question=True,
    ),
    Family(
        "months",
        (
            "which season is {month} in?",
            "what season is it in {month}?",
            "what season does {month} belong to?",
            "in which season is {month}?",
            "is {month} in spring, summer, autumn or winter?",
            "{month} is in which season?",
        ),
        "{month} is in {season}.",
        [{"month": month, "season": season} for season, months in SEASONS.items() for month in months],
        value="season of {month}",
        by_question=True,
    ),
    Family(
        "months",
        (
            "in which month is {holiday}?",
            "what month is {holiday} in?",
            "which month has {holiday}?",
            "when is {holiday}?",
            "tell me the month of {holiday}.",
        ),
        "{holiday} is in {month}.",
        [{"holiday": holiday, "month": month} for holiday, month in HOLIDAYS.items()],
    ),
)

FAMILIES = CLOCK + DAY_FAMILIES + MONTH_FAMILIES
