"""Conversations and texts -> lessons: rendered to ids by the processor, heard by frozen ears."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from most_core.config import MostConfig
from most_core.processing import Message, MostProcessor
from most_core.speech import SpeechEncoder
from train.data.conversations import Conversation, Stretch
from train.data.lessons import Lesson
from train.data.sources import Source
from train.data.voices import SynthesisError, Synthesizer, Voice


class LessonMaker:
    """Makes lessons for a model of this shape. `said`: the units of sentences that the assistant's voice speaks."""

    def __init__(
        self, shape: MostConfig, tokenizer: PreTrainedTokenizerBase, encoder: SpeechEncoder, longest: int
    ) -> None:
        if encoder.num_units != shape.tokens.num_units:
            raise ValueError(
                f"the ears have {encoder.num_units} units, the model {shape.tokens.num_units}: they do not match"
            )
        if encoder.feature_size != shape.speech_feature_size:
            raise ValueError(
                f"the ears give features of {encoder.feature_size}, the model takes {shape.speech_feature_size}: "
                "they do not match"
            )
        self.encoder, self.longest = encoder, longest
        self.said: dict[str, np.ndarray] = {}
        self.processor = MostProcessor(shape, tokenizer)

    @cached_property
    def synthesizer(self) -> Synthesizer:
        return Synthesizer()

    def lessons(self, task: str, source: Source, index: int) -> Iterator[Lesson]:
        """What item `index` of a source teaches: one lesson, several of a long text; none of what is too long, has a
        turn with nothing in it, begins with the assistant, or asks by sound what is to be asked in words."""
        item = source.item(index)
        if task == "text":
            yield from self._of_text(item)
            return
        asked = [turn for turn in item.turns if turn.role != "system"]
        mute = any(
            _has_sound(each) and not each.text for turn in asked if turn.role == "user" for each in turn.stretches
        )
        if not asked or asked[0].role != "user" or (task == "text_instructions" and mute):
            return
        messages, clips = self._messages(task, item)
        if messages[-1]["role"] != "assistant" or (task == "speech_instructions" and "user" not in dict(clips)):
            return
        if any(map(_says_nothing, messages)):
            return
        ids, replies = self.processor.lesson(messages)
        for reply, turn in enumerate(turn for turn in item.turns if turn.role == "assistant"):
            if turn.cut and _has_sound(turn.stretches[-1]):
                replies[reply] = (replies[reply][0], replies[reply][1] - 2)  # it did not stop by itself
        encoded = [self._clip(role, stretch) for role, stretch in clips]
        units = np.concatenate([np.zeros(0, np.int32), *(units for _, units in encoded)])
        if units.max(initial=0) >= self.encoder.num_units:  # ready-made ones may be of any ears
            last = self.encoder.num_units - 1
            raise ValueError(f"{item.id} has unit {units.max()}, the model 0 to {last}: they are of other ears")
        features = [features for features, _ in encoded if features is not None]
        heard = [role for role, _ in clips].count("user")
        lesson = Lesson(
            id=item.id,
            task=task,
            source=item.source,
            licence=item.licence,
            split=item.split,
            text="\n".join(f"{turn.role}: {turn.text}" for turn in item.turns),
            ids=np.array(ids, np.int32),
            replies=np.array(replies, np.int32).reshape(-1, 2),
            clips=np.array([len(units) for _, units in encoded], np.int32),
            units=units,
            features=np.concatenate(features) if heard and len(features) == heard else self._no_features,
        )
        if lesson.tokens <= self.longest:
            yield lesson

    @property
    def _no_features(self) -> np.ndarray:
        return np.zeros((0, self.encoder.feature_size), np.float16)

    def _of_text(self, item: Conversation) -> Iterator[Lesson]:
        """A text, all of it to be said, in pieces of at most `longest` tokens."""
        text, tokenizer = "\n".join(turn.text for turn in item.turns), self.processor.tokenizer
        ids = [tokenizer.bos_token_id, *self.processor.text_ids(text), tokenizer.eos_token_id]
        nothing = np.zeros(0, np.int32)
        for start in range(0, len(ids) - 1, self.longest - 1):  # a piece begins with what the last one ended with
            piece = np.array(ids[start : start + self.longest], np.int32)
            whole = np.array([[1, len(piece)]], np.int32)
            about = (f"{item.id}/{start}", "text", item.source, item.licence, item.split)
            yield Lesson(*about, text, piece, whole, nothing, nothing, self._no_features)

    def _messages(self, task: str, item: Conversation) -> tuple[list[Message], list[tuple[str, Stretch]]]:
        """A conversation as the processor takes it, and its clips in order, each with who is heard in it."""
        messages, clips = [], []
        heard: str | None = None  # nothing that is to be told; "": sound in which nothing can be understood
        for turn in item.turns:
            parts: list[dict[str, Any]] = []
            if turn.role != "assistant":
                heard = None
                for stretch in turn.stretches:
                    if task != "text_instructions" and _has_sound(stretch):
                        parts.append({"type": "audio", "audio": None})
                        clips.append(("user", stretch))
                        if stretch.text or stretch.wave is not None:  # of units without text nobody knows the words
                            heard = f"{heard or ''} {stretch.text}".strip()
                    else:
                        parts.append({"type": "text", "text": stretch.text})
            else:
                if heard is not None and task == "speech_instructions":
                    parts.append({"type": "heard", "text": heard})
                for place, stretch in enumerate(turn.stretches):
                    if stretch.text:
                        parts.append({"type": "text", "text": " " * (place > 0) + stretch.text})
                    if task != "asr" and (_has_sound(stretch) or stretch.text in self.said):
                        parts.append({"type": "audio", "audio": None})
                        clips.append(("assistant", stretch))
                heard = None
            messages.append({"role": turn.role, "content": parts})
        return messages, clips

    def _clip(self, role: str, stretch: Stretch) -> tuple[np.ndarray | None, np.ndarray]:
        """(features [T, D] of what a user says, where there is sound; units [T])"""
        if stretch.wave is None:
            units = self.said[stretch.text] if stretch.units is None else stretch.units
            return None, np.asarray(units, np.int32)
        encoded = self.encoder.encode(stretch.wave)
        features = None if role == "assistant" else encoded.features.cpu().numpy().astype(np.float16)
        return features, encoded.units.astype(np.int32)

    def spoken_by(self, voice: Voice, sentence: str) -> np.ndarray:
        """The units of a sentence as a voice says it; none where it cannot, as of digits and other signs."""
        try:
            wave = self.synthesizer.speak(sentence, voice)
        except (SynthesisError, ValueError):
            return np.zeros(0, np.int32)
        return self.encoder.units(wave).astype(np.int32)


def _says_nothing(message: Message) -> bool:
    """Whether a turn has neither words nor a clip; a rule may be empty."""
    said = (part["type"] == "audio" or (part["type"] == "text" and part["text"].strip()) for part in message["content"])
    return message["role"] != "system" and not any(said)


def _has_sound(stretch: Stretch) -> bool:
    return stretch.wave is not None or stretch.units is not None
