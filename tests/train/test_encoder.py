import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from most_core.speech import CtcHead, Quantizer, SpeechEncoder
from tests.train.conftest import TEXTS, spoken, weights
from train import encoder
from train.checkpoints import latest_checkpoint
from train.config import RunOptions, to_yaml
from train.data.augment import NO_AUGMENTATION
from train.data.mixture import LETTERS, Masking, Speech, Targets
from train.encoder import Config, Ears, Shape, ctc_loss, learning_rate, run

SMALL = Shape(conv_dim=(8, 8, 16, 16, 16), hidden=32, layers=2, heads=2, feed_forward=32, middle_layer=1)
ONE = RunOptions(threads=1, device="cpu")


@pytest.fixture
def config(shards):
    return Config(
        speech={"all": Speech(shards)},
        check={"all": shards},
        shape=SMALL,
        steps=10,
        warmup=2,
        short_first=2,
        micro_batches=2,
        micro_batch_seconds=4.0,
        checkpoint_every=5,
        check_every=10,
        log_every=1,
    )


def same(first, second):
    return all(torch.equal(first["ears"][name], second["ears"][name]) for name in first["ears"])


def test_the_schedule_depends_on_the_step_alone():
    config = Config(speech={}, learning_rate=1.0, warmup=10, steps=110)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == pytest.approx(1)
    assert learning_rate(config, 60) == pytest.approx(0.505)
    assert learning_rate(config, 110) == pytest.approx(0.01)


def test_ten_steps_are_five_and_five_to_the_bit(config, tmp_path, monkeypatch):
    run(config, tmp_path / "whole", ONE)
    real = encoder.deadline
    calls = iter(range(100))
    monkeypatch.setattr(encoder, "deadline", lambda minutes: lambda: next(calls) == 4)
    run(config, tmp_path / "halves", replace(ONE, minutes=1.0))
    assert weights(tmp_path / "halves")["step"] == 5
    monkeypatch.setattr(encoder, "deadline", real)
    run(config, tmp_path / "halves", ONE)
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole["step"] == halves["step"] == 10
    assert same(whole, halves)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "halves")]
    losses = [[json.loads(line).get("loss/last") for line in lines] for lines in logs]
    assert losses[0] == losses[1]


def test_killed_anywhere_the_same_command_ends_the_same(config, tmp_path):
    longer = replace(config, steps=30, checkpoint_every=3, check_every=30)
    run(longer, tmp_path / "whole", ONE)
    settings = tmp_path / "config.yaml"
    settings.write_text(to_yaml(longer))
    command = [sys.executable, "-m", "train", "encoder", "--config", settings, "--out", tmp_path / "killed"]
    command = [str(part) for part in command] + ["--threads", "1", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while latest_checkpoint(tmp_path / "killed" / "checkpoints") is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "speech_encoder").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_two_workers_learn_what_one_does(config, tmp_path):
    run(config, tmp_path / "one", ONE)
    run(config, tmp_path / "two", replace(ONE, threads=2))
    one, two = weights(tmp_path / "one")["ears"], weights(tmp_path / "two")["ears"]
    moved = torch.cat([(one[name] - Ears(SMALL).state_dict()[name]).flatten() for name in one]).abs().mean()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).abs().mean()
    assert apart < 0.02 * moved


def test_it_learns_to_spell_and_what_is_exported_spells_the_same(config, tmp_path):
    steady = replace(
        config,
        steps=400,
        learning_rate=4e-3,
        warmup=20,
        augmentation=NO_AUGMENTATION,
        masking=Masking(0.0),
        average=0.9,
    )
    run(steady, tmp_path, ONE)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    errors = [line["word_error/all"] for line in log if "word_error/all" in line]
    assert errors[-1] < 0.2 < errors[0]
    assert (tmp_path / "losses.png").stat().st_size > 1000

    Quantizer(torch.zeros(4, SMALL.hidden), layer=1).save(tmp_path / "units.safetensors")
    loaded = SpeechEncoder.load(tmp_path)
    heard = [" ".join(word.text for word in loaded.words(spoken(0, text).wave)) for text in TEXTS]
    assert heard[1] == "one two"
    assert load_file(tmp_path / "speech_encoder" / "model.safetensors")["encoder.layer_norm.weight"].dtype == torch.half


def test_a_start_gives_weights_and_nothing_else(config, tmp_path):
    run(config, tmp_path / "first", ONE)
    later = replace(config, start=tmp_path / "first", steps=1, learning_rate=0.0, weight_decay=0.0)
    run(later, tmp_path / "second", ONE)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert second["step"] == 1
    assert all(torch.equal(first["average"][name], second["ears"][name]) for name in first["average"])
    with pytest.raises(FileNotFoundError, match="no checkpoint to start from"):
        run(replace(later, start=tmp_path / "nowhere"), tmp_path / "third", ONE)


def test_other_settings_do_not_continue_a_run(config, tmp_path):
    run(replace(config, steps=1), tmp_path, ONE)
    with pytest.raises(ValueError, match="other settings"):
        run(replace(config, steps=2), tmp_path, ONE)
    run(replace(config, steps=2), tmp_path, replace(ONE, fresh=True))
    assert weights(tmp_path)["step"] == 2


def test_what_cannot_be_spelled_or_is_not_known_counts_for_nothing():
    logits = torch.randn(3, 6, len(LETTERS), generator=torch.Generator().manual_seed(0), requires_grad=True)
    three = Targets(torch.tensor([3, 3, 3, 3, 3, 4]), torch.tensor([5, 1, 0]))  # five letters alike need nine steps
    alone = Targets(torch.tensor([4]), torch.tensor([1]))
    loss = ctc_loss(logits, three)
    assert loss.item() == pytest.approx(ctc_loss(logits[1:2], alone).item())
    loss.backward()
    assert not logits.grad[[0, 2]].any()
    assert ctc_loss(logits, Targets(torch.tensor([], dtype=torch.long), torch.tensor([0, 0, 0]))) == 0


def test_a_dry_run_leaves_nothing(config, tmp_path, capsys):
    assert run(config, tmp_path / "nothing", replace(ONE, dry_run=True)) == 0
    assert "hours heard" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


def test_spelling_in_training_is_that_of_the_product():
    logits = torch.randn(20, len(LETTERS), generator=torch.Generator().manual_seed(0))
    head = CtcHead(torch.eye(len(LETTERS)), torch.zeros(len(LETTERS)), LETTERS, 0)
    assert encoder.spell(logits) == " ".join(word.text for word in head.words(logits, 1.0))
