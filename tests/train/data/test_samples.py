"""The questions shipped as sound: small files of the promised form, said as listed, with wording kept from training."""

import soundfile

from train.data.samples import FOLDER, SAMPLES
from train.data.utterance import spoken_letters
from train.data.voices import UNSEEN
from train.data.world import exchanges


def test_each_is_a_small_wav_that_the_readme_lists():
    readme = (FOLDER / "README.md").read_text()
    assert sorted(path.name for path in FOLDER.glob("*.wav")) == sorted(f"{sample.name}.wav" for sample in SAMPLES)
    for sample in SAMPLES:
        path = FOLDER / f"{sample.name}.wav"
        found = soundfile.info(path)
        assert (found.samplerate, found.channels, found.subtype) == (16000, 1, "PCM_16")
        assert path.stat().st_size < 100_000
        assert f"| `{path.name}` | {sample.text} | {sample.voice.engine} {sample.voice.name}" in readme


def test_voices_are_none_of_those_kept_for_judging():
    kept = {(voice.engine, voice.name) for voice in UNSEEN}
    assert not kept & {(sample.voice.engine, sample.voice.name) for sample in SAMPLES}


def test_wording_is_not_among_training_questions():
    training = {spoken_letters(item.question) for item in exchanges("train", seed=1, count=6000)}
    assert not training & {spoken_letters(sample.text) for sample in SAMPLES}
