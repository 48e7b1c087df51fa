import shutil

import numpy as np
import pytest

from train.data.voices import Synthesizer, Voice
from train.recognizer import choose_all, dictionary, hear_all, prepared, words_of_all
from train.trigram import Trigram

pytest.importorskip("pocketsphinx")


def test_its_dictionary_is_of_plain_words():
    words = dictionary()
    assert {"the", "don't", "breakfast", "a"} <= words
    assert not [word for word in words if "(" in word or word != word.lower()]


def test_silence_is_not_digital():
    samples = np.frombuffer(prepared(np.zeros(1600, np.float32)), "<i2")
    assert len(samples) == 1600 + 2 * 3200
    assert 0.5 < samples.std() < 2
    assert prepared(np.zeros(1600, np.float32)) == samples.tobytes()


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_it_hears_what_a_synthesizer_says(tmp_path):
    texts = ["what is seven plus five", "good morning", "the sky is blue"]
    lines = [text.split() for text in texts]
    Trigram(lines, {word for line in lines for word in line}).write(tmp_path / "model.arpa")
    with Synthesizer() as synthesizer:
        waves = [synthesizer.speak(text, Voice("flite", "slt")) for text in texts]
    assert hear_all(tmp_path / "model.arpa", waves, workers=1) == texts


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_with_its_own_language_it_tells_when_words_are_said_and_how_sure_it_is():
    with Synthesizer() as synthesizer:
        wave = synthesizer.speak("what is the time", Voice("flite", "slt"))
    later = np.concatenate([np.zeros(16_000, np.float32), wave])
    first, second = words_of_all([wave, later], workers=1)
    assert [word.text for word in first] == [word.text for word in second] == ["what", "is", "the", "time"]
    assert 0 <= first[0].start_s < first[-1].end_s <= len(wave) / 16_000 + 0.05
    assert second[0].start_s - first[0].start_s == pytest.approx(1, abs=0.1)
    assert all(0 <= word.confidence <= 1 for word in first)
    assert first[-1].confidence > 0.5
    assert len({word.confidence for word in first}) > 1


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_it_tells_which_of_the_candidates_is_said():
    said = ["the sky is blue", "seven plus five is twelve"]
    with Synthesizer() as synthesizer:
        waves = [synthesizer.speak(text, Voice("flite", "slt")) for text in said]
    candidates = ["seven plus five is eleven", *said, "the sea is blue", "the sky is blue today"]
    assert choose_all(candidates, [*waves, np.zeros(0, np.float32)], workers=1) == [*said, ""]
