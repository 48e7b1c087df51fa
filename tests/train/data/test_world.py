import os
import re
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest

from train.data.utterance import spoken_letters
from train.data.world import FAMILIES, TOPICS, exchange, exchanges
from train.data.world.coffee import (
    DRINKS,
    MILK_AMOUNTS,
    POLITE,
    ROASTS,
    SHOTS,
    SIZES,
    SUGAR_AMOUNTS,
    Order,
    confirmation,
    order_phrases,
    parse_order,
    random_order,
    random_phrase,
)
from train.data.world.facts import CAPITALS
from train.data.world.grammar import HELD_OUT, PREFIXES, SUFFIXES, fill, with_article
from train.data.world.numbers import spelled
from train.data.world.tables import rows
from train.data.world.time import DAYS, MONTHS, spoken_time

ROOT = Path(__file__).parents[3]
NUMBER = {spelled(number): number for number in range(10_000)}

# Every value of the barista recordings' labels.
RECORDED = {
    "drink": "coffee; iced coffee; mocha; drip coffee; house coffee; espresso; latte; iced mocha; americano; "
    "cappuccino",
    "roast": "light roast; medium roast; dark roast",
    "size": "twelve ounce; twenty ounce; large; medium; sixteen ounce; small; eight ounce",
    "number_of_shots": "triple shot; single shot; double shot",
    "milk": "soy milk; some milk; cream; lots of cream; whole milk; skim milk; milk; a lot of skim milk; "
    "a bit of almond milk; lots of almond milk; a lot of cream; a little bit of almond milk; a bit of milk; "
    "almond milk; lots of soy milk; a little bit of skim milk; a little bit of cream; some whole milk; some soy milk; "
    "a lot of soy milk; some almond milk; a lot of whole milk; a bit of whole milk; lots of milk; "
    "a little bit of milk; lots of skim milk; some skim milk; a little bit of whole milk; lots of whole milk; "
    "a bit of skim milk; a bit of soy milk; a little bit of soy milk; some cream; a bit of cream",
    "sugar": "a bit of sweetener; a bit of brown sugar; brown sugar; a lot of sweetener; sugar; lots of brown sugar; "
    "sweetener; lots of sweetener; a lot of brown sugar; some brown sugar; a bit of sugar; some sugar; "
    "a little bit of sweetener; a lot of sugar; a little bit of sugar; a little bit of brown sugar; some sweetener; "
    "lots of sugar",
}
WORDS = {
    "drink": DRINKS,
    "roast": ROASTS,
    "size": SIZES,
    "number_of_shots": SHOTS,
    "milk": MILK_AMOUNTS,
    "sugar": SUGAR_AMOUNTS,
}


@pytest.fixture(scope="module")
def taught():
    return list(exchanges("train", 0, 20_000))


@pytest.fixture(scope="module")
def examined():
    return list(exchanges("test", 1, 3_000))


def test_an_item_depends_on_split_seed_and_index_alone(examined):
    assert [exchange("test", 1, index) for index in (2_999, 7, 0)] == [examined[2_999], examined[7], examined[0]]
    assert list(islice(exchanges("test", 1, 50), 40, 50)) == examined[40:50]
    assert exchange("test", 2, 7) != examined[7]


def test_another_process_makes_the_same_items(examined):
    code = "from train.data.world import exchanges\nfor item in exchanges('test', 1, 64): print(item)"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    assert printed.stdout.splitlines() == [str(item) for item in examined[:64]]


def test_topics_and_templates_are_many_and_balanced(taught):
    assert len(TOPICS) >= 15
    for topic, families in FAMILIES.items():
        names = [family.template(question) for family in families for question in family.questions]
        assert len(names) >= 10, topic
        assert len(set(names)) == len(names), topic
    cycle = taught[: len(TOPICS)]
    assert sorted(item.topic for item in cycle) == sorted(TOPICS)
    assert {item.topic for item in exchanges("train", 0, 10, ["coffee", "clock"])} == {"coffee", "clock"}


def test_a_fifth_of_the_templates_is_held_out_and_never_trained(taught, examined):
    held = {f.template(question) for families in FAMILIES.values() for f in families for question in f.held_questions}
    every = sum(len(family.questions) for families in FAMILIES.values() for family in families)
    assert 0.16 < len(held) / every < 0.22
    assert not held & {item.template for item in taught}
    assert {item.template for item in examined if item.held_out == "template"} <= held
    assert not held & {item.template for item in examined if item.held_out == "value"}


def test_a_fifth_of_the_values_is_held_out():
    for families in FAMILIES.values():
        for family in families:
            if family.value and not callable(family.values):
                cells = family.cells
                share = len(cells["value"]) / (len(cells["value"]) + len(cells["train"]))
                assert 0 < share < 2 * HELD_OUT, family.questions[0]


def test_half_of_a_topics_test_items_are_new_in_value_where_it_has_values(examined):
    for topic, families in FAMILIES.items():
        reasons = [item.held_out for item in examined if item.topic == topic]
        if any(family.value for family in families):
            assert 0.25 < reasons.count("value") / len(reasons) < 0.75, topic
        else:
            assert set(reasons) == {"template"}
    assert {item.held_out for item in examined} == {"template", "value"}


def test_no_test_question_is_a_training_question(taught, examined):
    asked = {spoken_letters(item.question) for item in taught}
    asked |= {spoken_letters(user) for item in taught for user, _ in item.history}
    assert not [item.question for item in examined if spoken_letters(item.question) in asked]
    assert {item.held_out for item in taught} == {""}


def test_tables_give_no_question_to_both_splits_and_no_question_two_answers():
    sides, answers = {}, {}
    for family in (family for families in FAMILIES.values() for family in families if not callable(family.values)):
        for kind, cells in family.cells.items():
            for question, slots in cells:
                letters = spoken_letters(fill(question, slots))
                assert sides.setdefault(letters, kind == "train") == (kind == "train"), letters
                assert answers.setdefault(letters, fill(family.answer, slots)) == fill(family.answer, slots), letters


def test_carrier_words_cannot_turn_one_question_into_another():
    plain = {
        spoken_letters(question)
        for families in FAMILIES.values()
        for family in families
        if family.carriers
        for question in family.questions
    }
    fronts = [spoken_letters(prefix) + " " for prefix in PREFIXES]
    ends = [" " + spoken_letters(suffix) for suffixes in SUFFIXES.values() for suffix in suffixes]
    for question in plain:
        assert not question.startswith(tuple(fronts)), question
        for end in ends:
            assert question.removesuffix(end) == question or question.removesuffix(end) not in plain, question


def test_the_answers_of_held_out_paraphrases_are_trained():
    closed = [f for families in FAMILIES.values() for f in families if f.held_questions and not f.value]
    assert closed
    for family in closed:
        assert set(family.questions) - family.held_questions


def test_everything_can_be_spoken(taught, examined):
    for item in taught + examined:
        for text in (item.question, item.answer, *(turn for pair in item.history for turn in pair)):
            assert spoken_letters(text)
            assert text[0].isupper()
            assert text[-1] in ".?"
            assert not re.search(r"[{}]|  | [.?,]|[.?,]{2}", text), text


def test_answers_are_short(taught):
    lengths = [len(item.answer.split()) for item in taught if item.topic not in ("coffee", "corrections", "repeat")]
    assert max(lengths) <= 15
    assert sum(length <= 14 for length in lengths) / len(lengths) > 0.99


def test_there_are_many_questions(taught):
    assert len({item.question for item in taught}) > 12_000


def test_history_comes_with_what_needs_it(taught):
    for item in taught:
        assert bool(item.history) == (item.topic in ("follow-ups", "corrections"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_sums_are_right(split):
    signs = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    checked = 0
    for item in exchanges(split, 3, 2_000, ["arithmetic", "follow-ups"]):
        if match := re.fullmatch(r"(.+) (plus|minus|times) (.+) is (.+)\.", item.answer.lower()):
            a, sign, b, result = match.groups()
            assert signs[sign](NUMBER[a], NUMBER[b]) == NUMBER[result], item
            numbers = {word for word in re.findall(r"[a-z-]+", item.question.lower()) if word in NUMBER}
            assert b in numbers
            assert item.history or a in numbers
            checked += 1
        elif match := re.fullmatch(r"(double|half of) (.+) is (.+)\.", item.answer.lower()):
            how, a, result = match.groups()
            assert NUMBER[a] * 2 == NUMBER[result] if how == "double" else NUMBER[a] == NUMBER[result] * 2
            checked += 1
    assert checked > 800


def test_counting_and_units_are_right():
    for item in exchanges("train", 4, 500, ["counting"]):
        answer = item.answer.lower().rstrip(".")
        if match := re.fullmatch(r"(.+) comes (after|before) (.+)", answer):
            here, side, there = match.groups()
            assert NUMBER[here] - NUMBER[there] == (1 if side == "after" else -1)
        elif re.fullmatch(r"[a-z-]+(, [a-z-]+)+", answer):
            numbers = [NUMBER[word] for word in answer.split(", ")]
            steps = {b - a for a, b in pairwise(numbers)}
            assert steps in ({1}, {-1})
            assert spelled(numbers[0]) in item.question.lower()
            assert spelled(numbers[-1]) in item.question.lower()
    answers = {item.answer for item in exchanges("train", 4, 3_000, ["units"])}
    assert {"Two hours are one hundred and twenty minutes.", "One week is seven days."} <= answers


def minutes_of(time):
    return next(minutes for minutes in range(0, 720, 15) if spoken_time(minutes) == time)


def test_clock_answers_are_right():
    lapses = {"half an hour": 30, "a quarter of an hour": 15}
    for item in exchanges("train", 5, 1_000, ["clock"]):
        match = re.fullmatch(r"(.+?) (after|before) (.+) is (.+)\.", item.answer[0].lower() + item.answer[1:])
        lapse, side, start, then = match.groups()
        length = lapses.get(lapse) or 60 * NUMBER[lapse.split()[0]]
        assert (minutes_of(start) + (length if side == "after" else -length) - minutes_of(then)) % 720 == 0, item
        assert start in item.question.lower()


def test_calendar_answers_are_right():
    steps = {"day": 1, "month": 1, "two": 2, "three": 3, "four": 4}
    checked = 0
    for item in exchanges("train", 6, 2_000, ["days", "months"]):
        names = DAYS if item.topic == "days" else MONTHS
        if match := re.fullmatch(r"(\w+) comes (after|before) (\w+)\.", item.answer):
            then, side, name, step = *match.groups(), 1
        elif match := re.fullmatch(r"(?:The )?(\w+)(?: \w+)? (after|before) (\w+) is (\w+)\.", item.answer):
            step, side, name, then = match.groups()
            step = steps[step.lower()]
        else:
            continue
        assert (names.index(name) + (step if side == "after" else -step) - names.index(then)) % len(names) == 0, item
        checked += 1
    assert checked > 500


def test_numbers_are_spelled_as_they_are_spoken():
    wanted = {0: "zero", 42: "forty-two", 105: "one hundred and five", 2_000: "two thousand"}
    wanted |= {9_060: "nine thousand and sixty", 1_440: "one thousand four hundred and forty"}
    assert {number: spelled(number) for number in wanted} == wanted


def test_spelling_names_the_words_letters():
    for item in exchanges("train", 7, 300, ["spelling"]):
        if match := re.fullmatch(r"(\w+) is spelled (.+)\.", item.answer):
            assert match[2] == ", ".join(match[1].upper())


def test_there_are_forty_capitals_at_least():
    assert len({slots["country"] for slots in CAPITALS}) == len(CAPITALS) >= 40


@pytest.mark.parametrize("slot", RECORDED)
def test_the_grammar_has_every_recorded_value(slot):
    assert set(RECORDED[slot].split("; ")) <= set(WORDS[slot])


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (Order(None, None, None, "latte", None, None), "One latte, coming up."),
        (
            Order("large", None, None, "latte", "a bit of soy milk", None),
            "One large latte with a bit of soy milk, coming up.",
        ),
        (
            Order("eight ounce", "dark roast", "double shot", "iced mocha", "cream", "some sweetener"),
            "One eight ounce dark roast double shot iced mocha with cream and some sweetener, coming up.",
        ),
    ],
)
def test_orders_are_confirmed_in_one_form(order, text):
    assert confirmation(order) == text


def test_an_orders_phrases_are_the_whole_grammar():
    phrases = list(order_phrases(Order("large", "dark roast", "double shot", "mocha", "cream", "sugar")))
    assert len(set(phrases)) == len(phrases) == 9 * 2 * 6 * 2
    assert "can I get a dark roast double shot large mocha with sugar and cream" in phrases
    assert list(order_phrases(Order(None, None, None, "espresso", None, None)))[:2] == [
        "brew an espresso",
        "can I get an espresso",
    ]


def test_an_order_is_read_back_from_its_confirmation_and_every_phrase():
    for seed in range(40):
        order = random_order(Random(seed))
        assert parse_order(confirmation(order)) == order
        assert {parse_order(phrase) for phrase in order_phrases(order)} == {order}


def test_an_order_is_read_back_from_polite_questions():
    rng = Random(3)
    for form in POLITE:
        order = random_order(rng)
        phrase = random_phrase(order, rng)
        assert parse_order(form.format(order=phrase, bare=phrase.split(" ", 1)[1]).upper()) == order, form


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (
            "can i have a dark roast double shot iced coffee with a bit of brown sugar and some milk",
            Order(None, "dark roast", "double shot", "iced coffee", "some milk", "a bit of brown sugar"),
        ),
        ("brew espresso", Order(None, None, None, "espresso", None, None)),
        ("a medium roast coffee.", Order(None, "medium roast", None, "coffee", None, None)),
        ("medium medium roast drip coffee", Order("medium", "medium roast", None, "drip coffee", None, None)),
        ("I’d like an eight ounce latte!", Order("eight ounce", None, None, "latte", None, None)),
        (
            "hi, one mocha with a bit of soy milk, thank you.",
            Order(None, None, None, "mocha", "a bit of soy milk", None),
        ),
    ],
)
def test_an_order_is_read_as_people_said_it(text, order):
    assert parse_order(text) == order


@pytest.mark.parametrize(
    "text",
    [
        "",
        "what time is it?",
        "one large, coming up.",
        "can I have milk",
        "a large small latte",
        "a latte with",
        "a latte with milk and",
        "a latte with milk and cream",
        "a latte with milk and sugar and milk",
        "a latte with foam",
        "a latte and a mocha",
        "a latte 2",
        "a green latte",
        "please",
    ],
)
def test_what_is_no_order_is_not_read_as_one(text):
    assert parse_order(text) is None


def test_coffee_questions_say_what_is_confirmed():
    for item in exchanges("train", 8, 300, ["coffee"]):
        ordered = item.answer.removeprefix("One ").removesuffix(", coming up.").replace(" with ", " and ")
        for part in ordered.split(" and "):
            assert set(part.split()) <= set(re.findall(r"[a-z]+", item.question.lower())), item


def test_a_correction_changes_the_order_that_was_confirmed():
    for item in exchanges("test", 9, 300, ["corrections"]):
        (_, confirmed), *rest = item.history
        assert not rest
        assert confirmed.endswith("coming up.")
        assert item.answer != confirmed


def test_articles_follow_the_sound():
    wanted = ["a dog", "an owl", "an hour", "an eight ounce latte", "a uniform", "an umbrella"]
    assert [with_article(phrase.split(" ", 1)[1]) for phrase in wanted] == wanted


def test_a_broken_table_and_an_unknown_topic_are_told_in_one_line():
    with pytest.raises(ValueError, match=r"does not have the 2 cells of 'animal says'"):
        rows("animal says", "dog: woof, cat")
    with pytest.raises(ValueError, match="no topic 'cofee'"):
        exchange("train", 0, 0, ["cofee"])
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        exchange("dev", 0, 0)
