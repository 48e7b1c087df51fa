"""`python -m train units`: clusters the frozen encoder's states into units, and measures what the units keep.

Mini-batch k-means, streaming: states are computed a few utterances at a time and never stored. Every candidate (layer,
number of clusters) is judged by the word error of a small network that reads its units back into letters
(`train/unit_reader.py`), on speech that neither it nor the clusters have met. The one that `choice` names is written.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch

from most_core.loading import choose_device
from most_core.speech import WORDS, Quantizer, SpeechEncoder, load_hubert
from train.checkpoints import resume, save_checkpoint
from train.config import RunOptions, config_hash, deadline
from train.data.mixture import Speech, letter_ids
from train.data.shards import ShardedSpeech
from train.data.utterance import spoken_letters
from train.language_model import language_model, vocabulary
from train.progress import Progress, plot_losses
from train.unit_reader import FILE as READER
from train.unit_reader import learn_to_read

UTTERANCES_A_STEP = 24
CHECKPOINT_EVERY = 25
FULL_SCALE = 32768


@dataclass(frozen=True)
class Choice:
    """The candidate to ship."""

    layer: int = 4
    clusters: int = 500


@dataclass(frozen=True)
class Config:
    """Settings of the clustering. `encoder` is the output of `python -m train encoder`."""

    encoder: Path
    speech: dict[str, Speech]
    check: dict[str, Path]  # folders of shards to read back; the first decides what "better" means
    layers: tuple[int, ...] = (3, 4, 6)
    clusters: tuple[int, ...] = (100, 200, 500)
    choice: Choice = Choice()
    features_layer: int = 6  # the layer a language model listens to
    steps: int = 300  # of so many utterances each
    reading_utterances: int = 6000
    reading_steps: int = 1000
    words: bool = True  # add the dictionary and trigram by which captions find words in letters
    seed: int = 0


class KMeans:
    """Mini-batch k-means: each centroid is the mean of the points it has won, recent ones counting more."""

    def __init__(self, clusters: int, seed: int) -> None:
        self.clusters, self.seed = clusters, seed
        self.centroids = torch.empty(0)
        self.wins = torch.zeros(clusters)

    def start(self, points: torch.Tensor) -> None:
        """k-means++: each centroid drawn far from those drawn before."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = [int(torch.randint(len(points), (1,), generator=generator))]
        distance = (points - points[rows[0]]).square().sum(1)
        while len(rows) < self.clusters:
            rows.append(int(torch.multinomial(distance.clamp(min=1e-12), 1, generator=generator)))
            distance = torch.minimum(distance, (points - points[rows[-1]]).square().sum(1))
        self.centroids = points[rows].clone()

    def update(self, points: torch.Tensor) -> float:
        """Move centroids towards the points they win; returns the mean squared distance before."""
        owners = Quantizer(self.centroids, 0)(points)
        error = (points - self.centroids[owners]).square().sum(1)
        counts = torch.bincount(owners, minlength=self.clusters).float()
        sums = torch.zeros_like(self.centroids).index_add_(0, owners, points)
        self.wins = 0.98 * self.wins + counts
        share = (counts / self.wins.clamp(min=1))[:, None]
        self.centroids += share * (sums / counts.clamp(min=1)[:, None] - self.centroids)
        lost = torch.nonzero(self.wins < 0.02 * self.wins.mean()).flatten()
        if len(lost):  # hardly ever nearest: begin again at the points that are served worst
            self.centroids[lost] = points[error.topk(len(lost)).indices]
            self.wins[lost] = self.wins.mean()
        return float(error.mean())


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Cluster, compare, write `out/units.safetensors`, `out/unit_reader.safetensors` and a copy of the encoder."""
    candidates = list(itertools.product(config.layers, config.clusters))
    if (config.choice.layer, config.choice.clusters) not in candidates:
        raise ValueError(f"the choice {config.choice} is not among the candidates {candidates}: add it to them")
    encoder = _encoder(config, choose_device(options.device))
    speech = _Speakers(config)
    if options.dry_run:
        print(f"{len(candidates)} candidates from {speech.hours:.1f} hours in {config.steps} steps")
        return 0
    over = deadline(options.minutes)
    means = _clustered(config, encoder, speech, out, options, over)
    if means is None:
        return 1
    results = _compared(config, encoder, speech, means, out, over)
    if results is None:
        return 1
    chosen = means[config.choice.layer, config.choice.clusters]
    quantizer = Quantizer(chosen.centroids, config.choice.layer, features_layer=config.features_layer)
    quantizer.save(out / "units.safetensors")
    if (out / "speech_encoder").resolve() != (config.encoder / "speech_encoder").resolve():
        shutil.copytree(config.encoder / "speech_encoder", out / "speech_encoder", dirs_exist_ok=True)
    if config.words:
        language_model(vocabulary()).word_model().save(out / "speech_encoder" / WORDS)
    shutil.copyfile(_reader_folder(out, config.choice.layer, config.choice.clusters) / READER, out / READER)
    (out / "units.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    _print_table(results, config)
    return 0


def _encoder(config: Config, device: str) -> SpeechEncoder:
    """The encoder with a quantizer that stands in until there is one: only its states are asked for."""
    part = config.encoder / "speech_encoder"
    model = load_hubert(part, dtype=torch.float32).to(device)
    top = model.config.num_hidden_layers
    for layer in (*config.layers, config.features_layer):
        if not 0 <= layer <= top:
            raise ValueError(f"layer {layer} is asked for, but the encoder in {part} has 0..{top}")
    return SpeechEncoder(model, Quantizer(torch.zeros(1, model.config.hidden_size), layer=top))


class _Speakers:
    """The speech to cluster: utterance `index` of a run, drawn by the weights of the sources."""

    def __init__(self, config: Config) -> None:
        self.seed = config.seed
        self.folders = [ShardedSpeech(source.path) for source in config.speech.values()]
        weights = np.array([source.weight for source in config.speech.values()])
        self.chances = weights / weights.sum()
        self.hours = sum(float(folder.seconds.sum()) for folder in self.folders) / 3600

    def draw(self, index: int) -> tuple[np.ndarray, str | None]:
        """Waveform and text."""
        rng = np.random.default_rng([self.seed, 11, index])
        folder = self.folders[int(rng.choice(len(self.folders), p=self.chances))]
        row = int(rng.integers(len(folder)))
        return folder.pcm(row).astype(np.float32) / FULL_SCALE, folder.texts[row]


def _clustered(
    config: Config, encoder: SpeechEncoder, speech: _Speakers, out: Path, options: RunOptions, over: Callable[[], bool]
) -> dict[tuple[int, int], KMeans] | None:
    """Centroids of every candidate; None if time ran out."""
    means = {(layer, k): KMeans(k, config.seed) for layer in config.layers for k in config.clusters}
    state = resume(out / "checkpoints", config_hash(config), fresh=options.fresh)
    first = 0
    if state is not None:
        first = state["step"]
        for (layer, k), mean in means.items():
            mean.centroids, mean.wins = state["means"][f"{layer}-{k}"]
    with Progress(out, config.steps, step=first, title="k-means") as bar:
        for step in range(first, config.steps):
            draws = range(step * UTTERANCES_A_STEP, (step + 1) * UTTERANCES_A_STEP)
            states = [encoder.hidden_states(speech.draw(i)[0]) for i in draws]
            errors = {}
            for (layer, k), mean in means.items():
                points = torch.cat([hidden[layer] for hidden in states]).cpu()
                if step == 0:
                    mean.start(points)
                errors[f"distance/layer-{layer}-{k}"] = mean.update(points)
            bar.log(step, **errors)
            stop = over()
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == config.steps or stop:
                state = {"means": {f"{layer}-{k}": (m.centroids, m.wins) for (layer, k), m in means.items()}}
                save_checkpoint(out / "checkpoints", step + 1, state, config_hash=config_hash(config))
            if stop and step + 1 < config.steps:
                bar.note(f"stopped at step {step + 1} of {config.steps}; the same command continues")
                return None
    plot_losses(out)
    return means


def _compared(
    config: Config,
    encoder: SpeechEncoder,
    speech: _Speakers,
    means: Mapping[tuple[int, int], KMeans],
    out: Path,
    over: Callable[[], bool],
) -> list[dict[str, float]] | None:
    """For each candidate the word error of reading its units back, on each folder of `check`; None if time ran out.

    What has been measured is kept in `out/reading`, so that a rerun measures only the rest.
    """
    quantizers = {name: Quantizer(mean.centroids, name[0]) for name, mean in means.items()}
    left = [name for name in quantizers if not (_reader_folder(out, *name) / "errors.json").is_file()]
    if left:
        first = config.steps * UTTERANCES_A_STEP  # other utterances than those that placed the centroids
        pairs = [speech.draw(first + i) for i in range(config.reading_utterances)]
        pairs = [(wave, text) for wave, text in pairs if text]
        learned = _units_of(encoder, [wave for wave, _ in pairs], {name: quantizers[name] for name in left})
        letters = [letter_ids(text) for _, text in pairs]
        checks = {name: ShardedSpeech(path) for name, path in config.check.items()}
        heard = {
            name: _units_of(
                encoder,
                [folder.pcm(i).astype(np.float32) / FULL_SCALE for i in range(len(folder))],
                {candidate: quantizers[candidate] for candidate in left},
            )
            for name, folder in checks.items()
        }
    for candidate in left:
        if over():
            print("stopped before every candidate was compared; the same command continues")
            return None
        layer, clusters = candidate
        reader = learn_to_read(learned[candidate], letters, clusters, config.reading_steps, config.seed)
        errors = {
            name: jiwer.wer(
                [spoken_letters(text) for text in folder.texts], [reader.read(u) for u in heard[name][candidate]]
            )
            for name, folder in checks.items()
        }
        folder = _reader_folder(out, layer, clusters)
        folder.mkdir(parents=True, exist_ok=True)
        reader.save(folder)
        (folder / "errors.json").write_text(json.dumps(errors), encoding="utf-8")
        print(f"layer {layer}, {clusters} units: " + ", ".join(f"{k} {v:.3f}" for k, v in errors.items()), flush=True)
    return [
        {
            "layer": layer,
            "clusters": clusters,
            **json.loads((_reader_folder(out, layer, clusters) / "errors.json").read_text()),
        }
        for layer, clusters in quantizers
    ]


def _units_of(
    encoder: SpeechEncoder, waves: Sequence[np.ndarray], quantizers: Mapping[tuple[int, int], Quantizer]
) -> dict[tuple[int, int], list[np.ndarray]]:
    units: dict[tuple[int, int], list[np.ndarray]] = {name: [] for name in quantizers}
    for wave in waves:
        hidden = encoder.hidden_states(wave)
        for name, quantizer in quantizers.items():
            units[name].append(quantizer(hidden[name[0]].cpu()).numpy())
    return units


def _reader_folder(out: Path, layer: int, clusters: int) -> Path:
    return out / "reading" / f"layer-{layer}-{clusters}"


def _print_table(results: Sequence[Mapping[str, float]], config: Config) -> None:
    names = [name for name in results[0] if name not in ("layer", "clusters")]
    print("layer  units  " + "  ".join(f"{name:>10}" for name in names))
    for row in results:
        chosen = (row["layer"], row["clusters"]) == (config.choice.layer, config.choice.clusters)
        figures = "  ".join(f"{row[name]:10.3f}" for name in names)
        print(f"{row['layer']:5}  {row['clusters']:5}  {figures}{'   <- written' if chosen else ''}")
