"""A model of full size that does not think: its replies come at a steady pace, and their routing is made up.

All else is as it is: recorder, engine, conversation, socket, page. `python -m bench.paced` serves it on a free port, as
app.py does a real one. A typed question says in digits how many tokens its answer is to have.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from app import server
from app.settings import Settings
from most_core import Done, Event, GenerationSettings, Most, MostConfig, Reply, RoutingDelta, SpeechDelta, TextDelta
from most_core.assistant import ROUTING_INTERVAL_S
from most_core.config import AUDIO, TEXT
from most_core.loading import untrained
from most_core.processing import as_messages
from most_core.router import choose_experts
from most_core.speech import SAMPLE_RATE
from most_core.trace import RoutingRecorder
from most_core.trace_rows import group_masks

TOKENS_PER_S = 60
SPOKEN, WRITTEN = 50, 70  # tokens of a stretch: in their two seconds, two seconds of sound
AT_ONCE = 5  # units that sound together, as from a real vocoder
PROMPT = 24  # tokens of a question
PREPARED = 600  # tokens whose routing is drawn before; then it begins anew
KEPT_FROM_BEFORE = 0.8  # how far a token's routing is like that of the token before
LOUD = 0.004  # what a sound must be to count as one, and a little more
WORDS = ("which ", "expert ", "takes ", "what ", "is ", "drawn ", "by ", "chance ", "here ")


class Paced(Most):
    """Answers every typed question, without thought, with as many tokens as it names."""

    def __init__(self, config: MostConfig | None = None) -> None:
        small = untrained("tiny", slots=server.places(Settings()))
        super().__init__(small.model, small.loop.decoder, small.processor, small.vocoder)
        self.config = config or MostConfig.lite()
        table = self.config.tokens  # made anew whenever it is asked for
        self._first_unit, self._units = table.first_unit, table.num_units
        self._unit_samples = SAMPLE_RATE // self.config.audio_rate_hz
        probs_MLTE, chosen_MLTK = prepared(self.config, PREPARED)
        # Token by token, each in one piece, as a decoder leaves them.
        self._made_MT = [
            list(zip(*(whole.transpose(0, 1)[:, :, None].contiguous() for whole in of_modality)))
            for of_modality in zip(probs_MLTE, chosen_MLTK)
        ]

    def stream(
        self,
        given: Any,
        *,
        settings: GenerationSettings | None = None,
        cancel: Any = None,
        record_routing: bool = False,
        **_: Any,
    ) -> Iterator[Event]:
        count = asked_for(as_messages(given)[-1]["content"]) or (settings or self.usual_settings).max_new_tokens
        recorder = RoutingRecorder(self.config) if record_routing else None
        if recorder is not None:
            self._record_question(recorder)
        start = told = time.perf_counter()
        words, made, units, reason = [], 0, [], "stop"
        while made < count:
            time.sleep(max(start + (made + 1) / TOKENS_PER_S - time.perf_counter(), 0))
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            modality = modality_of(made)
            word = WORDS[made % len(WORDS)]
            if recorder is not None:
                self._record(recorder, made, modality, word)
            made += 1
            if modality == TEXT:
                words.append(word)
                yield TextDelta(word)
            else:
                units.append(made % self._units)
                if len(units) % AT_ONCE == 0:
                    yield SpeechDelta(self._hum(AT_ONCE), SAMPLE_RATE)
            if recorder is not None and time.perf_counter() - told >= ROUTING_INTERVAL_S:
                told = time.perf_counter()
                yield RoutingDelta(recorder.drain())
        if recorder is not None and (rest := recorder.drain()).num_tokens:
            yield RoutingDelta(rest)
        yield Done(self._whole("".join(words).strip(), units, reason, recorder, time.perf_counter() - start))

    def _record_question(self, recorder: RoutingRecorder) -> None:
        probs, chosen = (torch.cat(tokens, 1) for tokens in zip(*self._made_MT[TEXT][:PROMPT]))
        recorder.record(probs, list(range(PROMPT)), [TEXT] * PROMPT, "user", 0, indices_LNK=chosen)
        for token in range(PROMPT):
            recorder.annotate(token, text=WORDS[token % len(WORDS)])

    def _record(self, recorder: RoutingRecorder, number: int, modality: int, word: str) -> None:
        """As the loop records a token that it made."""
        unit = number % self._units
        token = self._first_unit + unit if modality == AUDIO else number % self._first_unit
        probs, chosen = self._made_MT[modality][number % PREPARED]
        place = recorder.record_token(probs, token, modality == AUDIO, 0, chosen)
        recorder.annotate(place, text=f"[Hu{unit}]" if modality == AUDIO else word, logprob=-1.0)

    def _hum(self, units: int) -> np.ndarray:
        phase = 2 * np.pi * 200 / SAMPLE_RATE * np.arange(units * self._unit_samples)
        return (LOUD * np.sin(phase)).astype(np.float32)

    def _whole(
        self, text: str, units: list[int], reason: str, recorder: RoutingRecorder | None, seconds: float
    ) -> Reply:
        stages = dict.fromkeys(("encode", "prefill", "heard", "text", "units", "vocoder", "first_unit"), 0.0)
        return Reply(
            text=text,
            waveform=self._hum(len(units)),
            sample_rate=SAMPLE_RATE,
            units=units,
            heard="",
            words=[],
            confidence=1.0,
            finish_reason=reason,
            trace=recorder.finish(model_hash=self.model_hash, dtype="float32") if recorder else None,
            timings={**stages, "first_sound": 0.0, "total": 1000 * seconds},
        )


def asked_for(content: str | list[dict[str, Any]]) -> int:
    """How many tokens a question names; 0 if it names none."""
    written = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    found = re.search(r"\d+", written)
    return int(found.group()) if found else 0


def modality_of(number: int) -> int:
    """Of a reply's token: it speaks, writes, speaks, writes, ..."""
    return AUDIO if number % (SPOKEN + WRITTEN) < SPOKEN else TEXT


def prepared(config: MostConfig, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [2, L, T, E] over all experts of made-up tokens of each modality, each a little like the one
    before, and the experts [2, L, T, K] that the router would choose."""
    random = torch.Generator().manual_seed(seed)
    layers, experts = len(config.moe_layers), config.n_routed_experts
    logits = torch.randn(2, layers, count, experts, generator=random)
    for token in range(1, count):
        fresh = (1 - KEPT_FROM_BEFORE**2) ** 0.5
        logits[:, :, token] = KEPT_FROM_BEFORE * logits[:, :, token - 1] + fresh * logits[:, :, token]
    probs_MLTE = (2 * logits).softmax(-1)
    allowed = group_masks(config)[:, :, None].expand_as(probs_MLTE)
    _, chosen = choose_experts(probs_MLTE.flatten(0, 2), allowed.flatten(0, 2), config)
    return probs_MLTE, chosen.view(*probs_MLTE.shape[:3], -1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(server.serve(Paced, Settings(model="paced", device="cpu", port=0)))
