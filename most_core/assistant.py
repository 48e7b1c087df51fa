"""`Most`: hears, answers and speaks. Decoder, tokenizer, speech encoder and vocoder behind four verbs.

most = most_core.load("assets/nano")
reply = most.answer(waveform)          # reply.heard, reply.text, reply.waveform, ...
for event in most.stream(messages):    # HeardDelta, TextDelta, SpeechDelta, RoutingDelta, then Done
    ...
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from most_core.checkpoint_files import written_whole
from most_core.decoder import Decoder
from most_core.generation import DONE, HEARD, SPEECH, TEXT, Generation, GenerationSettings, ReplyGrammar, TokenLoop
from most_core.model import MostForCausalLM
from most_core.processing import SPEAK, TRANSCRIBE, Message, MostProcessor, Prompt, as_messages
from most_core.speech import SAMPLE_RATE, Word, mono_samples
from most_core.trace import RoutingRecorder, RoutingRows, RoutingTrace
from most_core.vocoder import Vocoder

ROUTING_INTERVAL_S = 0.1
LISTEN_INTERVAL_S = 0.4
STAGES = ("encode", "prefill", "heard", "text", "units", "vocoder")


@dataclass(frozen=True)
class HeardDelta:
    """More of what was heard; a provisional one replaces all heard so far and is replaced at commit."""

    text: str
    provisional: bool = False


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class SpeechDelta:
    pcm: np.ndarray  # float32 mono
    sample_rate: int
    stages: Mapping[str, float] = field(default_factory=dict)  # milliseconds by stage that the reply took up to here


@dataclass(frozen=True)
class RoutingDelta:
    tokens: RoutingRows
    provisional: bool = False


@dataclass(frozen=True)
class Reply:
    """A finished reply. `confidence` is the probability of the least sure word heard or answered; `timings` are
    milliseconds: stages (encode, prefill, heard, text, units, vocoder) and moments since the start (first_unit,
    first_sound, total; a silent reply has no first ones)."""

    text: str
    waveform: np.ndarray
    sample_rate: int
    units: list[int]
    heard: str
    words: list[Word]
    confidence: float
    finish_reason: str
    trace: RoutingTrace | None
    timings: dict[str, float]


@dataclass(frozen=True)
class Done:
    reply: Reply


Event = HeardDelta | TextDelta | SpeechDelta | RoutingDelta | Done


class Most:
    """The whole model. Without a vocoder it only writes; without the processor's encoder it only reads."""

    def __init__(
        self,
        model: MostForCausalLM,
        decoder: Decoder,
        processor: MostProcessor,
        vocoder: Vocoder | None = None,
    ) -> None:
        self.model, self.processor, self.encoder, self.vocoder = model, processor, processor.encoder, vocoder
        self.config, self.tokens = model.config, processor.tokens
        self.loop = TokenLoop(decoder)

    # -- the four verbs --------------------------------------------------------------------------------------------

    def stream(
        self,
        given: str | np.ndarray | torch.Tensor | Sequence[Message],
        *,
        settings: GenerationSettings | None = None,
        cancel: threading.Event | None = None,
        record_routing: bool = False,
        knock_out: Sequence[tuple[int, int]] = (),
        sampling_rate: int = SAMPLE_RATE,
    ) -> Iterator[Event]:
        """Answer a text (never a path), a waveform or a conversation, event by event; the last event is `Done`.

        Without `settings` it is greedy, and as long as the checkpoint's generation_config.json allows
        (`max_new_tokens`). Set `cancel` from any thread to stop within one token. `knock_out` switches (decoder layer,
        expert) pairs off. An unfinished iterator holds one of the model's slots (four, unless loaded with more;
        further calls wait): exhaust it or close it.
        """
        clock = _Clock()
        messages = as_messages(given, sampling_rate)
        with clock.stage("encode"):
            prompt = self._prompt(messages)
        reply = _Reply(clock, "" if prompt.has_speech else _last_text(messages), prompt)
        yield from self._answer(prompt, settings, reply, cancel, record_routing, knock_out)

    def stream_prompt(
        self,
        prompt: Prompt,
        *,
        settings: GenerationSettings | None = None,
        cancel: threading.Event | None = None,
        record_routing: bool = False,
        knock_out: Sequence[tuple[int, int]] = (),
    ) -> Iterator[Event]:
        """`stream()` of a prompt that is there already, such as that of a recorded reply (`most_core.replay`). What was
        heard is "" where the prompt ends with text."""
        yield from self._answer(prompt, settings, _Reply(_Clock(), prompt=prompt), cancel, record_routing, knock_out)

    def answer(
        self,
        given: str | np.ndarray | torch.Tensor | Sequence[Message],
        history: Sequence[Message] = (),
        **options: object,
    ) -> Reply:
        """`stream()`, collected. `history` holds earlier turns."""
        messages = [*history, *as_messages(given, options.pop("sampling_rate", SAMPLE_RATE))]
        return _last(self.stream(messages, **options))

    def transcribe(self, waveform: np.ndarray | torch.Tensor, sampling_rate: int = SAMPLE_RATE) -> str:
        """What was said, decoded freely by the language model under its ASR prompt."""
        return "".join(event.text for event in self.stream_transcript(waveform, sampling_rate)).strip()

    def stream_transcript(
        self,
        waveform: np.ndarray | torch.Tensor,
        sampling_rate: int = SAMPLE_RATE,
        *,
        cancel: threading.Event | None = None,
    ) -> Iterator[HeardDelta]:
        """`transcribe()`, piece by piece. Exhaust or close it, as `stream()`."""
        audio = {"type": "audio", "audio": waveform, "sampling_rate": sampling_rate}
        messages = [{"role": "user", "content": [{"type": "text", "text": TRANSCRIBE}, audio]}]
        running = self.loop.start(self._prompt(messages), GenerationSettings(max_new_tokens=256), cancel=cancel)
        text_stream = self.processor.text_stream()
        try:
            while made := self.loop.step([running]):
                token = made[0][1].id
                if token not in running.stop_ids and (piece := text_stream.push(token)):
                    yield HeardDelta(piece)
        finally:
            self.loop.finish(running)

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        """Read `text` aloud, sentence by sentence: (waveform, sample rate)."""
        waves = [event.pcm for event in self.stream_speech(text)]
        return np.concatenate(waves), self.vocoder.sample_rate

    def stream_speech(self, text: str, *, cancel: threading.Event | None = None) -> Iterator[SpeechDelta]:
        """`speak()`, piece by piece. Exhaust or close it, as `stream()`."""
        if self.vocoder is None:
            raise ValueError("this model was loaded without a vocoder: add vocoder/ to its folder")
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
        if not sentences:
            raise ValueError("there is no text to speak: give at least one word")
        settings = GenerationSettings(stop_ids=(self.tokens.audio_end,))
        for sentence in sentences:
            prompt = self._prompt([{"role": "user", "content": f"{SPEAK} {sentence}"}])
            prompt.ids.append(self.tokens.audio_start)
            for event in self._reply(prompt, settings, SPEECH, _Reply(_Clock()), cancel):
                if isinstance(event, SpeechDelta):
                    yield event

    def hear(self, messages: Sequence[Message], **options: Any) -> Iterator[HeardDelta | RoutingDelta]:
        """Provisionally, what is said in the sound that ends `messages`, while it still goes on. Options are
        `stream`'s, but for `settings`."""
        settings = GenerationSettings(speak=False, stop_ids=(self.tokens.heard_end,), max_new_tokens=64)
        for event in self.stream(messages, settings=settings, **options):
            if isinstance(event, RoutingDelta):
                yield RoutingDelta(event.tokens, provisional=True)
            elif isinstance(event, Done):
                yield HeardDelta(event.reply.heard, provisional=True)

    def listen(self, messages: Sequence[Message] = (), **options: Any) -> Listener:
        """For speech still coming in: push sound, then commit or discard. Options are `stream`'s, given here."""
        return Listener(self, messages, **options)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        return self.processor.prompt(messages, max_frames=self.loop.decoder.context)

    def _answer(
        self,
        prompt: Prompt,
        settings: GenerationSettings | None,
        reply: _Reply,
        cancel: threading.Event | None,
        record_routing: bool,
        knock_out: Sequence[tuple[int, int]],
    ) -> Iterator[Event]:
        settings = settings or self.usual_settings
        if self.vocoder is None:
            settings = replace(settings, speak=False)
        start = HEARD if prompt.has_speech and settings.say_heard else TEXT
        yield from self._reply(prompt, settings, start, reply, cancel, record_routing, knock_out)

    def _reply(
        self,
        prompt: Prompt,
        settings: GenerationSettings,
        start: str,
        reply: _Reply,
        cancel: threading.Event | None = None,
        record_routing: bool = False,
        knock_out: Sequence[tuple[int, int]] = (),
    ) -> Iterator[Event]:
        clock = reply.clock
        recorder = RoutingRecorder(self.config, knock_out=knock_out) if record_routing else None
        grammar = ReplyGrammar(self.config, self.processor.special_ids, settings, start)
        with clock.stage("prefill"):
            running = self.loop.start(
                prompt, settings, grammar=grammar, cancel=cancel, recorder=recorder, knock_out=knock_out
            )
        try:
            if recorder is not None and running.finish_reason is None:  # not cancelled while waiting for a slot
                for position, token in enumerate(prompt.ids):
                    recorder.annotate(position, text=self.processor.spelling(token))
            yield from self._events(running, reply, recorder)
        finally:
            self.loop.finish(running)
        yield Done(self._finished(reply, running, recorder))

    def _events(self, running: Generation, reply: _Reply, recorder: RoutingRecorder | None) -> Iterator[Event]:
        clock, tokens, grammar = reply.clock, self.tokens, running.grammar
        text_stream = self.processor.text_stream()
        voice = _Voice(self.vocoder, clock)
        sent_routing = time.perf_counter()
        while running.finish_reason is None:
            with clock.stage(_STAGE_OF[grammar.phase]):
                made = self.loop.step([running])
            for _, token in made:
                if recorder is not None and token.recorded is not None:
                    recorder.annotate(token.recorded, text=self.processor.spelling(token.id), logprob=token.logprob)
                if token.id == tokens.heard_end:
                    text_stream = self.processor.text_stream()
                elif tokens.is_audio(token.id):
                    reply.units.append(token.id - tokens.first_unit)
                    clock.mark("first_unit")
                    yield from reply.spoken(voice.push(token.id - tokens.first_unit))
                elif token.id == tokens.audio_end:
                    yield from reply.spoken(voice.finish())
                elif token.id not in running.stop_ids and (piece := text_stream.push(token.id)):
                    yield reply.wrote(piece, token.phase)
            if recorder is not None and time.perf_counter() - sent_routing >= ROUTING_INTERVAL_S:
                sent_routing = time.perf_counter()
                yield from _routed(recorder)
        if running.finish_reason != "cancelled":
            yield from reply.spoken(voice.finish())
        if recorder is not None:
            yield from _routed(recorder)

    def _finished(self, reply: _Reply, running: Generation, recorder: RoutingRecorder | None) -> Reply:
        return Reply(
            text=reply.text.strip(),
            waveform=np.concatenate(reply.waves) if reply.waves else np.zeros(0, np.float32),
            sample_rate=self.vocoder.sample_rate if self.vocoder else SAMPLE_RATE,
            units=reply.units,
            heard=reply.heard.strip(),
            words=reply.prompt.words  # only now: searching would delay the first sound
            if reply.prompt and running.finish_reason != "cancelled"
            else [],
            confidence=self._confidence(running),
            finish_reason=running.finish_reason or "cancelled",
            trace=self._trace(recorder, running) if recorder else None,
            timings=reply.clock.timings(),
        )

    def _confidence(self, running: Generation) -> float:
        """A chain is as strong as its weakest link: of several measures, this one met the share of right answers."""
        heard = [t.logprob for t in running.tokens if t.phase == HEARD]
        words = range(self.tokens.first_unit)
        said = [t.logprob for t in running.tokens if t.phase == TEXT and t.id in words and t.id not in running.stop_ids]
        return math.exp(min(heard + said)) if said else 0.0

    def _trace(self, recorder: RoutingRecorder, running: Generation) -> RoutingTrace:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return recorder.finish(model_hash=self.model_hash, dtype=dtype, seed=running.settings.seed)

    @cached_property
    def usual_settings(self) -> GenerationSettings:
        """What `stream` and `answer` decode with where nothing else is said."""
        longest = self.model.generation_config.max_new_tokens
        return GenerationSettings() if longest is None else GenerationSettings(max_new_tokens=longest)

    @cached_property
    def model_hash(self) -> str:
        """Tells models apart: a digest of the configuration and of the first bytes of every weight."""
        digest = hashlib.sha256(self.config.to_json_string().encode())
        for name, weight in self.model.named_parameters():
            digest.update(name.encode())
            if weight.device.type != "meta":
                head = weight.detach().reshape(-1)[:16].cpu()
                digest.update(head.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder that `most_core.load` reads: whole, or not at all. It must be new or empty."""
        with written_whole(Path(folder)) as partial:
            self.model.save_pretrained(partial)
            self.processor.tokenizer.save_pretrained(partial)
            if self.encoder is not None:
                self.encoder.save(partial)
            if self.vocoder is not None:
                self.vocoder.save(partial)


_STAGE_OF = {HEARD: "heard", TEXT: "text", SPEECH: "units", DONE: "text"}


@dataclass
class _Reply:
    """A reply while it grows."""

    clock: _Clock
    heard: str = ""
    prompt: Prompt | None = None
    text: str = ""
    units: list[int] = field(default_factory=list)
    waves: list[np.ndarray] = field(default_factory=list)

    def wrote(self, piece: str, phase: str) -> HeardDelta | TextDelta:
        if phase == HEARD:
            piece = piece if self.heard else piece.lstrip()
            self.heard += piece
            return HeardDelta(piece)
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        return TextDelta(piece)

    def spoken(self, sound: SpeechDelta | None) -> Iterator[SpeechDelta]:
        if sound is not None:
            self.clock.mark("first_sound")
            self.waves.append(sound.pcm)
            yield replace(sound, stages=dict(self.clock.stages))


class _Voice:
    """Units of one reply -> sound, sentence by sentence."""

    def __init__(self, vocoder: Vocoder | None, clock: _Clock) -> None:
        self.vocoder, self.clock, self.stream = vocoder, clock, None

    def push(self, unit: int) -> SpeechDelta | None:
        if self.vocoder is None:
            return None
        with self.clock.stage("vocoder"):
            self.stream = self.stream or self.vocoder.stream(predict_durations=False)  # one unit, one frame
            return self._delta(self.stream.push([unit]))

    def finish(self) -> SpeechDelta | None:
        """The rest of a sentence."""
        if self.stream is None:
            return None
        with self.clock.stage("vocoder"):
            pcm, self.stream = self.stream.finish(), None
            return self._delta(pcm)

    def _delta(self, pcm: np.ndarray) -> SpeechDelta | None:
        return SpeechDelta(pcm, self.vocoder.sample_rate) if len(pcm) else None


class _Clock:
    """Milliseconds by stage, and moments since the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.stages = dict.fromkeys(STAGES, 0.0)
        self.moments: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.stages[name] += (time.perf_counter() - begin) * 1e3

    def mark(self, name: str) -> None:
        self.moments.setdefault(name, (time.perf_counter() - self.start) * 1e3)

    def timings(self) -> dict[str, float]:
        self.mark("total")
        return {**self.stages, **self.moments}


class Listener:
    """Speech that is still coming in. What `push` reports is provisional: it hears the utterance anew a few times a
    second (the encoder looks both ways), and `commit` hears it once more, whole."""

    def __init__(
        self,
        most: Most,
        messages: Sequence[Message] = (),
        *,
        settings: GenerationSettings | None = None,
        cancel: threading.Event | None = None,
        record_routing: bool = False,
        knock_out: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.most, self.messages, self.settings = most, list(messages), settings
        self._options = {"cancel": cancel, "record_routing": record_routing, "knock_out": knock_out}
        self.discard()

    def push(self, pcm: np.ndarray | torch.Tensor, sampling_rate: int = SAMPLE_RATE) -> list[Event]:
        """Add sound; returns provisional events, or none when it is too soon for new ones."""
        if self._parts and sampling_rate != self._rate:
            raise ValueError(
                f"the sampling rate changed from {self._rate} to {sampling_rate} in mid-utterance: discard, start again"
            )
        # Neither resampled nor normalised yet: done piece by piece, the whole would sound different.
        part = mono_samples(pcm, sampling_rate)
        if not len(part):
            return []
        self._parts.append(part)
        self._rate = sampling_rate
        self._unheard_s += len(part) / sampling_rate
        if self._unheard_s < LISTEN_INTERVAL_S:
            return []
        self._unheard_s = 0.0
        return list(self.most.hear(self._turn(), **self._options))

    def commit(self) -> Iterator[Event]:
        """The person has finished: as `Most.stream`, with what was pushed as the last user turn."""
        if not self._parts:
            raise ValueError("nothing was said: push sound before commit, or discard")
        return self.most.stream(self._turn(), settings=self.settings, **self._options)

    def discard(self) -> None:
        """Forget what was pushed."""
        self._parts: list[np.ndarray] = []
        self._rate, self._unheard_s = SAMPLE_RATE, 0.0

    def _turn(self) -> list[Message]:
        audio = {"type": "audio", "audio": np.concatenate(self._parts), "sampling_rate": self._rate}
        return [*self.messages, {"role": "user", "content": [audio]}]


def _last(events: Iterator[Event]) -> Reply:
    for event in events:
        if isinstance(event, Done):
            return event.reply
    raise RuntimeError("the stream ended without a reply")


def _routed(recorder: RoutingRecorder) -> Iterator[RoutingDelta]:
    rows = recorder.drain()
    if rows.num_tokens:
        yield RoutingDelta(rows)


def _last_text(messages: Sequence[Message]) -> str:
    content = messages[-1]["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")
