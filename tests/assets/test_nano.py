"""The shipped weights: that they are whole, small enough, and answer the sample questions."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import most_core
from most_core.speech import SpeechEncoder
from most_core.vocoder import Vocoder
from train.data.replies import UNHEARD
from train.unit_reader import UnitReader
from train.word_errors import same_words, verbatim_errors, word_errors

ASSETS = Path(__file__).parents[2] / "assets"
NANO = ASSETS / "nano"


@pytest.fixture(scope="module")
def ears():
    return SpeechEncoder.load(NANO)


@pytest.fixture(scope="module")
def mouth():
    return Vocoder.load(NANO)


@pytest.fixture(scope="module")
def most():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the fastest for a model of this size
    yield most_core.load(NANO, device="cpu")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def replies(most):
    """To the sample questions, with sound."""
    return [most.answer(wave) for wave, _ in samples()]


def samples():
    """(waveform, words) of each sample question, as the table in their README says."""
    rows = re.findall(r"^\| `(\w+\.wav)` \| (.*?) \|", (ASSETS / "samples/README.md").read_text(encoding="utf-8"), re.M)
    for name, said in rows:
        wave, rate = soundfile.read(ASSETS / "samples" / name, dtype="float32")
        assert rate == 16_000
        yield wave, re.sub(r"[^a-z' ]", "", said.lower())


def test_the_ears_hear_the_sample_questions(ears):
    waves, said = zip(*samples())
    assert len(said) == 12
    heard = [" ".join(word.text for word in ears.words(wave)) for wave in waves]
    errors, words = verbatim_errors(said, heard)
    assert errors.sum() / words.sum() < 0.25
    assert (errors == 0).sum() >= 5


def test_words_are_heard_when_they_are_said(ears):
    wave, _ = soundfile.read(ASSETS / "samples/sum.wav", dtype="float32")
    late = np.concatenate([np.zeros(16_000, np.float32), wave])
    early_words, late_words = ears.words(wave), ears.words(late)
    assert [word.text for word in early_words] == [word.text for word in late_words]
    for early, later in zip(early_words, late_words):
        assert later.start_s - early.start_s == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("level", [0, 1e-4, 0.1])
def test_nobody_is_heard_in_silence_or_noise(ears, level):
    noise = np.random.default_rng(0).normal(0, 1, 48_000).astype(np.float32) * level
    assert ears.words(noise) == []


def test_the_ears_do_not_mind_level_and_offset(ears):
    wave, _ = soundfile.read(ASSETS / "samples/clock.wav", dtype="float32")
    plain = [word.text for word in ears.words(wave)]
    assert [word.text for word in ears.words(wave * 0.01)] == plain
    assert [word.text for word in ears.words(wave * 0.5 + 0.2)] == plain


def test_units_tell_what_is_said_and_are_all_in_use(ears):
    reader = UnitReader.load(NANO)
    assert reader.clusters == ears.num_units == 500
    used = np.unique(np.concatenate([ears.units(wave) for wave, _ in samples()]))
    assert len(used) > 150
    waves, said = zip(*samples())
    errors, words = verbatim_errors(said, [reader.read(ears.units(wave)) for wave in waves])
    assert errors.sum() / words.sum() < 0.6


def test_the_mouth_is_understood_by_the_ears(ears, mouth):
    """Questions in any voice, turned into units and spoken again in nano's own."""
    waves, said = zip(*samples())
    heard = [" ".join(word.text for word in ears.words(mouth.synthesize(ears.units(wave)))) for wave in waves]
    errors, words = verbatim_errors(said, heard)
    assert errors.sum() / words.sum() < 0.5
    assert (errors == 0).sum() >= 3


def test_the_mouth_streams_what_it_says_at_once(ears, mouth):
    units = ears.units(next(samples())[0])
    stream = mouth.stream()
    chunks = [stream.push(units[start : start + 3]) for start in range(0, len(units), 3)]
    sound, whole = np.concatenate([*chunks, stream.finish()]), mouth.synthesize(units)
    assert len(sound) == 640 * len(units)
    assert np.abs(sound - whole).max() < 1e-4
    assert 0.1 < np.abs(whole).max() < 0.999


def test_the_mouth_is_small_and_its_figures_are_of_these_weights(mouth):
    part = NANO / "vocoder"
    size = sum(path.stat().st_size for path in part.iterdir())
    assert size <= 6e6
    assert sum(parameter.numel() for parameter in mouth.model.parameters()) <= 3_000_000
    figures = json.loads((NANO / "figures.json").read_text(encoding="utf-8"))["mouth"]["figures"]
    assert figures["vocoder_mb"] == pytest.approx(size / 1e6, rel=0.01)
    for name in ("original_wer", "resynth_wer", "resynth_wer_answers"):
        assert 0 <= figures[name + "_low"] <= figures[name] <= figures[name + "_high"]
    assert figures["stream_difference"] <= 1e-4


def test_it_is_small_and_its_figures_are_of_these_weights():
    sizes = {path: path.stat().st_size for path in NANO.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 40e6
    figures = json.loads((NANO / "figures.json").read_text(encoding="utf-8"))["ears"]["figures"]
    encoder = sum(size for path, size in sizes.items() if path.parent.name == "speech_encoder")
    encoder += sizes[NANO / "units.safetensors"]
    assert encoder - sizes[NANO / "speech_encoder/words.safetensors"] <= 12e6
    assert figures["encoder_mb"] == pytest.approx(encoder / 1e6, rel=0.01)
    for name in ("ctc_wer_seen", "ctc_wer_unseen", "slot_wer_human", "unit_wer_seen"):
        assert 0 <= figures[name + "_low"] <= figures[name] <= figures[name + "_high"]


ANSWERS = (  # in the order of the samples; two questions are hard for it
    "A baby duck is called a duckling.",
    "The capital of Wales is Cardiff.",
    "Three hours after two o'clock is five o'clock.",
    "Tuesday comes after Monday.",
    "One eight ounce espresso, coming up.",
    "One latte, coming up.",
    "The opposite of bad is good.",
    "She watched the needle without a word.",
    "Lemon is spelled L, E, M, O, N.",
    "Six times five is thirty.",
    "I don't know that yet.",
    "I live in this computer.",
)


def test_spoken_questions_are_heard_and_answered(replies):
    errors, words = word_errors([said for _, said in samples()], [reply.heard for reply in replies])
    assert errors.sum() / words.sum() < 0.15
    assert same_words(ANSWERS, [reply.text for reply in replies]).sum() >= 9


def test_answers_are_spoken_and_end(replies, ears):
    heard = []
    for reply in replies:
        assert reply.finish_reason == "stop"
        assert len(reply.waveform) == 640 * len(reply.units)
        assert 0.5 < len(reply.waveform) / 16_000 < 8
        heard.append(" ".join(word.text for word in ears.words(reply.waveform)))
    errors, words = word_errors([reply.text for reply in replies], heard)
    assert errors.sum() / words.sum() < 0.4


def test_typed_questions_and_follow_ups_are_answered(most):
    silent = most_core.GenerationSettings(speak=False)
    assert most.answer("What is the capital of France?", settings=silent).text == "The capital of France is Paris."
    turns = [
        {"role": "user", "content": "I would like a small latte, please."},
        {"role": "assistant", "content": "One small latte, coming up."},
        {"role": "user", "content": "Make it a large one, please."},
    ]
    assert most.answer(turns, settings=silent).text == "One large latte, coming up."


@pytest.mark.parametrize("level", [0, 1e-4, 0.1])
def test_to_silence_and_noise_it_says_that_it_caught_nothing(most, level):
    noise = np.random.default_rng(1).normal(0, 1, 32_000).astype(np.float32) * level
    reply = most.answer(noise, settings=most_core.GenerationSettings(speak=False))
    assert (reply.heard, reply.text) == ("", UNHEARD)


def test_no_token_meets_an_expert_of_the_other_modality(most):
    wave, _ = next(samples())
    trace = most.answer(wave, record_routing=True).trace
    assert trace.leakage == 0
    assert {0, 1} == set(np.unique(trace.modality))


def test_the_figures_are_whole():
    figures = json.loads((NANO / "figures.json").read_text(encoding="utf-8"))["nano"]["figures"]
    for name in ("asr_wer_seen", "asr_wer_unseen", "asr_wer_human", "tts_wer", "qa_text_seen", "qa_text_unseen"):
        assert 0 <= figures[name + "_low"] <= figures[name] <= figures[name + "_high"]
    for name in ("qa_speech_seen", "orders_human", "orders_snr_mean", "confidence_ece", "text_loss_stage1"):
        assert name in figures
    for name in ("control_silence", "control_shuffled", "control_no_audio"):
        assert figures[name] <= figures["majority_rate"] + 0.03
