"""Speech in: waveform -> encoder features -> units, and word times for captions.

The encoder is a frozen `transformers.HubertModel`. `units.safetensors` names the layer that units are clusters of and
the layer that features are read from: the same one unless it says otherwise.

Shapes: T frames (25 a second), D encoder width, K clusters, V characters.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from scipy.signal import resample_poly
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from most_core.checkpoint_files import no_needless_bars, read_json, read_tensors
from most_core.word_search import WordModel, WordSearch

SAMPLE_RATE = 16_000
RATES = (8_000, 96_000)  # what check_waveform resamples from
BLANK, WORD_SEPARATOR = "<pad>", "|"
FAINT = 0.15  # confidence below which a word is only the likeliest of what noise may have been
WORDS = "words.safetensors"  # beside the CTC head: what `most_core.word_search` reads words with
WINDOW_S, MARGIN_S = 30, 2  # longer sound is encoded by windows: attention over ten minutes would take 10 GB


def check_waveform(waveform: np.ndarray | torch.Tensor, sampling_rate: int) -> np.ndarray:
    """Any sensible recording as float32 mono at 16 kHz in [-1, 1], or a ValueError that says what is wrong with it.

    Takes [samples], [channels, samples] or [samples, channels] with one or two channels (their mean is used).
    8, 16 and 32 bit integers are scaled by their full range (uint8 is centred on 128, as in WAV files); floats are
    taken as they are, but a sound that peaks above 1 is divided by its peak, which distorts less than clipping.
    """
    samples, rate = mono_samples(waveform, sampling_rate), int(sampling_rate)
    if len(samples) == 0:
        raise ValueError("the waveform is empty: record at least a moment of sound")
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        samples = resample_poly(samples, SAMPLE_RATE // common, rate // common)
    # After resampling, which can overshoot. The peak is measured in float64, where no float32 sum overflows.
    peak = float(np.abs(samples).max())
    return (samples / peak if peak > 1 else samples).astype(np.float32)


def mono_samples(waveform: np.ndarray | torch.Tensor, sampling_rate: int) -> np.ndarray:
    """The part of `check_waveform` that looks at each sample alone: one channel in float64, at the rate it came."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    samples = _mono(_scaled(np.asarray(waveform)))
    _check_rate(sampling_rate)
    if not np.isfinite(samples).all():
        where = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise ValueError(f"the waveform holds {samples[where]} at sample {where}: replace it with a finite number")
    return samples


def _scaled(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "f":
        return samples.astype(np.float64)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if samples.dtype in (np.int8, np.int16, np.int32):
        return samples / -float(np.iinfo(samples.dtype).min)
    raise ValueError(
        f"waveform samples of type {samples.dtype} have no agreed full scale: give float32 in [-1, 1] or int16"
    )


def _mono(samples: np.ndarray) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or min(samples.shape) > 2:
        raise ValueError(
            f"the waveform has shape {tuple(samples.shape)}: give [samples], or one or two channels of them"
        )
    channels = 0 if samples.shape[0] <= 2 else 1
    return samples.mean(axis=channels) if samples.size else samples.reshape(-1)


def _check_rate(sampling_rate: int) -> None:
    low, high = RATES
    if not isinstance(sampling_rate, Real) or sampling_rate % 1 != 0:
        raise ValueError(f"sampling rate {sampling_rate} is not a whole number: give samples per second")
    if not low <= sampling_rate <= high:
        raise ValueError(f"sampling rate {sampling_rate} is outside {low}..{high}: resample to {SAMPLE_RATE} first")


class Word(NamedTuple):
    """A word heard by the CTC head: for captions only. `confidence` is its characters' mean probability, 0..1."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass
class Encoded:
    """What one pass of the encoder gives: features [T, D] float32, units [T] int64, and words for who asks for them."""

    features: torch.Tensor
    units: np.ndarray
    hear: Callable[[], list[Word]]

    @cached_property
    def words(self) -> list[Word]:
        """The words heard. Finding them takes about as long as the pass itself."""
        return self.hear()


@dataclass
class Quantizer:
    """K-means centroids [K, D] of one encoder layer (`hidden_states[layer]`, so 1 is the first block's output).

    `features_layer` is the layer a language model listens to, where that is another one.
    """

    centroids: torch.Tensor
    layer: int
    rate_hz: int = 25
    features_layer: int | None = None

    def __post_init__(self) -> None:
        self.features_layer = self.layer if self.features_layer is None else self.features_layer

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Nearest centroid of each row: [T, D] -> [T] int64."""
        # ||x - c||^2 without the ||x||^2 that all centroids share
        distances = self.centroids.square().sum(1) - 2 * features @ self.centroids.T
        return distances.argmin(1)

    def save(self, path: str | Path) -> None:
        metadata = {
            "layer": self.layer,
            "features_layer": self.features_layer,
            "clusters": len(self.centroids),
            "rate_hz": self.rate_hz,
        }
        tensors = {"centroids": self.centroids.float().cpu().contiguous()}
        save_file(tensors, path, {key: str(value) for key, value in metadata.items()})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Quantizer:
        """Read `units.safetensors`."""
        tensors, metadata = read_tensors(Path(path))
        lacking = [f"tensor {name}" for name in ("centroids",) if name not in tensors]
        lacking += [f"metadata {name}" for name in ("layer", "clusters", "rate_hz") if name not in metadata]
        if lacking:
            raise ValueError(f"{path} lacks {', '.join(lacking)}: write it with `python -m most_core.convert units`")
        if int(metadata["clusters"]) != len(tensors["centroids"]):
            raise ValueError(
                f"{path} holds {len(tensors['centroids'])} centroids but its metadata says {metadata['clusters']}: "
                "write it again"
            )
        layer = int(metadata["layer"])
        features_layer = int(metadata.get("features_layer", layer))
        return cls(tensors["centroids"].float().to(device), layer, int(metadata["rate_hz"]), features_layer)


@dataclass
class CtcHead:
    """Linear character head on `hidden_states[layer]`. `vocab` maps characters to rows; id 0 is the blank.

    A weight of n times as many rows spells n characters a frame, one after the other: slow frames, fast talkers.
    With a `search`, words are found in what is spelled.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    vocab: dict[str, int]
    layer: int
    search: WordSearch | None = None

    @property
    def steps(self) -> int:
        return len(self.weight) // len(self.vocab)

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [steps T, V]."""
        return F.linear(hidden, self.weight, self.bias).unflatten(-1, (self.steps, -1)).flatten(0, 1).log_softmax(-1)

    def words(self, hidden: torch.Tensor, seconds_per_frame: float) -> list[Word]:
        """The words heard in [T, D] hidden states: found by the search, or as they are spelled."""
        log_probs, seconds = self.log_probs(hidden), seconds_per_frame / self.steps
        if self.search is None:
            return spelled(log_probs, self.vocab, seconds)
        found = [word for word in self.search.read(log_probs) if word.confidence > FAINT]
        return [Word(text, first * seconds, end * seconds, sure) for text, first, end, sure in found]


def spelled(log_probs: torch.Tensor, vocab: dict[str, int], seconds_per_step: float) -> list[Word]:
    """Greedy CTC decoding of [T, V]: repeats merged, blanks dropped, split at the separator."""
    probs, ids = log_probs.exp().max(-1)
    characters = {index: text for text, index in vocab.items()}
    words: list[Word] = []
    letters: list[tuple[str, int, int, float]] = []  # text, first step, step after the last, probability
    for index, run in groupby(enumerate(ids.tolist()), key=lambda item: item[1]):
        steps = [step for step, _ in run]
        text = characters[index]
        if text == WORD_SEPARATOR:
            words += _joined(letters, seconds_per_step)
            letters = []
        elif text != BLANK:
            letters.append((text, steps[0], steps[-1] + 1, float(probs[steps].max())))
    return words + _joined(letters, seconds_per_step)


def _joined(letters: list[tuple[str, int, int, float]], seconds_per_step: float) -> list[Word]:
    if not letters:
        return []
    texts, starts, ends, probs = zip(*letters)
    confidence = sum(probs) / len(probs)
    return [Word("".join(texts), starts[0] * seconds_per_step, ends[-1] * seconds_per_step, confidence)]


class SpeechEncoder:
    """Frozen HuBERT, its unit quantizer and perhaps a CTC head. Waveforms are float32 mono at 16 kHz.

    Takes one utterance at a time: group-norm HuBERT gives other features to a padded batch.
    """

    def __init__(
        self, model: HubertModel, quantizer: Quantizer, ctc: CtcHead | None = None, do_normalize: bool = True
    ) -> None:
        config = model.config
        samples_per_frame = math.prod(config.conv_stride)
        if samples_per_frame * quantizer.rate_hz != SAMPLE_RATE:
            raise ValueError(
                f"the encoder gives {SAMPLE_RATE / samples_per_frame:g} frames a second (conv_stride "
                f"{list(config.conv_stride)}) but its units are for {quantizer.rate_hz}: use units of this encoder"
            )
        if quantizer.centroids.shape[1] != config.hidden_size:
            raise ValueError(
                f"centroids have {quantizer.centroids.shape[1]} dimensions, the encoder's hidden states "
                f"{config.hidden_size}: use units of this encoder"
            )
        layers = [("units", quantizer.layer), ("features", quantizer.features_layer)]
        for what, layer in layers + ([("ctc", ctc.layer)] if ctc else []):
            if not 0 <= layer <= config.num_hidden_layers:
                raise ValueError(
                    f"{what} are for encoder layer {layer}, but the encoder has 0..{config.num_hidden_layers}"
                )
        self.model = model.eval().requires_grad_(False)
        self.quantizer = quantizer
        self.ctc = ctc
        self.do_normalize = do_normalize
        self.samples_per_frame = samples_per_frame
        self.first_frame_samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
            self.first_frame_samples = (self.first_frame_samples - 1) * stride + kernel

    @property
    def feature_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def num_units(self) -> int:
        return len(self.quantizer.centroids)

    def features(self, wave: np.ndarray | torch.Tensor) -> torch.Tensor:
        """What a language model listens to: [T, D] float32, on the encoder's device."""
        return self.encode(wave).features

    def units(self, wave: np.ndarray | torch.Tensor) -> np.ndarray:
        """Unit of each frame: [T] int64."""
        return self.encode(wave).units

    def features_and_units(self, wave: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """Both, from one pass of the encoder."""
        encoded = self.encode(wave)
        return encoded.features, encoded.units

    def words(self, wave: np.ndarray | torch.Tensor) -> list[Word]:
        """Words with their times; empty without a CTC head."""
        return self.encode(wave).words

    def letter_log_probs(self, wave: np.ndarray | torch.Tensor) -> torch.Tensor:
        """What the CTC head makes of the sound: [steps T, V] log-probabilities, in the order of `ctc.vocab`."""
        if self.ctc is None:
            raise ValueError("this speech encoder has no CTC head (ctc.safetensors): it cannot spell")
        return self.ctc.log_probs(self.hidden_states(wave)[self.ctc.layer])

    def encode(self, wave: np.ndarray | torch.Tensor) -> Encoded:
        """Features, units and words from one pass. Sound shorter than a frame is padded with silence to one."""
        hidden = self.hidden_states(wave)
        features = hidden[self.quantizer.features_layer]
        units = self.quantizer(hidden[self.quantizer.layer]).cpu().numpy()
        seconds = self.samples_per_frame / SAMPLE_RATE
        return Encoded(features, units, lambda: self.ctc.words(hidden[self.ctc.layer], seconds) if self.ctc else [])

    @torch.no_grad()
    def hidden_states(self, wave: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
        """The state [T, D] before the first layer and after each one; the last as the model normalizes it.

        Frames of sound longer than half a minute hear at least two seconds around them, but not all of it.
        """
        samples = torch.from_numpy(check_waveform(wave, SAMPLE_RATE)).to(self.model.device)
        samples = self._normalized(samples)
        samples = F.pad(samples, (0, max(0, self.first_frame_samples - len(samples))))
        frames = (len(samples) - self.first_frame_samples) // self.samples_per_frame + 1
        window, margin = (int(seconds * self.quantizer.rate_hz) for seconds in (WINDOW_S, MARGIN_S))
        if frames <= window:
            return [state[0] for state in self._states(samples[None])]
        pieces = []
        for start in range(0, frames, window - 2 * margin):
            first, end = max(0, start - margin), min(frames, start + window - margin)
            heard = samples[first * self.samples_per_frame :]
            states = self._states(heard[None, : (end - first - 1) * self.samples_per_frame + self.first_frame_samples])
            pieces.append([state[0, start - first : start - first + window - 2 * margin] for state in states])
        return [torch.cat(states) for states in zip(*pieces)]

    @torch.no_grad()
    def encode_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sounds [B, N] that are equally long, from a frame to half a minute: features [B, T, D], units [B, T].

        Each is heard as if alone, and all of them in one pass.
        """
        if not self.first_frame_samples <= rows.shape[1] <= WINDOW_S * SAMPLE_RATE:
            raise ValueError(
                f"rows of {rows.shape[1]} samples: give {self.first_frame_samples} to {WINDOW_S * SAMPLE_RATE}"
            )
        states = self._states(self._normalized(rows.to(self.model.device)))
        features = states[self.quantizer.features_layer].float()
        units = self.quantizer(states[self.quantizer.layer].float().flatten(0, 1)).view(features.shape[:2])
        return features, units

    def _normalized(self, samples: torch.Tensor) -> torch.Tensor:
        if not self.do_normalize:
            return samples
        # as Wav2Vec2FeatureExtractor: population variance
        spread = torch.sqrt(samples.var(-1, correction=0, keepdim=True) + 1e-7)
        return (samples - samples.mean(-1, keepdim=True)) / spread

    def _states(self, samples: torch.Tensor) -> list[torch.Tensor]:
        output = self.model(samples, output_hidden_states=True)
        # where normalization comes first in a layer, transformers gives the last state without the final one
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def save(self, folder: str | Path) -> None:
        """Write `speech_encoder/` and `units.safetensors` into a checkpoint folder."""
        part = Path(folder) / "speech_encoder"
        part.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(part)
        feature_extractor(self.do_normalize).save_pretrained(part)
        self.quantizer.save(Path(folder) / "units.safetensors")
        if self.ctc:
            tensors = {"weight": self.ctc.weight.cpu().contiguous(), "bias": self.ctc.bias.cpu().contiguous()}
            save_file(tensors, part / "ctc.safetensors", {"layer": str(self.ctc.layer)})
            (part / "vocab.json").write_text(json.dumps(self.ctc.vocab, ensure_ascii=False, indent=1))
            if self.ctc.search:
                self.ctc.search.model.save(part / WORDS)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", units_needed: bool = True) -> SpeechEncoder:
        """Read the encoder of a checkpoint folder, in float32. The decoder and the vocoder need not be there.

        Nor need the units where they are not needed: everything is then the one unit 0.
        """
        part = Path(folder) / "speech_encoder"
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            if not (part / name).is_file():
                raise FileNotFoundError(f"{part / name} is missing: {folder} holds no complete speech encoder")
        preprocessor = read_json(part / "preprocessor_config.json")
        model = load_hubert(part, dtype=torch.float32).to(device)
        units = Path(folder) / "units.safetensors"
        if units_needed or units.is_file():
            quantizer = Quantizer.load(units, device)
        else:
            one = torch.zeros(1, model.config.hidden_size, device=device)
            quantizer = Quantizer(one, layer=model.config.num_hidden_layers)
        ctc = None
        if (part / "ctc.safetensors").is_file():
            ctc = _load_ctc(part, model.config.hidden_size, quantizer.layer, device)
        return cls(model, quantizer, ctc, do_normalize=bool(preprocessor.get("do_normalize", True)))


def feature_extractor(do_normalize: bool) -> Wav2Vec2FeatureExtractor:
    """What transformers calls the preprocessor of a HubertModel folder."""
    return Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=do_normalize, return_attention_mask=False)


def load_hubert(folder: Path, dtype: torch.dtype | None = None) -> HubertModel:
    """A transformers HubertModel folder. What transformers would fill with random numbers is a ValueError here."""
    log = logging.getLogger("transformers.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # or it would print a table of what the errors below say in a line
    try:
        with no_needless_bars(folder):
            model, found = HubertModel.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'} describes no HuBERT: {' '.join(str(error).split())}") from None
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the speech encoder in {folder} is damaged or not complete ({reason}): fetch it again"
        ) from None
    finally:
        log.setLevel(level)
    for name in sorted(found["missing_keys"] - {"masked_spec_embed"}):  # which only training uses
        raise ValueError(f"{folder}: tensor {name} is missing: the checkpoint is not complete")
    for name, shape, expected in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{folder}: tensor {name} has shape {list(shape)}, config.json asks for {list(expected)}: "
            "they do not belong together"
        )
    if "masked_spec_embed" in found["missing_keys"]:
        torch.nn.init.zeros_(model.masked_spec_embed)
    return model


def _load_ctc(part: Path, width: int, default_layer: int, device: str | torch.device) -> CtcHead:
    if not (part / "vocab.json").is_file():
        raise FileNotFoundError(f"{part / 'vocab.json'} is missing: the CTC head beside it needs its characters")
    tensors, metadata = read_tensors(part / "ctc.safetensors")
    for name in ("weight", "bias"):
        if name not in tensors:
            raise ValueError(f"{part / 'ctc.safetensors'} lacks the tensor {name}: copy the CTC head again")
    weight, bias = (tensors[name].float().to(device) for name in ("weight", "bias"))
    if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{part / 'ctc.safetensors'} has weight {list(weight.shape)} and bias {list(bias.shape)}, expected "
            f"[n characters, {width}] and [n characters]: use a CTC head of this encoder"
        )
    vocab: dict[str, int] = read_json(part / "vocab.json")
    whole = all(isinstance(index, int) for index in vocab.values())
    numbered = whole and sorted(vocab.values()) == list(range(len(vocab))) and vocab.get(BLANK) == 0
    if not numbered or len(weight) % len(vocab):
        raise ValueError(
            f"{part / 'vocab.json'} must number its {len(vocab)} characters from 0, {BLANK!r} first, and the CTC "
            f"head's {len(weight)} rows be a multiple of them: use the vocabulary of this head"
        )
    search = None
    if (part / WORDS).is_file():
        search = WordSearch(WordModel.load(part / WORDS), vocab, BLANK, WORD_SEPARATOR)
    return CtcHead(weight, bias, vocab, int(metadata.get("layer", default_layer)), search)


def untrained_encoder(feature_size: int, num_units: int, seed: int = 0) -> SpeechEncoder:
    """A small random encoder at 25 Hz whose units vary with the sound: for tests and untrained models."""
    heads = next(n for n in (4, 3, 2, 1) if feature_size % n == 0)
    config = HubertConfig(
        hidden_size=feature_size,
        intermediate_size=2 * feature_size,
        num_hidden_layers=2,
        num_attention_heads=heads,
        conv_dim=(16, 16, 24, 24, 32, 32, 32),
        conv_kernel=(10, 3, 3, 3, 3, 2, 4),
        conv_stride=(5, 2, 2, 2, 2, 2, 4),  # 640 samples a frame
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=heads,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HubertModel(config)
        quantizer = Quantizer(torch.zeros(num_units, feature_size), layer=config.num_hidden_layers)
        encoder = SpeechEncoder(model, quantizer)
        features = encoder.features(_varied_noise(num_frames=num_units + 25))
        quantizer.centroids = features[torch.randperm(len(features))[:num_units]]
    return encoder


def _varied_noise(num_frames: int) -> np.ndarray:
    """Noise and tones whose mixture changes every frame, so that every frame has its own features."""
    time = torch.arange(640) / SAMPLE_RATE
    tones = torch.sin(2 * math.pi * time * (80 + 3920 * torch.rand(num_frames, 1) ** 2))
    mixture = torch.rand(num_frames, 1) * tones + torch.rand(num_frames, 1) * torch.randn(num_frames, 640) / 4
    return (mixture / mixture.abs().max()).flatten().numpy()
