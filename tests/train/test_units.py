import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from most_core.speech import CtcHead, SpeechEncoder, untrained_encoder
from train import units
from train.config import RunOptions
from train.data.mixture import LETTERS, Speech
from train.trigram import Trigram
from train.unit_reader import UnitReader
from train.units import Choice, Config, KMeans, run

CPU = RunOptions(device="cpu")


@pytest.fixture
def config(shards, tmp_path):
    untrained_encoder(24, 8).save(tmp_path / "encoder")
    return Config(
        encoder=tmp_path / "encoder",
        speech={"all": Speech(shards)},
        check={"all": shards},
        layers=(1, 2),
        clusters=(8, 16),
        choice=Choice(1, 16),
        features_layer=2,
        steps=3,
        reading_utterances=12,
        reading_steps=4,
        words=False,
    )


def test_k_means_finds_clusters_that_are_there():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 5, generator=generator) * 10
    means = KMeans(6, seed=1)
    distances = []
    for step in range(20):
        points = truth[torch.randint(6, (300,), generator=generator)] + torch.randn(300, 5, generator=generator) * 0.1
        if step == 0:
            means.start(points)
        distances.append(means.update(points))
    assert distances[-1] < 0.1
    assert torch.cdist(truth, means.centroids).min(1).values.max() < 0.2


def test_a_cluster_that_wins_nothing_begins_again():
    means = KMeans(2, seed=0)
    means.start(torch.zeros(4, 3))
    far = torch.cat([torch.zeros(50, 3), torch.full((50, 3), 5.0)])
    for _ in range(60):
        means.update(far)
    assert sorted(means.centroids.mean(1).tolist()) == pytest.approx([0, 5], abs=0.2)


def test_what_is_written_is_a_whole_encoder(config, tmp_path, capsys):
    assert run(config, tmp_path / "out", CPU) == 0
    encoder = SpeechEncoder.load(tmp_path / "out")
    assert encoder.num_units == 16
    assert (encoder.quantizer.layer, encoder.quantizer.features_layer) == (1, 2)
    assert UnitReader.load(tmp_path / "out").clusters == 16
    results = json.loads((tmp_path / "out" / "units.json").read_text())
    assert [(row["layer"], row["clusters"]) for row in results] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert all(row["all"] >= 0 for row in results)
    assert "<- written" in capsys.readouterr().out
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    states = encoder.hidden_states(wave)
    assert torch.equal(encoder.features(wave), states[2])
    assert np.array_equal(encoder.units(wave), encoder.quantizer(states[1]).numpy())


def test_captions_get_their_words(config, tmp_path, monkeypatch):
    encoder = untrained_encoder(24, 8)
    weight = torch.randn(2 * len(LETTERS), 24, generator=torch.Generator().manual_seed(0))
    SpeechEncoder(encoder.model, encoder.quantizer, CtcHead(weight, torch.zeros(len(weight)), LETTERS, 2)).save(
        config.encoder
    )
    monkeypatch.setattr(units, "vocabulary", lambda: {"good", "morning"})
    monkeypatch.setattr(units, "language_model", lambda known: Trigram([["good", "morning"]], known))
    assert run(replace(config, words=True), tmp_path / "out", CPU) == 0
    assert SpeechEncoder.load(tmp_path / "out").ctc.search.model.words == ("good", "morning")


def test_stopped_anywhere_it_ends_the_same(config, tmp_path, monkeypatch):
    run(config, tmp_path / "whole", CPU)
    for stop_at in (1, 4):
        calls = iter(range(100))
        with monkeypatch.context() as patch:
            patch.setattr(units, "deadline", lambda minutes, at=stop_at, calls=calls: lambda: next(calls) == at)
            assert run(config, tmp_path / "parts", replace(CPU, minutes=1.0)) == 1
        assert not (tmp_path / "parts" / "units.safetensors").exists()
    assert run(config, tmp_path / "parts", CPU) == 0
    whole, parts = (load_file(tmp_path / name / "units.safetensors") for name in ("whole", "parts"))
    assert torch.equal(whole["centroids"], parts["centroids"])
    first, second = ((tmp_path / name / "units.json").read_text() for name in ("whole", "parts"))
    assert first == second


def test_what_does_not_fit_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="not among the candidates"):
        run(replace(config, choice=Choice(1, 9)), tmp_path / "out", CPU)
    with pytest.raises(ValueError, match=r"layer 7 is asked for, but the encoder in .* has 0\.\.2"):
        run(replace(config, layers=(1, 7)), tmp_path / "out", CPU)


def test_a_dry_run_leaves_nothing(config, tmp_path, capsys):
    assert run(config, tmp_path / "out", replace(CPU, dry_run=True)) == 0
    assert "4 candidates" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
