"""Orders: the sentences that agree with a clip's slots, which of them was said, and word errors on the slots."""

import subprocess

import numpy as np
import pytest
import torch

from train.data.orders import candidates, grammar, pocketsphinx_transcripts, slot_errors, slot_words, transcripts
from train.data.readers import OrderClip

SLOTS = {"coffeeDrink": "latte", "size": "large", "roast": "dark roast", "milkAmount": "a bit of soy milk"}
FULL = {"numberOfShots": "double shot", "sugarAmount": "some brown sugar", **SLOTS}
VOCAB = {text: index for index, text in enumerate(["<pad>", "|", "'", *"abcdefghijklmnopqrstuvwxyz"])}


def clip(slots, wave=None, name="one"):
    wave = np.zeros(16_000, np.float32) if wave is None else wave
    return OrderClip(name, "barista-4", None, wave, "source", "licence", slots=slots)


def heard_as(text, frames_a_letter=2, sure=0.8):
    """Frames in which a CTC model spells the text, each letter followed by a blank."""
    ids = [VOCAB["|" if letter == " " else letter] for letter in text]
    path = torch.tensor([[index] * (frames_a_letter - 1) + [0] for index in ids]).flatten()
    others = (1 - sure) / (len(VOCAB) - 1)
    return torch.full((len(path), len(VOCAB)), others).scatter_(1, path[:, None], sure).log()


def test_candidates_hold_every_ordering_of_the_slots_and_nothing_twice():
    texts = candidates(SLOTS)
    assert len(texts) == len(set(texts)) == 10 * 3 * 2
    for text in (
        "can i get a large dark roast latte with a bit of soy milk",
        "i'd like dark roast large latte with a bit of soy milk",
        "an large dark roast latte with a bit of soy milk",
        "large dark roast latte with a bit of soy milk",
    ):
        assert text in texts
    both_ways = candidates(FULL)
    assert len(both_ways) == len(set(both_ways)) == 10 * 3 * 6 * 2
    assert "brew a latte" in candidates({"coffeeDrink": "latte"})
    assert any(text.endswith("latte with some brown sugar and a bit of soy milk") for text in both_ways)


@pytest.mark.parametrize("slots", [{"size": "large"}, {"coffeeDrink": "latte", "temperature": "hot"}])
def test_slots_of_no_order_are_an_error(slots):
    with pytest.raises(ValueError, match="is no coffee order"):
        candidates(slots)


@pytest.mark.parametrize(
    "said",
    [
        "give me a dark roast large latte with a bit of soy milk",
        "i'd like large dark roast latte with a bit of soy milk",
        "dark roast large latte with a bit of soy milk",
    ],
)
def test_ctc_scores_find_what_was_said(said):
    found = transcripts([clip(SLOTS)], lambda wave: heard_as(said), VOCAB)
    assert found["one"].text == said
    assert found["one"].margin > 0


def test_the_margin_grows_with_certainty_and_is_per_frame():
    said = "give me a dark roast large latte with a bit of soy milk"
    margins = [
        transcripts([clip(SLOTS)], lambda wave, sure=sure: heard_as(said, sure=sure), VOCAB)["one"].margin
        for sure in (0.1, 0.5, 0.9)
    ]
    assert 0 < margins[0] < margins[1] < margins[2] < 5


def test_a_model_that_mishears_still_gives_a_sentence_of_the_grammar():
    misheard = "gif me a dag rose larch lat aye with a bit soy mulk"
    found = transcripts([clip(SLOTS)], lambda wave: heard_as(misheard), VOCAB)
    assert found["one"].text == "give me a dark roast large latte with a bit of soy milk"


def test_a_clip_too_short_for_its_slots_is_left_out():
    found = transcripts([clip(SLOTS)], lambda wave: heard_as("latte"), VOCAB)
    assert found == {}


def test_grammar_allows_just_the_candidates():
    text = grammar({"coffeeDrink": "americano"})
    assert text.startswith("#JSGF V1.0;\n")
    assert "/0.80/ an | /0.04/ a " in text  # English, though people do say "a americano"
    assert "/0.80/ a | /0.04/ an " in grammar({"coffeeDrink": "latte"})


def test_pocketsphinx_hears_a_synthetic_order(tmp_path):
    pytest.importorskip("pocketsphinx")
    soundfile = pytest.importorskip("soundfile")
    said = "can i get a large dark roast latte with a bit of soy milk"
    path = tmp_path / "order.wav"
    try:
        subprocess.run(["flite", "-voice", "slt", "-t", said, "-o", path], check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("flite is not installed")
    wave, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    orders = [clip({"coffeeDrink": "mocha"}, name="silence"), clip(SLOTS, wave)]
    found = pocketsphinx_transcripts(orders)
    assert found["one"].text == said
    assert 0 < found["one"].margin <= 1


def test_slot_words_in_the_order_of_the_grammar():
    assert slot_words(FULL) == [
        "large",
        "dark",
        "roast",
        "double",
        "shot",
        "latte",
        "a",
        "bit",
        "of",
        "soy",
        "milk",
        "some",
        "brown",
        "sugar",
    ]


MILKY = {"coffeeDrink": "coffee", "milkAmount": "milk"}


@pytest.mark.parametrize(
    ("heard", "slots", "errors"),
    [
        ("Can I get a coffee with milk?", MILKY, 0),
        ("coffee with milk please", MILKY, 0),  # the rest of the sentence is not judged
        ("could you make me one coffee and milk", MILKY, 0),
        ("i want a coffee with soy milk", MILKY, 1),  # a milk that was not said
        ("i want an iced coffee with milk", MILKY, 1),
        ("i want a coffee", MILKY, 1),
        ("i want a coffee with a lot of soy milk", MILKY, 4),
        ("", MILKY, 2),
        ("i want a copy with silk", MILKY, 2),
        ("dark roast large latte with a bit of soy milk", SLOTS, 0),  # slots in any order
        ("large dark roast latte with a bit of soy milk", SLOTS, 0),
        ("a large roast dark latte with bit of soy milk", SLOTS, 3),
        ("get me a latte with some brown sugar and a bit of soy milk", FULL, 5),
    ],
)
def test_slot_errors(heard, slots, errors):
    assert slot_errors(heard, slots) == (errors, len(slot_words(slots)))


def test_every_candidate_is_without_error():
    assert all(slot_errors(text, SLOTS) == (0, 9) for text in candidates(SLOTS)[::7])
