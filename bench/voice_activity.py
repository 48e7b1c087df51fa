"""How well the voice app tells speech from noise: what it misses, when it starts for nothing, when it ends.

Truth comes from the clean sound by a rule of level alone (`speech_of`), which shares nothing with the detectors. Clips
are laid into a stream with silence around them, noise sounds through all of it, and the app's detector hears it beside
webrtcvad alone, which is smoothed as the app does in quiet but has no gate of level. Figures are over all noises, named
`vad_NAME_<dB>` after the level of speech over noise, or `vad_NAME_clean`:

- `miss`: share of the frames with speech that are not called speech
- `false_start`: stretches called speech that touch no speech, per minute without speech; `false`: share of the frames
  without speech that are called speech, hangover included. A detector that never falls silent has no false starts
- `onset_ms`: median wait from the true onset until speech is reported; `onset_error_ms`: by how much the onset that is
  then told misses it
- `endpoint_ms`: median from the true end to the end of what is called speech, pauses below 300 ms passed over, and
  `endpoint_p90_ms` what a tenth of the clips exceed; a stretch that goes on through all of the silence after the clip
  counts as that long, and `endless` is the share of such clips
- `lost`: share of clips in which nothing is called speech

With `_webrtc` they are those of webrtcvad alone; with `_human`, of recorded people instead of synthetic voices.
`vad_noise_starts_per_min` counts the starts in noise in which nobody speaks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from app.vad import FRAME, FRAME_MS, SAMPLE_RATE, VadSettings, VoiceActivity
from bench.report import Report
from train.data import test_sets
from train.data.noise import CAFE_VOICES, active_level, cafe, coloured, kitchen
from train.data.readers import read
from train.data.unheard import KINDS, Talkers
from train.data.voices import MissingEngine, SynthesisError, Synthesizer, Voice, training_voices, unseen_voices
from train.data.world import exchanges

SETTINGS = VadSettings()  # those of the app
SEED, QUESTIONS, BABBLERS = 83, 24, 2 * CAFE_VOICES
SNRS = (20, 15, 10, 5, 0)
SAMPLES = Path("assets/samples")
PEOPLE = test_sets.HUMAN_BESIDE_PROJECT.parent
SPEECH_DB, NOISE_DB = -26.0, -36.0  # dBFS of active speech, and of noise in which nobody speaks
LEVEL_DB = 40.0  # within so much of the loudest frame is speech
LONGEST_GAP, SHORTEST = 15, 5  # frames: a shorter gap is a closure within a word, a shorter sound alone a click
AROUND = round(1500 / FRAME_MS)  # frames of silence before a clip and after it
NOISE_S, PIECE_S = 60, 10  # a minute of noise; tunes and knocks change within it

Sound = Callable[[int], np.ndarray]  # samples -> so much of it


@dataclass(frozen=True)
class Stream:
    """Clips with silence around them, the frames that hold speech, and first and last + 1 of each clip's."""

    sound: np.ndarray
    speech: np.ndarray
    clips: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Decisions:
    """What a detector said of every frame, and where it then believed that the speech began (NaN: it does not tell)."""

    speech: np.ndarray
    onset_ms: np.ndarray


@dataclass
class Tally:
    """Counts over streams; times are milliseconds."""

    speech: int = 0
    missed: int = 0
    silence: int = 0
    false: int = 0
    false_starts: int = 0
    clips: int = 0
    lost: int = 0
    endless: int = 0
    onsets: list[float] = field(default_factory=list)
    onset_errors: list[float] = field(default_factory=list)
    endpoints: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """By name; what there was nothing to count for is left out."""
        found = {
            "miss": self.missed / self.speech if self.speech else None,
            "false_start": _per_minute(self.false_starts, self.silence) if self.silence else None,
            "false": self.false / self.silence if self.silence else None,
            "onset_ms": _median(self.onsets),
            "onset_error_ms": _median(self.onset_errors),
            "endpoint_ms": _median(self.endpoints),
            "endpoint_p90_ms": float(np.percentile(self.endpoints, 90)) if self.endpoints else None,
            "endless": self.endless / self.clips if self.clips else None,
            "lost": self.lost / self.clips if self.clips else None,
        }
        return {name: value for name, value in found.items() if value is not None}


def figures(report: Report, people: Path = PEOPLE) -> None:
    """Put the figures and notes into `report`. `people` holds the folder `barista` of recorded orders, or nothing."""
    spoken, talkers = _synthetic(report)
    recorded = _recorded(people, report)
    mixed: dict[str, Sound] = {
        "white": lambda samples: coloured(samples, 0, _rng(1)),
        "pink": lambda samples: coloured(samples, 1, _rng(2)),
        "babble": lambda samples: cafe(talkers, samples, _rng(3)),
        "kitchen": lambda samples: kitchen(samples, _rng(4)),
    }
    for suffix, clips in (("", spoken), ("_human", recorded)):
        if not clips:
            continue
        stream = laid_out(clips)
        report.figures[f"vad_clips{suffix}"] = len(clips)
        for snr, tallies in compared(stream, mixed, SNRS).items():
            for detector, tally in tallies.items():
                for name, value in tally.figures().items():
                    report.figures[f"vad_{name}_{snr}{suffix}{detector}"] = value
    for detector, starts in _starts_in_noise(mixed).items():
        report.figures[f"vad_noise_starts_per_min{detector}"] = statistics.mean(starts.values())
        for name, value in starts.items():
            report.figures[f"vad_noise_starts_per_min_{name}{detector}"] = value
    report.notes += [
        f"voice activity: speech at {SPEECH_DB:g} dBFS in {', '.join(mixed)} noise, broadband SNR over active speech; "
        f"true speech is what lies within {LEVEL_DB:g} dB of a clip's loudest 20 ms, gaps below "
        f"{LONGEST_GAP * FRAME_MS:g} ms closed; noise alone is at {NOISE_DB:g} dBFS, a minute of each",
        f"_webrtc: webrtcvad alone at aggressiveness {SETTINGS.aggressiveness}, smoothed as ours is in quiet, "
        f"without our gate of level; an endpoint includes its hangover of {SETTINGS.hangover_ms:g} ms",
    ]


def speech_of(clip: np.ndarray) -> np.ndarray:
    """Which 20 ms frames of a clean clip are speech, by level alone.

    They are those within 40 dB of the loudest, gaps below 300 ms closed; what is then shorter than 100 ms is a click.
    """
    frames = clip[: len(clip) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    speech = (power > 0) & (power >= power.max(initial=0.0) * 10 ** (-LEVEL_DB / 10))
    found = np.zeros(len(speech), dtype=bool)
    for start, end in stretches(speech, LONGEST_GAP):
        found[start:end] = end - start >= SHORTEST
    return found


def stretches(speech: np.ndarray, shortest_gap: int = 1) -> list[tuple[int, int]]:
    """(first, last + 1) of the runs of true frames; gaps of fewer frames than `shortest_gap` are closed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]]).astype(np.int8)))
    found: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        joins = found and start - found[-1][1] < shortest_gap
        found.append((found.pop()[0] if joins else start, end))
    return found


def trimmed(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A clip from the first to the last of its speech, as loud as all others, and which of its frames are speech."""
    truth = speech_of(clip)
    where = np.flatnonzero(truth)
    if not len(where):
        raise ValueError("a clip holds no speech: leave it out")
    first, end = int(where[0]), int(where[-1]) + 1
    sound = clip[first * FRAME : end * FRAME]
    return sound * (_amplitude(SPEECH_DB) / active_level(sound)), truth[first:end]


def laid_out(clips: Sequence[np.ndarray]) -> Stream:
    """Clips, cut to where speech is and equally loud, one after the other with silence before and after each."""
    sounds, truths, places, frames = [], [], [], 0
    for clip in clips:
        sound, truth = trimmed(clip)
        sounds.append(np.pad(sound, AROUND * FRAME))
        truths.append(np.pad(truth, AROUND))
        places.append((frames + AROUND, frames + AROUND + len(truth)))
        frames += len(truths[-1])
    return Stream(np.concatenate(sounds).astype(np.float32), np.concatenate(truths), tuple(places))


def in_noise(stream: Stream, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """The stream's sound in steady noise: active speech is `snr_db` above it, over all frequencies."""
    return stream.sound + at_level(noise, SPEECH_DB - snr_db)


def at_level(sound: np.ndarray, level_db: float) -> np.ndarray:
    level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    return (sound * (_amplitude(level_db) / level)).astype(np.float32)


def heard(sound: np.ndarray) -> dict[str, Decisions]:
    """What the app's detector says of the sound, and webrtcvad alone, by the suffix of their figures."""
    frames = VoiceActivity(SETTINGS).push(sound)
    onsets = [np.nan if frame.onset_ms is None else frame.onset_ms for frame in frames]
    alone = smoothed(np.array([frame.voiced for frame in frames], dtype=bool))
    return {
        "": Decisions(np.array([frame.speech for frame in frames], dtype=bool), np.array(onsets)),
        "_webrtc": Decisions(alone, np.full(len(frames), np.nan)),
    }


def smoothed(voiced: np.ndarray, settings: VadSettings = SETTINGS) -> np.ndarray:
    """Decisions begun and held as the app's are in quiet: by N of M frames, through pauses up to the hangover."""
    found = np.zeros(len(voiced), dtype=bool)
    speaking, since, pause_ms = False, 0, 0.0
    for i, now in enumerate(voiced):
        if not speaking:
            recent = voiced[max(since, i + 1 - int(settings.start_window)) : i + 1]
            speaking, pause_ms = int(recent.sum()) >= settings.start_frames, 0.0
        else:
            pause_ms = 0.0 if now else pause_ms + FRAME_MS
            if pause_ms > settings.hangover_ms:
                speaking, since = False, i + 1  # what ended this stretch begins no other
        found[i] = speaking
    return found


def count(stream: Stream, decisions: Decisions, tally: Tally) -> None:
    """Add what a detector got right and wrong in a stream."""
    truth, said = stream.speech, decisions.speech
    tally.speech += int(truth.sum())
    tally.missed += int((truth & ~said).sum())
    tally.silence += int((~truth).sum())
    tally.false += int((said & ~truth).sum())
    runs = stretches(said)
    tally.false_starts += sum(not truth[start:end].any() for start, end in runs)
    joined = stretches(said, LONGEST_GAP)
    for first, end in stream.clips:
        tally.clips += 1
        touching = [run for run in runs if run[0] < end and run[1] > first]
        if not touching:
            tally.lost += 1
            continue
        start = touching[0][0]
        # Known at the end of its frame; noise that speech then joins may have begun it at any time before
        tally.onsets.append(max(start + 1 - first, -AROUND) * FRAME_MS)
        if not np.isnan(decisions.onset_ms[start]):
            tally.onset_errors.append(abs(float(decisions.onset_ms[start]) - first * FRAME_MS))
        last = [run for run in joined if run[0] < end and run[1] > first][-1][1]
        tally.endless += last >= end + AROUND
        tally.endpoints.append(min(last - end, AROUND) * FRAME_MS)


def compared(stream: Stream, noises: dict[str, Sound], snrs: Sequence[float]) -> dict[str, dict[str, Tally]]:
    """Tallies by SNR, as it is named in figures, and detector, over all noises; and without noise, `clean`."""
    found = {name: {"": Tally(), "_webrtc": Tally()} for name in (*(f"{snr:g}" for snr in snrs), "clean")}
    for detector, decisions in heard(stream.sound).items():
        count(stream, decisions, found["clean"][detector])
    for make in noises.values():
        noise = make(len(stream.sound))
        for snr in snrs:
            for detector, decisions in heard(in_noise(stream, noise, snr)).items():
                count(stream, decisions, found[f"{snr:g}"][detector])
    return found


def markdown(report: Report) -> str:
    """A table for people: a row an SNR, the app's detector against webrtcvad alone, recorded people in brackets."""
    names, detectors = ("miss", "false", "false_start", "endpoint_ms"), ("", "_webrtc")
    heads = ("speech missed", "silence called speech", "false starts a minute", "end told after, ms")
    lines = [
        f"| SNR | {' | '.join(f'{head} | webrtcvad' for head in heads)} |",
        "|---" * (1 + 2 * len(heads)) + "|",
    ]
    for snr in (*map(str, SNRS), "clean"):
        cells = [_cell(report.figures, name, snr, detector) for name in names for detector in detectors]
        lines.append(f"| {' | '.join([snr if snr == 'clean' else f'{snr} dB', *cells])} |")
    noise = "vad_noise_starts_per_min"
    alone = [f"{report.figures[noise + detector]:.1f}" for detector in detectors]
    lines.append(f"| noise alone | | | | | {alone[0]} | {alone[1]} | | |")
    return "\n".join(lines)


def _cell(found: dict[str, float], name: str, snr: str, detector: str) -> str:
    form = {"miss": "{:.1%}", "false": "{:.1%}", "false_start": "{:.1f}", "endpoint_ms": "{:.0f}"}[name]
    values = [found.get(f"vad_{name}_{snr}{suffix}{detector}") for suffix in ("", "_human")]
    voices, people = ("-" if value is None else form.format(value) for value in values)
    return voices if people == "-" else f"{voices} ({people})"


def _synthetic(report: Report) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Questions, and sentences of other voices for babble; without the engines, the samples are both."""
    try:
        with Synthesizer() as synthesizer:
            texts = list(dict.fromkeys(item.question for item in exchanges("test", SEED, 4 * (QUESTIONS + BABBLERS))))
            spoken = list(_spoken(synthesizer, texts[:QUESTIONS], SEED, unseen_voices()))
            return spoken, list(_spoken(synthesizer, texts[QUESTIONS : QUESTIONS + BABBLERS], SEED + 1))
    except MissingEngine as error:
        report.notes.append(f"voice activity: speech and babble are those of {SAMPLES} alone: {error}")
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(SAMPLES.glob("*.wav"))]
    if len(clips) < CAFE_VOICES:
        raise FileNotFoundError(f"{SAMPLES} holds no {CAFE_VOICES} samples, and no speech engine is installed")
    return clips, clips


def _spoken(
    synthesizer: Synthesizer, texts: Sequence[str], seed: int, strange: tuple[Voice, ...] = ()
) -> Iterator[np.ndarray]:
    """Each text in a voice of its own, every third in one of the strange ones."""
    for number, text in enumerate(texts):
        voice = training_voices(seed, number)
        if strange and number % 3 == 2:
            voice = strange[number // 3 % len(strange)]
        try:
            yield synthesizer.speak(text, voice)
        except SynthesisError:  # a voice that cannot say it
            yield synthesizer.speak(text, training_voices(seed, number + len(texts)))


def _recorded(people: Path, report: Report) -> list[np.ndarray]:
    folder = people / "barista"
    if not folder.is_dir():
        report.notes.append(f"voice activity: no figures of people: there is no folder {folder}")
        return []
    return [clip.wave for clip in read("barista", folder, split="test")]


def _starts_in_noise(mixed: dict[str, Sound]) -> dict[str, dict[str, float]]:
    """Starts of speech per minute of each noise, by detector."""
    with Synthesizer() as synthesizer:  # which nothing here speaks with
        nobody = Talkers((), "test", synthesizer)

        def pieces(kind: str, seed: int) -> np.ndarray:
            made = [KINDS[kind][1](nobody, PIECE_S * SAMPLE_RATE, _rng(seed + i)) for i in range(NOISE_S // PIECE_S)]
            return np.concatenate([at_level(piece.wave[: PIECE_S * SAMPLE_RATE], NOISE_DB) for piece in made])

        sounds = {name: make(NOISE_S * SAMPLE_RATE) for name, make in mixed.items()}
        sounds |= {"fan": _fan(), "knocks": pieces("knocks", 100), "melody": pieces("melody", 200)}
    found: dict[str, dict[str, float]] = {}
    for name, sound in sounds.items():
        for detector, decisions in heard(at_level(sound, NOISE_DB)).items():
            runs = stretches(decisions.speech)
            found.setdefault(detector, {})[name] = _per_minute(len(runs), len(decisions.speech))
    return found


def _fan() -> np.ndarray:
    """Blades and the hum of their motor over the rush of air, slowly swelling."""
    samples = NOISE_S * SAMPLE_RATE
    time = np.arange(samples) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 50 * n * time + n) / n for n in range(1, 8))
    return 0.05 * hum + coloured(samples, 1.5, _rng(5)) * (1 + 0.2 * np.sin(2 * np.pi * 0.3 * time))


def _rng(stream: int) -> np.random.Generator:
    return np.random.default_rng((SEED, stream))


def _per_minute(starts: int, frames: int) -> float:
    return starts / (frames * FRAME_MS / 60_000)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _amplitude(level_db: float) -> float:
    return 10 ** (level_db / 20)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.voice_activity", description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=Path, default=PEOPLE, help="folder with recorded people (README)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    form.add_argument("--markdown", action="store_true", help="print the README's table")
    args = parser.parse_args(argv)
    report = Report("voice_activity")
    try:
        figures(report, args.people)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.markdown:
        print(markdown(report))
    else:
        report.show(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
