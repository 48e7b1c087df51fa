"""Who speaks synthetic speech: the settings that its makers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from train.data.voices import ENGINE_WEIGHTS, UNSEEN, Voice, training_voices, unseen_voices

ATTEMPTS = 8  # voices tried for one row of a shard


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """What every maker of synthetic speech is told. `voices` are many, or the one described."""

    seed: int = 0
    split: Literal["train", "test"] = "train"
    shards: int = 40
    voices: Literal["training", "unseen"] | Voice = "training"
    engines: dict[str, float] = field(default_factory=lambda: dict(ENGINE_WEIGHTS))
    workers: int = 2

    def __post_init__(self) -> None:
        for name, low in (("shards", 1), ("workers", 1), ("seed", 0)):
            self._at_least(name, low)
        self._weights("engines", ENGINE_WEIGHTS)
        self._trainable("voices", self.voices)

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides a row; more shards or more workers make the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in ("shards", "workers")}

    @property
    def engines_needed(self) -> list[str]:
        if isinstance(self.voices, Voice):
            return [self.voices.engine]
        if self.voices == "unseen":
            return [voice.engine for voice in unseen_voices()]
        return [engine for engine, weight in self.engines.items() if weight > 0]

    def _at_least(self, name: str, low: int) -> None:
        if getattr(self, name) < low:
            raise ValueError(f"{name} is {getattr(self, name)}; expected {low} or more")

    def _share(self, name: str) -> None:
        if not 0 <= getattr(self, name) <= 1:
            raise ValueError(f"{name} is {getattr(self, name)}; expected a share, 0..1")

    def _weights(self, name: str, known: Mapping[str, Any]) -> None:
        weights = getattr(self, name)
        if strange := sorted(set(weights) - set(known)):
            raise ValueError(f"{name}.{strange[0]} is no setting; there are {', '.join(sorted(known))}")
        if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"{name} is {weights}; expected weights of 0 or more, one of them above 0")

    def _trainable(self, name: str, voice: str | Voice) -> None:
        if isinstance(voice, Voice) and any(
            (voice.engine, voice.name) == (unseen.engine, unseen.name) for unseen in UNSEEN
        ):
            raise ValueError(f"{name} is {voice.engine} {voice.name}, which is kept for tests: choose another")


def voice(config: SpeechSettings, index: int, attempt: int) -> Voice:
    """Who speaks in row number `index` of all shards, the `attempt`-th time that a voice is looked for."""
    if isinstance(config.voices, Voice):
        return config.voices
    if config.voices == "unseen":
        return unseen_voices()[(index + attempt) % len(unseen_voices())]
    return training_voices(config.seed, index * ATTEMPTS + attempt, config.engines)
