"""`python -m train.data.samples`: the spoken questions of `assets/samples`, made again.

Their wording is held out of all training; their voices are of the kinds that training hears, but not the very same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import soundfile

from train.data.voices import SAMPLE_RATE, SynthesisError, Synthesizer, Voice

FOLDER = Path("assets/samples")


@dataclass(frozen=True)
class Sample:
    name: str
    text: str
    voice: Voice


SAMPLES = (
    Sample("animal", "What do you call a baby duck?", Voice("flite", "slt", rate=1.1, formants=0.92)),
    Sample("capital", "So, do you know the capital of Wales?", Voice("flite", "slt")),
    Sample("clock", "What is three hours after two o'clock?", Voice("festival", "cmu_us_slt_arctic_hts")),
    Sample("day", "Tell me the day that comes after Monday.", Voice("espeak-ng", "en-us+f4")),
    Sample("espresso", "I'll take an eight ounce espresso, please.", Voice("espeak-ng", "en-us+m3", rate=0.9)),
    Sample("latte", "Can I have a latte, please?", Voice("flite", "slt", pitch=1.15)),
    Sample("opposite", "Can you tell me the opposite of bad?", Voice("espeak-ng", "en-gb+f2")),
    Sample(
        "repeat", "Repeat after me: she watched the needle without a word.", Voice("festival", "kal_diphone", rate=1.1)
    ),
    Sample("spelling", "Do you know how to spell lemon?", Voice("flite", "awb", pitch=0.9, formants=0.93)),
    Sample("sum", "What is six times five?", Voice("flite", "awb")),
    Sample("unknown", "What did I eat yesterday?", Voice("espeak-ng", "en-gb-scotland+m2")),
    Sample("where", "Where are you from?", Voice("flite", "kal16")),
)


def make(folder: Path) -> None:
    """Speak them into `folder`, as 16 bit WAV."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: run this from the project's root")
    with Synthesizer() as synthesizer:
        for sample in SAMPLES:
            wave = synthesizer.speak(sample.text, sample.voice)
            soundfile.write(folder / f"{sample.name}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
            print(f"{sample.name}.wav  {len(wave) / SAMPLE_RATE:.1f} s  {sample.text}")


if __name__ == "__main__":
    try:
        make(FOLDER)
    except (SynthesisError, OSError) as error:
        sys.exit(f"error: {error}")
