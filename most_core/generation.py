"""The streaming loop that everybody uses: prompts in, tokens out, one at a time, for one conversation or several.

`TokenLoop` decodes all active `Generation`s together, one token each per `step()`. A `ReplyGrammar` says which tokens
may come next (units only between begin and end of audio; a reply is text, then its speech, sentence by sentence);
without one, decoding is free and greedy decoding equals Hugging Face's `generate()` token for token.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from most_core.config import MostConfig
from most_core.decoder import Decoder
from most_core.processing import Prompt
from most_core.router import modality_of
from most_core.trace import RoutingRecorder


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token. The repetition penalty
    (Hugging Face's: prompt included) leaves units alone, which repeat by nature. Without `say_heard` a spoken question
    is answered at once, not after the words that were heard: for models that were trained so (`forms.direct`)."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    speak: bool = True
    say_heard: bool = True
    max_sentence_tokens: int = 64
    max_sentence_units: int = 375  # 15 s at 25 Hz
    max_heard_tokens: int = 128
    stop_ids: tuple[int, ...] = ()
    knock_out_mode: str = "next"

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more and finite"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 and finite"),
            ("max_sentence_tokens", self.max_sentence_tokens >= 1, "at least 1"),
            ("max_sentence_units", self.max_sentence_units >= 1, "at least 1"),
            ("max_heard_tokens", self.max_heard_tokens >= 1, "at least 1"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "None or an integer of 64 bits"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {rule}")


HEAD = 512  # likeliest tokens that top-p looks at first: sorting a full vocabulary takes 9 ms
HEARD, TEXT, SPEECH, DONE = "heard", "text", "speech", "done"
NO_SLOT = -1
CANCEL_INTERVAL_S = 0.05  # how often one who waits for a slot looks whether to go on waiting


class ReplyGrammar:
    """Where in a reply we are, and so which tokens may come next.

    `start` is "heard" for a spoken prompt, "text" for a typed one, or "speech" where the prompt already begins the
    audio. `phase` is "heard", "text", "speech" or "done".
    """

    def __init__(
        self, config: MostConfig, special_ids: Sequence[int], settings: GenerationSettings, start: str = TEXT
    ) -> None:
        self.tokens = tokens = config.tokens
        self.settings, self.phase = settings, start
        self.eos = config.eos_token_id if isinstance(config.eos_token_id, int) else config.eos_token_id[0]
        self.count = 0  # tokens of the current stretch
        self.unsaid = False  # text waiting for its speech
        text = torch.zeros(config.vocab_size, dtype=torch.bool)
        text[: tokens.first_unit] = True
        text[list(special_ids)] = False
        units = torch.zeros_like(text)
        units[tokens.first_unit : tokens.first_unit + tokens.num_units] = True
        self._sets = {"text": text, "units": units}
        self._masks: dict[tuple[str | int, ...], torch.Tensor] = {}

    def allowed(self) -> tuple[str | int, ...]:
        """The sets and single ids that may come next."""
        tokens, settings = self.tokens, self.settings
        if self.phase == HEARD:
            return (tokens.heard_end,) if self.count >= settings.max_heard_tokens else ("text", tokens.heard_end)
        if self.phase == SPEECH:
            end = tokens.audio_end
            if self.count >= settings.max_sentence_units:
                return (end,)
            return ("units", end) if self.count else ("units",)
        after = tokens.audio_start if self.unsaid and settings.speak else self.eos
        if self.unsaid and settings.speak and self.count >= settings.max_sentence_tokens:
            return (after,)
        return ("text", after)

    def bias(self) -> torch.Tensor:
        """[V]: 0 for tokens that may come next, -inf for the others."""
        key = self.allowed()
        if key not in self._masks:
            allowed = torch.zeros_like(self._sets["text"])
            for item in key:
                if isinstance(item, str):
                    allowed |= self._sets[item]
                else:
                    allowed[item] = True
            self._masks[key] = torch.zeros(len(allowed)).masked_fill_(~allowed, float("-inf"))
        return self._masks[key]

    def advance(self, token: int) -> None:
        """`token` was chosen."""
        tokens = self.tokens
        self.count += 1
        if token == self.eos:
            self.phase = DONE
        elif token == tokens.heard_end:
            self.phase, self.count = TEXT, 0
        elif token == tokens.audio_start:
            self.phase, self.count, self.unsaid = SPEECH, 0, False
        elif token == tokens.audio_end:
            self.phase, self.count = TEXT, 0
        elif self.phase == TEXT:
            self.unsaid = True


class Sampler:
    """Picks a token from logits: greedy, or sampled with its own random generator."""

    def __init__(self, settings: GenerationSettings, prompt_ids: Iterable[int], last_penalised_id: int) -> None:
        self.settings, self.last = settings, last_penalised_id
        self.seen = {i for i in prompt_ids if i < last_penalised_id} if settings.repetition_penalty != 1.0 else set()
        self.random = torch.Generator()
        if settings.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(settings.seed)

    def pick(self, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[int, float]:
        """(token, its log-probability among the allowed tokens, before temperature)."""
        settings = self.settings
        if self.seen:
            index = torch.tensor(sorted(self.seen))
            values = logits[index]
            penalty = settings.repetition_penalty
            logits = logits.index_copy(0, index, torch.where(values > 0, values / penalty, values * penalty))
        if bias is not None:
            logits = logits + bias
        if settings.temperature == 0:
            token = int(logits.argmax())
        else:  # the maximum at 0, so that no temperature overflows
            token = self._sample((logits - logits.max()) / max(settings.temperature, 1e-6))
        if settings.repetition_penalty != 1.0 and token < self.last:
            self.seen.add(token)
        return token, float(logits[token] - logits.logsumexp(0))

    def _sample(self, logits: torch.Tensor) -> int:
        top_k, top_p = self.settings.top_k, self.settings.top_p
        if not top_k and top_p == 1:
            return int(torch.multinomial(logits.softmax(-1), 1, generator=self.random))
        total = logits.logsumexp(0)
        values, index = logits.topk(min(top_k or HEAD, len(logits)))
        if top_k:
            total = values.logsumexp(0)
        elif (values - total).exp().sum() < top_p:  # a flat distribution: the head does not reach top_p
            values, index = logits.sort(descending=True)
        probs = (values - total).exp()
        # Keep the smallest head that reaches top_p; the first token always stays.
        probs = probs.masked_fill(probs.cumsum(0) - probs >= top_p, 0)
        return int(index[torch.multinomial(probs, 1, generator=self.random)])


@dataclass
class Token:
    """One generated token: its log-probability, the phase of the reply it belongs to, its number in the trace (the
    token that ends a reply is never routed, so it has none)."""

    id: int
    logprob: float
    phase: str
    recorded: int | None = None


@dataclass
class Generation:
    """One running reply. `finish_reason` is None until it ends: "stop", "length" or "cancelled"."""

    slot: int
    settings: GenerationSettings
    sampler: Sampler
    grammar: ReplyGrammar | None
    stop_ids: frozenset[int]
    logits: torch.Tensor
    cancel: threading.Event | None = None
    recorder: RoutingRecorder | None = None
    turn: int = 0
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None


class TokenLoop:
    """Decodes several generations together over one decoder. Thread-safe: callers on different threads may start and
    step their own generations; each step holds the decoder for one token."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._tokens = decoder.config.tokens
        self._free = list(reversed(range(decoder.slots)))
        self._slots = threading.Condition()
        self._gathering = threading.Lock()

    def start(
        self,
        prompt: Prompt | Sequence[int],
        settings: GenerationSettings | None = None,
        *,
        grammar: ReplyGrammar | None = None,
        cancel: threading.Event | None = None,
        recorder: RoutingRecorder | None = None,
        knock_out: Sequence[tuple[int, int]] = (),
    ) -> Generation:
        """Prefill a free slot, waiting for one if need be: a slot is free again only after `finish`, so call that in
        the end, whatever happens."""
        settings = settings or GenerationSettings()
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(list(prompt))
        config, decoder = self.decoder.config, self.decoder
        first_unit = config.tokens.first_unit if config.tokens else config.vocab_size
        generation = Generation(
            slot=NO_SLOT,
            settings=settings,
            sampler=Sampler(settings, prompt.ids, first_unit),
            grammar=grammar,
            stop_ids=frozenset(settings.stop_ids or _ids(config.eos_token_id)),
            logits=torch.empty(0),
            cancel=cancel,
            recorder=recorder,
            turn=prompt.spans[-1][1] if prompt.spans else 1,
        )
        slot = self._take_slot(cancel)
        if slot == NO_SLOT:
            generation.finish_reason = "cancelled"
            return generation
        try:
            with decoder.lock:
                decoder.reset(slot)
                decoder.knock_out(slot, knock_out, settings.knock_out_mode)
                logits = decoder.prefill(slot, prompt.ids, prompt.features, cancel)
                if recorder is not None and logits is not None:
                    self._record_prompt(prompt, recorder)
        except BaseException:
            self._release(slot)
            raise
        generation.slot = slot
        if logits is None:
            generation.finish_reason = "cancelled"
        else:
            generation.logits = logits.cpu()
        return generation

    def _record_prompt(self, prompt: Prompt, recorder: RoutingRecorder) -> None:
        modality = modality_of(torch.tensor(prompt.ids), self.decoder.config.tokens).tolist()
        probs, choice = self.decoder.routing()
        start, spans = 0, prompt.spans or [("user", 0, len(prompt.ids))]
        for role, turn, count in spans:
            part = slice(start, start + count)
            recorder.record(probs[:, part], prompt.ids[part], modality[part], role, turn, indices_LNK=choice[:, part])
            start += count

    def _take_slot(self, cancel: threading.Event | None) -> int:
        """A free slot, or NO_SLOT if cancelled while waiting for one."""
        with self._slots:
            while not self._free:
                if cancel is not None and cancel.is_set():
                    return NO_SLOT
                self._slots.wait(None if cancel is None else CANCEL_INTERVAL_S)
            return self._free.pop()

    def step(self, generations: Sequence[Generation]) -> list[tuple[Generation, Token]]:
        """One token for each unfinished generation, decoded in one batch. A generation that ends gets its
        `finish_reason`; the token that ended it is returned too."""
        made: list[tuple[Generation, Token]] = []
        for g in generations:
            if g.finish_reason is not None:
                continue
            if g.cancel is not None and g.cancel.is_set():
                g.finish_reason = "cancelled"
                continue
            phase = g.grammar.phase if g.grammar else TEXT
            token, logprob = g.sampler.pick(g.logits, g.grammar.bias() if g.grammar else None)
            if g.grammar:
                g.grammar.advance(token)
            g.tokens.append(Token(token, logprob, phase))
            made.append((g, g.tokens[-1]))
            if token in g.stop_ids or (g.grammar and g.grammar.phase == DONE):
                g.finish_reason = "stop"
            elif len(g.tokens) >= g.settings.max_new_tokens or self.decoder.length(g.slot) >= self.decoder.context:
                g.finish_reason = "length"
        going = [(g, t) for g, t in made if g.finish_reason is None]
        if going:
            with self.decoder.lock:
                logits = self.decoder.step([g.slot for g, _ in going], [t.id for _, t in going]).cpu()
                if any(g.recorder is not None for g, _ in going):
                    self._record(going)
            for row, (g, _) in zip(logits, going):
                g.logits = row
        return made

    def _record(self, going: list[tuple[Generation, Token]]) -> None:
        probs, choice = self.decoder.routing()
        tokens = self._tokens
        for row, (g, token) in enumerate(going):
            if g.recorder is None:
                continue
            mine = (probs, choice) if len(going) == 1 else (probs[:, row, None], choice[:, row, None])
            audio = tokens is not None and tokens.is_audio(token.id)
            token.recorded = g.recorder.record_token(mine[0], token.id, audio, g.turn, mine[1])

    def finish(self, generation: Generation) -> None:
        """Give the generation's slot back; a second time does nothing."""
        generation.finish_reason = generation.finish_reason or "cancelled"
        slot, generation.slot = generation.slot, NO_SLOT
        if slot != NO_SLOT:
            self._release(slot)

    def _release(self, slot: int) -> None:
        with self._slots:
            self._free.append(slot)
            self._slots.notify()

    def run(
        self, prompts: Sequence[Prompt | Sequence[int]], settings: GenerationSettings | None = None
    ) -> list[list[int]]:
        """Decode several prompts in one batch without a grammar; the generated ids of each."""
        if len(prompts) > self.decoder.slots:
            raise ValueError(
                f"{len(prompts)} prompts do not fit the decoder's {self.decoder.slots} slots: make it larger"
            )
        generations: list[Generation] = []
        try:
            with self._gathering:  # two batches that each hold half of the slots would wait for ever
                for prompt in prompts:
                    generations.append(self.start(prompt, settings))
            while self.step(generations):
                pass
        finally:
            for generation in generations:
                self.finish(generation)
        return [[token.id for token in g.tokens] for g in generations]


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
