import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from most_core.speech import SpeechEncoder, untrained_encoder
from most_core.vocoder import Vocoder, VocoderConfig, context_reach_units
from tests.train.conftest import weights
from train import discriminators, vocoder
from train.config import RunOptions, find_config, load_config
from train.data.shards import ShardedSpeech, describe_shard, write_manifest
from train.data.unit_speech import Batch, encode_piece, pieces, read_units, units_folder
from train.data.voices import Voice
from train.discriminators import Discriminators
from train.vocoder import Config, generator, learning_rate, run
from train.vocoder_export import voice_of
from train.vocoder_losses import SpectralLoss

UNITS = 12
SMALL = VocoderConfig(num_units=UNITS, embedding_dim=8, upsample_initial_channel=16)
JUDGES = discriminators.Shape((2, 3), (4, 4), (0,), (4, 4))
ONE = RunOptions(threads=1, device="cpu")


@pytest.fixture
def config(shards, tmp_path):
    untrained_encoder(8, UNITS).save(tmp_path / "ears")
    return Config(
        encoder=tmp_path / "ears",
        speech=(shards,),
        shape=SMALL,
        discriminators=JUDGES,
        steps=10,
        sound_from=2,
        adversarial_from=4,
        crops=2,
        telling_crops=3,
        telling_units=8,
        crop_units=6,
        window_units=4,
        warmup=2,
        checkpoint_every=5,
        check_every=10,
        log_every=1,
    )


def same(first, second):
    parts = ("generator", "average", "discriminators", "teller")
    return all(torch.equal(first[part][name], second[part][name]) for part in parts for name in first[part])


def logged(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    kept = ("loss/", "adversarial/", "features/", "check_")
    return [{name: value for name, value in line.items() if name.startswith(kept)} for line in lines]


def test_ten_steps_are_five_and_five_to_the_bit(config, tmp_path, monkeypatch):
    run(config, tmp_path / "whole", ONE)
    real = vocoder.deadline
    calls = iter(range(100))
    pieces_first = 1  # time is looked at before the one piece of units, too
    monkeypatch.setattr(vocoder, "deadline", lambda minutes: lambda: next(calls) == 4 + pieces_first)
    run(config, tmp_path / "halves", replace(ONE, minutes=1.0))
    assert weights(tmp_path / "halves")["step"] == 5
    assert (tmp_path / "halves" / "vocoder" / "model.safetensors").is_file()
    monkeypatch.setattr(vocoder, "deadline", real)
    run(config, tmp_path / "halves", ONE)
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole["step"] == halves["step"] == 10
    assert whole["shift"] == halves["shift"]
    assert same(whole, halves)
    assert logged(tmp_path / "whole") == logged(tmp_path / "halves")


def test_discriminators_join_when_they_should(config, tmp_path):
    run(config, tmp_path / "out", ONE)
    assert ["adversarial/generator" in line for line in logged(tmp_path / "out")] == [False] * 4 + [True] * 6
    assert ["loss/mel" in line for line in logged(tmp_path / "out")] == [False] * 2 + [True] * 8
    run(replace(config, adversarial_from=10), tmp_path / "never", ONE)
    run(replace(config, adversarial_from=10, steps=1), tmp_path / "first", ONE)
    first, after = (weights(tmp_path / name)["discriminators"] for name in ("first", "never"))
    assert all(torch.equal(first[name], after[name]) for name in first)
    assert not same(weights(tmp_path / "out"), weights(tmp_path / "never"))


def test_two_workers_learn_what_one_does(config, tmp_path):
    run(config, tmp_path / "one", ONE)
    run(config, tmp_path / "two", replace(ONE, threads=2))
    start = generator(SMALL, config.seed).state_dict()
    one, two = (weights(tmp_path / name)["generator"] for name in ("one", "two"))
    moved = torch.cat([(one[name] - start[name]).flatten() for name in one]).abs().mean()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).abs().mean()
    assert apart < 0.02 * moved


def test_it_learns_the_sound_of_units_and_exports_what_it_learned(config, shards, tmp_path):
    out = tmp_path / "out"
    steady = replace(config, steps=100, sound_from=40, adversarial_from=100, check=shards, checkpoint_every=100)
    steady = replace(steady, telling_rate=1e-2, learning_rate=4e-3, average=0.8)
    run(replace(steady, check_every=50), out, ONE)
    told = [line["loss/told"] for line in logged(out) if "loss/told" in line]
    assert len(told) == 40
    assert np.mean(told[-5:]) < 0.9 * np.mean(told[:5])
    distances = [line["check_mel_distance"] for line in logged(out) if "check_mel_distance" in line]
    losses = [line["loss/mel"] for line in logged(out) if "loss/mel" in line]
    assert len(distances) == 2
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert {path.name for path in (out / "samples" / "step-00000100").iterdir()} >= {
        "0.png",
        "0-original.wav",
        "0-vocoder.wav",
    }
    assert (out / "losses.png").stat().st_size > 1000

    # The exported folder hears and speaks; half precision is all that it lost
    assert load_file(out / "vocoder" / "model.safetensors")["embedding.weight"].dtype == torch.half
    exported, encoder = Vocoder.load(out), SpeechEncoder.load(out)
    model = generator(SMALL, 0)
    model.load_state_dict(weights(out)["average"])
    units = encoder.units(ShardedSpeech(shards)[4].wave)
    sound = exported.synthesize(units)
    with torch.no_grad():
        expected = model(torch.from_numpy(units)[None])[0].numpy()
    assert np.abs(sound - expected).max() < 0.02 * np.abs(expected).max()


def test_the_generator_learns_from_the_discriminators_and_they_from_themselves(config):
    """One pass for both gives the gradients that two separate ones would."""
    model, judges = generator(SMALL, 1), Discriminators(JUDGES)
    spectral, size = SpectralLoss(), 640
    around = sum(context_reach_units(SMALL))
    units = torch.randint(UNITS, (2, 6 + around), generator=torch.Generator().manual_seed(0))
    waves = 0.1 * torch.randn(2, 6 * size, generator=torch.Generator().manual_seed(1))
    losses = vocoder._backward(config, model, judges, spectral, Batch(units, waves, size))
    assert all(weight.grad is None for weight in [*model.embedding.parameters(), *model.context.parameters()])
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    theirs = {name: weight.grad.clone() for name, weight in judges.named_parameters()}

    made, window = model.sound(units), slice(size, 5 * size)
    alone = dict(judges.named_parameters())
    loss = judges(made[:, window].detach(), waves[:, window]).discriminators
    assert loss.item() == pytest.approx(losses[2].item(), rel=1e-5)
    for (name, _), grad in zip(alone.items(), torch.autograd.grad(loss, list(alone.values()))):
        assert torch.allclose(theirs[name], grad, rtol=1e-3, atol=1e-6)
    stft, mel = spectral(made, waves)
    judgement = judges(made[:, window], waves[:, window])
    asked = config.weights
    total = asked.mel * mel + asked.stft * stft
    total = total + asked.adversarial * judgement.generator + asked.features * judgement.features
    wanted = {name: weight for name, weight in model.named_parameters() if name.startswith("generator.")}
    for (name, _), grad in zip(wanted.items(), torch.autograd.grad(total, list(wanted.values()))):
        assert torch.allclose(ours[name], grad, rtol=1e-2, atol=1e-4 * grad.abs().max().item() + 1e-7)


def test_units_are_those_of_the_encoder_and_computed_once(config, shards, tmp_path, monkeypatch):
    encoder, speech = SpeechEncoder.load(config.encoder), ShardedSpeech(shards)
    folder = units_folder(tmp_path, config.encoder, config.speech)
    for piece in pieces(speech):
        encode_piece(encoder, speech, folder, piece)
    units = read_units(speech, folder)
    assert len(units) == len(speech)
    assert all(np.array_equal(each, encoder.units(speech[row].wave)) for row, each in enumerate(units))
    monkeypatch.setattr(SpeechEncoder, "units", lambda *_: pytest.fail("computed again"))
    for piece in pieces(speech):
        encode_piece(encoder, speech, folder, piece)
    untrained_encoder(8, UNITS, seed=1).save(config.encoder)
    assert units_folder(tmp_path, config.encoder, config.speech) != folder


def test_killed_while_units_are_computed_the_same_command_goes_on(config, tmp_path, monkeypatch, capsys):
    real = vocoder.deadline
    monkeypatch.setattr(vocoder, "deadline", lambda minutes: lambda: True)
    assert run(config, tmp_path / "out", ONE) == 0
    assert "before all units were computed" in capsys.readouterr().out
    assert not (tmp_path / "out" / "vocoder").exists()
    monkeypatch.setattr(vocoder, "deadline", real)
    run(config, tmp_path / "out", ONE)
    assert weights(tmp_path / "out")["step"] == 10


def test_the_folder_tells_whose_voice_it_has(config, shards, tmp_path):
    run(replace(config, steps=1, shift=64), tmp_path / "unknown", ONE)
    with pytest.raises(ValueError, match="names no synthetic voice"):
        voice_of(tmp_path / "unknown")
    voice = {"engine": "flite", "name": "slt", "pitch": 1.0, "rate": 1.0, "formants": 1.0, "intonation": 1.0}
    write_manifest(shards, [describe_shard(shards / "speech-00000.arrow")], {"voices": voice})
    run(replace(config, steps=1, shift=64), tmp_path / "known", ONE)
    assert voice_of(tmp_path / "known") == (Voice("flite", "slt"), 64)
    with pytest.raises(FileNotFoundError, match=r"voice\.json is missing"):
        voice_of(tmp_path)


def test_other_settings_do_not_continue_a_run(config, tmp_path):
    run(replace(config, steps=1), tmp_path / "out", ONE)
    with pytest.raises(ValueError, match="other settings"):
        run(replace(config, steps=2), tmp_path / "out", ONE)
    run(replace(config, steps=2), tmp_path / "out", replace(ONE, fresh=True))
    assert weights(tmp_path / "out")["step"] == 2


def test_a_dry_run_leaves_nothing(config, tmp_path, capsys):
    assert run(config, tmp_path / "nothing", replace(ONE, dry_run=True)) == 0
    assert "hours heard" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


def test_first_sound_is_neither_silent_nor_cut_off():
    with torch.no_grad():
        sound = generator(VocoderConfig(num_units=100), 0)(torch.randint(100, (1, 20)))
    assert 0.02 < float(sound.std()) < 0.2
    assert float(sound.abs().max()) < 0.95


def test_the_schedule_depends_on_the_step_alone():
    config = Config(encoder=Path("e"), speech=(), warmup=10, sound_from=40, adversarial_from=60, steps=150)
    for first, last in ((0, 39), (40, 150)):
        assert learning_rate(config, first) == pytest.approx(0.1)
        assert learning_rate(config, first + 9) == pytest.approx(1)
        assert learning_rate(config, last) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("name", ["vocoder-debug", "vocoder-nano", "vocoder-nano-gpu"])
def test_vocoder_presets_are_small_enough(name):
    preset = load_config(Config, find_config(name))
    assert sum(p.numel() for p in generator(preset.shape, 0).parameters()) < 3_000_000
    assert generator(preset.shape, 0).config.samples_per_unit == 640


def test_a_shape_that_does_not_fit_the_encoder_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"shape\.num_units is 13, but .*ears has 12 units"):
        run(replace(config, shape=replace(SMALL, num_units=13)), tmp_path / "out", ONE)
    with pytest.raises(ValueError, match=r"shape\.duration_predictor is true"):
        replace(config, shape=replace(SMALL, duration_predictor=True))


def test_a_window_wider_than_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"window_units is 9; expected 1\.\.8"):
        Config(encoder=Path("e"), speech=(), crop_units=8, window_units=9)
