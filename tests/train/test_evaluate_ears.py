"""Evaluation of the ears on stand-in test sets: an encoder that hears what a test says, and a random one."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from most_core.speech import CtcHead, Encoded, SpeechEncoder, Word, untrained_encoder
from train import __main__ as cli
from train import evaluate_ears
from train.config import RunOptions
from train.data import noise, orders, synthesize, test_sets
from train.data.mixture import LETTERS
from train.data.readers import OrderClip
from train.data.shards import describe_shard, write_manifest, write_shard
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine
from train.unit_reader import UnitReader

UTTERANCES = 16
UNITS = 8
# Voice, slots, what was said, what the ears of `knowing` hear
ORDERS = [
    ("1", {"coffeeDrink": "latte", "size": "small"}, "get me a small latte", "got me a small latte"),
    (
        "5",
        {"coffeeDrink": "mocha", "sugarAmount": "brown sugar"},
        "make me a mocha with brown sugar",
        "a mocha with sugar",
    ),
    ("5", {"coffeeDrink": "espresso"}, None, "a dark roast"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small random encoder that spells two letters a frame; read only."""
    folder = tmp_path_factory.mktemp("model")
    encoder = untrained_encoder(16, UNITS)
    weight = torch.randn(2 * len(LETTERS), 16, generator=torch.Generator().manual_seed(0))
    encoder.ctc = CtcHead(weight, torch.zeros(len(weight)), LETTERS, layer=2)
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Shards of hum in place of the sets "seen" and "unseen"; every utterance has a length of its own."""
    folder = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_sets, "UTTERANCES", UTTERANCES)
        for at, name in enumerate(("seen", "unseen")):
            config = test_sets.config_of(name)
            rng = np.random.default_rng(at)
            items = []
            for row in range(UTTERANCES):
                text, task = test_sets.text_of(config, row)
                wave = rng.uniform(-0.5, 0.5, 10_000 + 2000 * row + at).astype(np.float32)
                speaker = synthesize.voice(config, row, 0).speaker
                items.append(Utterance(f"{name}/{row}/0", speaker, text, wave, "", "", "test", task))
            write_shard(folder / name / "speech-00000.arrow", items)
            write_manifest(folder / name, [describe_shard(folder / name / "speech-00000.arrow")], config.generator)
    return folder


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Small sets, no engine, three orders, and PocketSphinx in a good mood."""

    def run(*_):
        raise MissingEngine("flite is not installed: run `apt install flite`")

    def read(kind, folder, split):
        if kind != "barista" or split != "test":
            raise AssertionError("not the held-out voices")
        rng = np.random.default_rng(7)
        for row, (voice, slots, *_) in enumerate(ORDERS):
            wave = rng.uniform(-0.3, 0.3, 9000 + row).astype(np.float32)
            yield OrderClip(f"order-{row}", f"barista-{voice}", None, wave, "", "", "test", slots=slots)

    aligned = {f"order-{row}": orders.Transcript(said, 1.0) for row, (_, _, said, _) in enumerate(ORDERS) if said}
    monkeypatch.setattr(test_sets, "UTTERANCES", UTTERANCES)
    monkeypatch.setattr(synthesize, "run", run)
    monkeypatch.setattr(test_sets.readers, "read", read)
    monkeypatch.setattr(orders, "pocketsphinx_transcripts", lambda clips: aligned)
    monkeypatch.setattr(evaluate_ears, "ROUNDS", 1)
    monkeypatch.setenv(test_sets.HUMAN_VARIABLE, "orders")
    monkeypatch.delenv("MOST_DEBUG", raising=False)


@pytest.fixture
def knowing(monkeypatch, spoken):
    """Ears that know every utterance by its length, mishear some of them, and hear nothing in noise below 20 dB."""
    heard = {9000 + row: text for row, (*_, text) in enumerate(ORDERS)}
    for name in ("seen", "unseen"):
        for utterance in test_sets.load(name, spoken):
            text = spoken_letters(utterance.text)
            if "ked_diphone" in utterance.speaker:
                text = "zebra " + text
            if name == "seen" and utterance.task == "asr":
                text = ""
            heard[len(utterance.wave)] = text
    clean = {}

    def words(self, wave):
        known = clean.get(len(wave))
        if known is not None:
            loudness = float(np.mean(known**2) / max(np.mean((wave - known) ** 2), 1e-9))
            if loudness < 10**1.5:
                return []
        return [Word(word.upper(), 0.0, 1.0, 1.0) for word in heard[len(wave)].split()]

    def encode(self, wave):
        clean[len(wave)] = wave
        return Encoded(torch.zeros(1, 16), np.array([len(wave) % UNITS]), lambda: words(self, wave))

    def letter_log_probs(self, wave):
        """Everybody spells "late"."""
        rows = [{letter: 1} for letter in "late"]
        probabilities = torch.full((len(rows), len(LETTERS)), 1e-4)
        for row, letters in zip(probabilities, rows):
            for letter, share in letters.items():
                row[LETTERS[letter]] = share
        return probabilities.log()

    monkeypatch.setattr(SpeechEncoder, "encode", encode)
    monkeypatch.setattr(SpeechEncoder, "letter_log_probs", letter_log_probs)
    monkeypatch.setattr(SpeechEncoder, "words", words)


def evaluated(capsys, model, spoken, **options):
    assert evaluate_ears.run(model, True, RunOptions(threads=1), spoken, **options) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_figures_count_what_was_misheard(capsys, model, spoken, knowing):
    figures = evaluated(capsys, model, spoken)["figures"]
    assert (figures["n_seen"], figures["n_unseen"], figures["n_human"]) == (16, 16, 3)
    assert figures["ctc_wer_seen_questions"] == 0
    assert figures["ctc_wer_seen_sentences"] == 1
    assert 0 <= figures["ctc_wer_seen_low"] < figures["ctc_wer_seen"] < figures["ctc_wer_seen_high"] <= 1
    assert figures["ctc_wer_unseen_rms"] == 0
    assert (figures["n_unseen_rms"], figures["n_unseen_ked_diphone"]) == (8, 8)
    said = [utterance.text for utterance in test_sets.load("unseen", spoken)]
    assert figures["ctc_wer_unseen_verbatim"] == pytest.approx(
        8 / sum(len(spoken_letters(text).split()) for text in said), abs=1e-4
    )
    assert sum(figures.get(f"n_seen_{engine}", 0) for engine in ("espeak", "flite", "festival")) == 16


def test_orders_are_judged_by_their_slots_and_by_every_word(capsys, model, spoken, knowing):
    told = evaluated(capsys, model, spoken, only=["human"])
    figures = told["figures"]
    # Small latte, mocha brown sugar, espresso: "brown" is missed, and "espresso" taken for something else
    assert figures["slot_wer_human"] == pytest.approx(2 / 6, abs=1e-4)
    assert figures["slot_wer_human_voice_1"] == 0
    assert figures["slot_wer_human_voice_5"] == 2 / 4
    assert figures["n_human_voice_5"] == 2
    # In letters everybody says "late", which is none of the slots
    assert figures["spelled_slot_wer_human"] == 1
    assert figures["spelled_slot_wer_human_voice_1"] == 1
    # "got" for "get"; "make", "me" and "brown" missed; nobody knows all words of the third
    assert figures["ctc_wer_human"] == pytest.approx(4 / 12, abs=1e-4)
    assert "2 of 3 orders" in " ".join(told["notes"])
    assert "n_seen" not in figures


def test_in_noise_the_same_is_measured(capsys, model, spoken, knowing):
    figures = evaluated(capsys, model, spoken)["figures"]
    for figure in ("ctc_wer_seen", "ctc_wer_unseen", "slot_wer_human", "ctc_wer_human"):
        assert figures[f"{figure}_snr_5"] == figures[f"{figure}_snr_10"] == 1
        assert figures[f"{figure}_snr_20"] == figures[figure]


def test_a_random_encoder_by_the_command_line(capsys, model, spoken, tmp_path):
    out = tmp_path / "figures.json"
    out.write_text('{"mouth": {}}')
    command = ["evaluate", "ears", "--model", str(model), "--data", str(spoken), "--device", "cpu"]
    assert cli.main([*command, "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["bench"] == "ears"
    assert set(told["machine"]) == {"cpu", "cores", "gpu", "torch"}
    for name in ("ctc_wer_seen", "ctc_wer_unseen", "slot_wer_human", "ctc_wer_human"):
        for condition in ("", "_snr_20", "_snr_10", "_snr_5"):
            name_in = name + condition
            assert told["figures"][name_in + "_low"] <= told["figures"][name_in] <= told["figures"][name_in + "_high"]
    assert 0 < told["figures"]["encoder_rtf_1t"] < 1
    assert told["figures"]["encoder_mb"] > 4 * told["figures"]["encoder_parameters_m"] > 0
    assert "unit_wer_seen" not in told["figures"]
    assert any("unit_reader.safetensors is not there" in note for note in told["notes"])
    assert json.loads(out.read_text()) == {"mouth": {}, "ears": told}

    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "at most 4 %: MISS" in shown
    again = [line for line in shown.splitlines() if line.startswith("ctc_wer_seen_snr_5 ")]
    percent = float(again[0].split()[1])
    assert percent == pytest.approx(100 * told["figures"]["ctc_wer_seen_snr_5"], rel=1e-3)


def test_units_are_read_where_the_checkpoint_has_a_reader(capsys, monkeypatch, model, spoken):
    class Reader:
        clusters = UNITS

        def read(self, units):
            return "get me a small latte"

    monkeypatch.setattr(UnitReader, "load", lambda folder: Reader())
    figures = evaluated(capsys, model, spoken)["figures"]
    wrong = [orders.slot_errors("get me a small latte", slots)[0] for _, slots, *_ in ORDERS]
    assert figures["unit_slot_wer_human"] == pytest.approx(sum(wrong) / 6, abs=1e-4)
    # All is right of the first order; of the second, "me a" is
    assert figures["unit_wer_human"] == pytest.approx(5 / 12, abs=1e-4)
    assert {"unit_wer_seen", "unit_wer_unseen"} <= set(figures)
    Reader.clusters = UNITS + 1
    with pytest.raises(ValueError, match="reads 9 units, but the encoder has 8"):
        evaluated(capsys, model, spoken)


def test_background_is_seeded_and_says_nothing_of_the_utterance(monkeypatch, spoken):
    seen, unseen = (test_sets.load(name, spoken) for name in ("seen", "unseen"))
    for row, utterance in enumerate(unseen):
        sound = evaluate_ears.background(row, utterance, seen)
        assert len(sound) == len(utterance.wave)
        assert np.array_equal(sound, evaluate_ears.background(row, utterance, seen))
    guests = []
    monkeypatch.setattr(noise, "cafe", lambda waves, samples, rng: guests.append(waves))
    monkeypatch.setattr(noise, "kitchen", lambda samples, rng: guests.append(None))
    for row, utterance in enumerate(unseen):
        evaluate_ears.background(row, utterance, seen)
    assert sum(waves is None for waves in guests) == UTTERANCES // 2
    for row, waves in enumerate(guests):
        if waves is not None:
            assert len(waves) == min(evaluate_ears.TALKERS, UTTERANCES - 1)
            assert not any(wave is seen[row].wave for wave in waves)
    kitchens = {(unseen[row].speaker, unseen[row].task) for row, waves in enumerate(guests) if waves is None}
    assert len(kitchens) == 4  # both voices and both kinds of text, or the figures of each would be of one noise only


def test_what_cannot_be_had_is_left_out_with_a_note(capsys, monkeypatch, model, spoken, tmp_path):
    monkeypatch.delenv(test_sets.HUMAN_VARIABLE)
    monkeypatch.setattr(test_sets, "HUMAN_BESIDE_PROJECT", tmp_path / "no")
    told = evaluated(capsys, model, spoken)
    assert not [name for name in told["figures"] if "human" in name]
    assert any("no figures of human: " in note and "Picovoice" in note for note in told["notes"])

    told = evaluated(capsys, model, tmp_path, human=tmp_path)
    assert not [name for name in told["figures"] if "seen" in name or "snr" in name]
    assert "slot_wer_human" in told["figures"]
    assert any("no figures of seen: " in note and "apt install flite" in note for note in told["notes"])
    assert any("no figures in noise" in note for note in told["notes"])
    with pytest.raises(OSError, match=r"no test set to measure with: .*apt install flite"):
        evaluated(capsys, model, tmp_path)


def test_without_pocketsphinx_slots_are_still_judged(capsys, monkeypatch, model, spoken):
    def absent(clips):
        raise ModuleNotFoundError("pip install pocketsphinx")

    monkeypatch.setattr(orders, "pocketsphinx_transcripts", absent)
    told = evaluated(capsys, model, spoken, only=["human"])
    assert "slot_wer_human" in told["figures"]
    assert not [name for name in told["figures"] if name.startswith("ctc_wer_human")]
    assert "no ctc_wer_human: pip install pocketsphinx" in told["notes"]


def test_speed_is_taken_on_one_thread(capsys, monkeypatch, model, spoken):
    threads, lengths = [], []
    encode = SpeechEncoder.encode

    def spy(self, wave):
        threads.append(torch.get_num_threads())
        lengths.append(len(wave))
        return encode(self, wave)

    waves = [utterance.wave for utterance in test_sets.load("seen", spoken)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(SpeechEncoder, "encode", spy)
        evaluate_ears._measure_cost(evaluate_ears.Scoreboard("ears"), model, waves)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert all(2 <= length / 16_000 <= 6 for length in lengths)
    first, second = np.array_split(lengths, 2)  # a round to warm up, and the one that counts
    assert list(first) == list(second)
    assert all(a < b for a, b in pairwise(first))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model", "nowhere"], "nowhere holds no complete speech encoder"),
        (
            ["--only", "seen", "noise"],
            "error: --only noise: there is no such test set; choose from seen, unseen, human",
        ),
        (["--out", "nowhere/figures.json"], "error: --out nowhere/figures.json: nowhere is no folder; make it first"),
    ],
)
def test_wrong_input_is_one_line(capsys, model, flags, line):
    assert cli.main(["evaluate", "ears", "--model", str(model), *flags]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert line in said


def test_an_encoder_that_cannot_spell_is_refused(capsys, tmp_path):
    untrained_encoder(16, UNITS).save(tmp_path)
    capsys.readouterr()
    assert cli.main(["evaluate", "ears", "--model", str(tmp_path)]) == 2
    assert "has no CTC head" in capsys.readouterr().err.splitlines()[-1]
