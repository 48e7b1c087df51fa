"""Conversations to token ids and back: tokenizers, the chat template, and where speech goes in a prompt.

A prompt in ids (small tokenizer's spelling):

    <bos> <|user|> text [Wave] [Frame] x n [/Wave] <|assistant|> heard [/Heard] answer [Audio] units [/Audio] <eos>

`[Frame]` positions are filled with projected encoder features; spoken turns of the assistant are unit tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from most_core.config import MostConfig, TokenTable
from most_core.speech import SAMPLE_RATE, Encoded, SpeechEncoder, Word, check_waveform

TRANSCRIBE = "Transcribe the following speech into text."
SPEAK = "Convert the following text into speech."

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"
SMALL_SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)

# One marker pair stands for each clip; MostProcessor replaces what is between by frames or units.
_PARTS = """
{%- macro render(content, role) -%}
{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}
{%- if part.type == 'text' -%}{{ part.text }}{%- elif part.type == 'heard' -%}{{ part.text }}[/Heard]
{%- elif role == 'assistant' -%}[Audio][/Audio]
{%- else -%}[Wave][/Wave]{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}
"""
SMALL_CHAT_TEMPLATE = (
    _PARTS
    + """
{{- '<bos>' -}}{%- for message in messages -%}{{- '<|' + message.role + '|>' + render(message.content, message.role) -}}
{%- if message.role == 'assistant' -%}{{- '<eos>' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
)
# DeepSeek-V2's own form, with speech.
DEEPSEEK_CHAT_TEMPLATE = (
    _PARTS
    + """
{{- bos_token -}}{%- for message in messages -%}{%- if message.role == 'user' -%}
{{- 'User: ' + render(message.content, 'user') + '\\n\\n' -}}{%- elif message.role == 'assistant' -%}
{{- 'Assistant:' -}}{%- if message.content is string or message.content[0].type != 'audio' -%}{{- ' ' -}}{%- endif -%}
{{- render(message.content, 'assistant') + eos_token -}}{%- else -%}
{{- render(message.content, 'system') + '\\n\\n' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"""
)


class Message(TypedDict):
    """One turn, in Hugging Face's convention: content is text, or a list of
    `{"type": "text", "text": str}` and `{"type": "audio", "audio": array, "sampling_rate": int}` parts. A turn of the
    assistant may begin with `{"type": "heard", "text": str}`, the words that it had understood."""

    role: str
    content: str | list[dict[str, Any]]


@dataclass
class Prompt:
    """What the decoder is given: ids, and one feature row [D] for each of their [Frame] tokens."""

    ids: list[int]
    features: torch.Tensor | None = None
    has_speech: bool = False  # the last turn is spoken
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # (role, turn, tokens), in order
    heard: Encoded | None = None  # the last turn's last clip

    @property
    def words(self) -> list[Word]:
        """Of the last clip, where the encoder can tell. Ask in good time: searching takes as long as encoding."""
        return self.heard.words if self.heard is not None else []


class MostProcessor:
    """Messages -> `Prompt`, and ids -> text. `encoder` may be None for a model that only reads."""

    def __init__(
        self, config: MostConfig, tokenizer: PreTrainedTokenizerBase, encoder: SpeechEncoder | None = None
    ) -> None:
        if config.tokens is None:
            raise ValueError("this configuration has no token table: convert the checkpoint with most_core.convert")
        self.config, self.tokenizer, self.encoder = config, tokenizer, encoder
        self.tokens: TokenTable = config.tokens
        known = tokenizer.convert_tokens_to_ids("[/Heard]")
        if known != self.tokens.heard_end:
            raise ValueError(
                f"the tokenizer puts [/Heard] at {known}, the configuration at {self.tokens.heard_end}: "
                "they do not belong together"
            )
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: put chat_template.jinja beside tokenizer.json")
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids = sorted(({i for i, token in added if token.special} | {config.pad_token_id}) - {None})
        spellings = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self._special = re.compile("|".join(re.escape(token) for token in spellings))
        self._spellings: dict[int, str] = {}

    def prompt(self, messages: Sequence[Message], max_frames: int | None = None) -> Prompt:
        """Ids and features of a conversation up to where the assistant speaks. A clip of more than `max_frames` (by
        default as many as the model has positions) is refused before it is encoded."""
        check_messages(messages)
        clips = [
            (message["role"], part)
            for message in messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "audio"
        ]
        turns = [{**m, "content": self._for_template(m["content"])} for m in messages]
        text = self._render(turns, add_generation_prompt=True)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = self._ends(turns, text)
        roles = [(m["role"], turn) for turn, m in enumerate(messages)] + [("assistant", len(messages))]
        counts = [0] * len(roles)
        ids: list[int] = []
        features: list[torch.Tensor] = []
        heard: Encoded | None = None
        remaining = iter(clips)
        for token, (position, _) in zip(encoding["input_ids"], encoding["offset_mapping"]):
            before = len(ids)
            ids.append(token)
            if token in (self.tokens.wave_start, self.tokens.audio_start):
                role, part = next(remaining)
                encoded = self._encode(part, max_frames)
                if role == "assistant":
                    ids += [self.tokens.first_unit + unit for unit in encoded.units.tolist()]
                else:
                    ids += [self.tokens.frame] * len(encoded.features)
                    features.append(encoded.features)
                    heard = encoded
            counts[bisect_right(ends, position)] += len(ids) - before
        last = messages[-1]["content"]
        spoken = not isinstance(last, str) and any(part["type"] == "audio" for part in last)
        return Prompt(
            ids,
            features=torch.cat(features) if features else None,
            has_speech=spoken,
            heard=heard if spoken else None,
            spans=[(role, turn, count) for (role, turn), count in zip(roles, counts)],
        )

    def lesson(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a conversation that ends with the assistant's turn, and where in them the assistant speaks: from the
        first token it has to say to the one that ends the turn. Clips need no sound: between their two markers
        nothing stands yet."""
        check_messages(messages, last=("assistant",))
        turns = [{**message, "content": self._for_template(message["content"])} for message in messages]
        text = self._render(turns, add_generation_prompt=False)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [begin for begin, _ in encoding["offset_mapping"]]
        replies = []
        for turn, end in enumerate(self._ends(turns, text)):
            if turns[turn]["role"] == "assistant":
                begin = len(self._render(turns[:turn], add_generation_prompt=True))
                replies.append((bisect_left(begins, begin), bisect_left(begins, end)))
        return encoding["input_ids"], replies

    def _render(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            turns,
            chat_template=self.tokenizer.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def _ends(self, turns: list[dict[str, Any]], text: str) -> list[int]:
        """Where each turn ends in the rendered text; of a template that rewrites earlier turns, as far as known."""
        ends = []
        for count in range(1, len(turns) + 1):
            part = self._render(turns[:count], add_generation_prompt=False)
            ends.append(len(part) if text.startswith(part) else ends[-1] if ends else 0)
        return ends

    def _encode(self, part: dict[str, Any], max_frames: int | None) -> Encoded:
        if self.encoder is None:
            raise ValueError("this model was loaded without a speech encoder: give text, or add speech_encoder/")
        wave = check_waveform(part["audio"], part.get("sampling_rate", SAMPLE_RATE))
        frames = max_frames or self.config.max_position_embeddings
        seconds, room = len(wave) / SAMPLE_RATE, frames / self.config.audio_rate_hz
        if seconds > room:  # before the encoder spends its time on it
            raise ValueError(
                f"a clip of {seconds:.0f} s does not fit the context, which holds {room:.0f} s of speech: cut it, or "
                "load with a larger context"
            )
        return self.encoder.encode(wave)

    def _for_template(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Waveforms need not pass through the template, and a person who types the spelling of a special token must
        not smuggle it into the prompt: a zero-width joiner breaks it."""
        if isinstance(content, str):
            text = content.encode("utf-8", "replace").decode()  # lone surrogates have no UTF-8
            return self._special.sub(lambda match: match[0][0] + "\u200d" + match[0][1:], text)
        parts: list[dict[str, Any]] = []
        for kind, run in groupby(content, key=lambda part: part["type"]):
            if kind == "audio":
                parts += [{"type": "audio"} for _ in run]
            else:  # neighbours as one, or a spelling cut in two would pass
                parts.append({"type": kind, "text": self._for_template("".join(part["text"] for part in run))})
        return parts

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text, in which no spelling is special."""
        return self.tokenizer(self._for_template(text), add_special_tokens=False)["input_ids"]

    def text(self, ids: Iterable[int]) -> str:
        """Plain text of ids; special, unit and marker tokens are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.tokens.first_unit], skip_special_tokens=True)

    def spelling(self, token: int) -> str:
        """How a single token is shown to people."""
        if token not in self._spellings:
            self._spellings[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return self._spellings[token]

    def text_stream(self) -> TextStream:
        return TextStream(self.tokenizer)


class TextStream:
    """Ids one by one -> text pieces that never split a character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        return self._stream.step(self._backend, token) or ""


def check_messages(messages: Sequence[Message], last: tuple[str, ...] = ("user", "system")) -> None:
    """Raise a one-line error for a conversation that cannot be rendered, or whose last turn is not by one of `last`."""
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is a {type(message).__name__}: give {{'role': ..., 'content': ...}}")
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {number} has role {role!r}: use 'system', 'user' or 'assistant'")
        content = message.get("content")
        if not isinstance(content, str | list) or not content:
            raise ValueError(f"message {number} ({role}) has no content: give a string or a list of parts")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "audio", "heard") or ("text" if kind == "heard" else kind) not in part:
                found = sorted(map(str, part)) if isinstance(part, Mapping) else type(part).__name__
                raise ValueError(
                    f"message {number} ({role}) has a part {found}: use "
                    "{'type': 'text', 'text': ...} or {'type': 'audio', 'audio': array, 'sampling_rate': 16000}"
                )
            if kind != "audio" and not isinstance(part["text"], str):
                found = type(part["text"]).__name__
                raise ValueError(f"message {number} ({role}) has text of type {found}: give a string")
            if kind == "heard" and (role != "assistant" or part is not content[0]):
                raise ValueError(
                    f"message {number} ({role}) has a part 'heard': an assistant's turn alone begins with it"
                )
    if messages[-1]["role"] not in last:
        if "assistant" in last:
            raise ValueError("the last message is the user's: end with what the assistant says")
        raise ValueError("the last message is the assistant's: end with what the user says")


def train_small_tokenizer(texts: Iterable[str], config: MostConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from `texts`, with the configuration's unit and marker tokens at their ids."""
    table = config.tokens
    if table is None:
        raise ValueError("this configuration has no token table: use MostConfig.nano() or tiny()")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = list(SMALL_SPECIAL_TOKENS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if table.first_unit < len(specials) + len(alphabet):
        alphabet = sorted(alphabet)[: table.first_unit - len(specials)]  # tiny(): not every byte has a token
    trainer = trainers.BpeTrainer(
        vocab_size=table.first_unit, special_tokens=specials, initial_alphabet=list(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    missing = table.first_unit - backend.get_vocab_size()
    backend.add_special_tokens([f"<unused{i}>" for i in range(missing)])
    backend.add_special_tokens(table.spellings())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    tokenizer.add_special_tokens({"additional_special_tokens": [SYSTEM, USER, ASSISTANT, *table.spellings()]})
    tokenizer.chat_template = SMALL_CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, never from a network."""
    if not (Path(folder) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}: is this a MoST checkpoint folder?")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the libraries raise nothing narrower
        raise ValueError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from None


def as_messages(
    given: str | np.ndarray | torch.Tensor | Sequence[Message], sampling_rate: int = 16000
) -> list[Message]:
    """A conversation from a string (text, never a path), a waveform, or messages."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, np.ndarray | torch.Tensor):
        return [{"role": "user", "content": [{"type": "audio", "audio": given, "sampling_rate": sampling_rate}]}]
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise ValueError(f"cannot answer a {type(given).__name__}: give a text, a waveform array or a list of messages")
    return list(given)
