import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch

from most_core.config import MostConfig
from most_core.loading import load_decoder
from most_core.processing import train_small_tokenizer
from tests.train.conftest import weights
from train import __main__ as cli
from train import checkpoints, stages
from train.data.lesson_mixture import LessonMixture
from train.data.lessons import Lesson, describe_lessons, write_lessons
from train.data.made_up import write_made_up
from train.data.shards import write_manifest
from train.routing_watch import RoutingWatch
from train.stage_config import TASKS, Config, learning_rate
from train.start import starting_model

SHAPE = MostConfig.tiny()
SMALL = ["start=tiny", "micro_batch_tokens=256", "warmup=2", "log_every=2", "check_every=4", "check_batches=1"]
ONE = ["--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """What `prepare` leaves, of random tokens; read only."""
    folder = tmp_path_factory.mktemp("lessons")
    for task in TASKS:
        write_made_up(folder / task, task, SHAPE, rows=40)
    train_small_tokenizer(["a few words"], SHAPE).save_pretrained(folder / "tokenizer")
    return folder


def stage(lessons, out, *settings, stage="stage1", options=ONE):
    command = [stage, "--out", str(out), "--set", f"lessons={lessons}", *SMALL, *settings, *options]
    return cli.main(command)


def same(one, other, **tolerance):
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], **tolerance) if tolerance else torch.equal(one[name], other[name])
        for name in one
    )


def test_a_stage_learns_and_says_how(lessons, tmp_path, capsys):
    settings = [f"check={lessons}", "steps=24", "learning_rate=1e-2", "micro_batches=5"]
    assert stage(lessons, tmp_path / "run", *settings) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    checks = [line["check_loss_words/asr"] for line in log if "check_loss_words/asr" in line]
    assert len(checks) == 1 + 24 // 4
    assert checks[-1] < checks[0] - 0.2
    shares = [line for line in log if "share/asr" in line]
    mean = {task: sum(line.get(f"share/{task}", 0) for line in shares) / len(shares) for task in ("asr", "tts", "text")}
    assert mean == pytest.approx({"asr": 0.4, "tts": 0.4, "text": 0.2}, abs=0.05)
    assert {name for line in log for name in line} >= {
        *("loss_words/asr", "loss_units/tts", "loss_words/text", "balance/layer_1", "balance/layer_2", "norm"),
        *("tokens_per_s/all", "check_loss_words/speech_instructions", "check_loss_units/text_instructions"),
    }
    assert all(line["leakage/layer_1"] == line["leakage/layer_2"] == 0 for line in shares)
    assert (tmp_path / "run" / "losses.png").stat().st_size > 10_000
    model = load_decoder(tmp_path / "run" / "model", device="cpu")
    assert same(dict(model.named_parameters()), weights(tmp_path / "run")["weights"])
    assert "lessons: 40 for asr, 40 for tts, 40 for text (0 too long)" in capsys.readouterr().err


def test_two_processes_learn_what_one_does(lessons, tmp_path):
    settings = ["steps=3", "micro_batches=5", "learning_rate=1e-4"]  # of which one process has text alone, now and then
    for threads in (1, 2):
        options = ["--threads", str(threads), "--device", "cpu"]
        assert stage(lessons, tmp_path / str(threads), *settings, options=options) == 0
    one, two = (weights(tmp_path / str(threads))["weights"] for threads in (1, 2))
    assert same(one, two, atol=1e-5, rtol=0)
    start = dict(starting_model("tiny", {}, 0).named_parameters())
    assert not same(one, start, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["text", "asr"])
def test_idle_experts_have_zero_not_missing_gradients(lessons, task):
    model = starting_model("tiny", {}, 0).train()
    batch, watch = mixture(lessons, {task: 1.0})[0], RoutingWatch(model)
    with watch.watching(True):
        losses, balance = stages.losses_of(model, batch)
    (losses.sum() + balance).backward()
    first, last = (model.model.layers[layer].mlp.experts.gate_up_proj.grad for layer in (1, 2))
    used = watch.counts[1].sum(0) > 0
    assert [bool(first[expert].any()) for expert in range(8)] == used.tolist()
    assert used[4:].any() == (task == "asr")
    assert not last[4:].any()  # what is said here is words, and nothing comes after the last layer but them


def mixture(lessons, shares):
    return LessonMixture(lessons, shares, SHAPE.tokens, SHAPE.speech_feature_size, SHAPE.pad_token_id, 256)


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_what_the_assistant_says(lessons, task):
    model = starting_model("tiny", {}, 0).eval()
    batch = mixture(lessons, {task: 1.0})[3]
    labels = batch.ids.masked_fill(~batch.targets, -100)
    made = model(
        input_ids=batch.ids, attention_mask=batch.valid, input_features=batch.features, labels=labels, use_cache=False
    )
    losses, _ = stages.losses_of(model, batch)
    assert len(losses) == int(batch.targets[:, 1:].sum())
    assert float(losses.mean()) == pytest.approx(float(made.loss), rel=1e-4)


def test_a_units_weight_counts(lessons, tmp_path):
    """Where units count nothing, nothing is learned of them."""
    for weight in (0, 1):
        assert stage(lessons, tmp_path / str(weight), "mixture={tts: 1.0}", "steps=2", f"unit_weight={weight}") == 0
    head = {weight: weights(tmp_path / str(weight))["weights"]["lm_head.weight"] for weight in (0, 1)}
    assert not torch.equal(head[0], head[1])


def test_stopped_by_the_clock_it_continues_to_the_same_end(lessons, tmp_path, monkeypatch):
    settings = ["steps=9", "checkpoint_every=4"]
    assert stage(lessons, tmp_path / "whole", *settings) == 0
    with monkeypatch.context() as patch:
        ticks = iter([False] * 5 + [True] * 100)
        patch.setattr(stages, "deadline", lambda minutes: lambda: next(ticks))
        assert stage(lessons, tmp_path / "parts", *settings) == 1
    assert weights(tmp_path / "parts")["step"] == 6
    assert not (tmp_path / "parts" / "model").exists()
    assert stage(lessons, tmp_path / "parts", *settings) == 0
    assert same(weights(tmp_path / "whole")["weights"], weights(tmp_path / "parts")["weights"])


def test_two_processes_continue_to_the_same_end(lessons, tmp_path):
    settings, two = (
        ["steps=4", "micro_batches=3", "optimizer=muon", "precision=bfloat16", f"check={lessons}"],
        ["--threads", "2", "--device", "cpu"],
    )
    assert stage(lessons, tmp_path / "whole", *settings, options=two) == 0
    assert stage(lessons, tmp_path / "parts", *settings, options=[*two, "--minutes", "0.0001"]) == 1
    assert weights(tmp_path / "parts")["step"] == 1
    assert stage(lessons, tmp_path / "parts", *settings, options=two) == 0
    assert same(weights(tmp_path / "whole")["weights"], weights(tmp_path / "parts")["weights"])


def test_muon_has_no_empty_group_for_a_dense_model(make_model):
    """Of which several processes could not tell each other the steps."""
    for model, groups in ((make_model(), 4), (make_model(feed_forward="dense"), 3)):
        made = stages.make_optimizer(Config(start="tiny", optimizer="muon"), model).param_groups
        assert [bool(group["params"]) for group in made] == [True] * groups
        assert sum(len(group["params"]) for group in made) == len(list(model.parameters()))


def test_sharded_by_a_launcher_they_learn_the_same(lessons, tmp_path):
    """As `torchrun -m train stage1` does it, stopped and continued: weights spread over two processes."""
    settings = ["steps=4", f"check={lessons}", "checkpoint_every=2"]
    assert stage(lessons, tmp_path / "one", *settings) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    out = [
        "stage1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "two"),
        "--set",
        f"lessons={lessons}",
        *SMALL,
        *settings,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = subprocess.run([*launcher, *out, "--minutes", "0.0001"], env=environment, timeout=180, check=False)
    assert stopped.returncode != 0
    assert weights(tmp_path / "two")["step"] == 1
    subprocess.run([*launcher, *out], env=environment, timeout=180, check=True)
    one, two = (weights(tmp_path / name)["weights"] for name in ("one", "two"))
    assert same(one, two, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def forks():
    """Processes that begin at once, for what is slow to import is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_stages", "peft", "matplotlib.figure", "tensorboardX"])
    return context


def killed_until_done(forks, command, out):
    """Kill a command at a random moment soon after its second, fifth and eighth step, then let it end."""
    kills, rng = 0, random.Random(0)
    for step in (2, 5, 8):
        process = forks.Process(target=cli.main, args=(command,))
        process.start()
        while process.is_alive() and not any((out / "checkpoints").glob(f"step-*{step}")):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        kills += process.is_alive()
        process.kill()
        process.join()
    process = forks.Process(target=cli.main, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return kills


@pytest.mark.parametrize("which", ["stage1", "stage2"])
def test_killed_anywhere_it_ends_bit_identical(lessons, tmp_path, forks, which):
    settings = ["steps=12", "checkpoint_every=1", f"check={lessons}"]
    if which == "stage2":
        assert stage(lessons, tmp_path / "before", "steps=2") == 0
        settings += [f"start={tmp_path / 'before' / 'model'}", "optimizer=muon", "precision=bfloat16"]
        settings += ["mixture={speech_instructions: 0.4, text_instructions: 0.4, asr: 0.1, tts: 0.1}"]
    assert stage(lessons, tmp_path / "whole", *settings, stage=which) == 0
    command = [which, "--out", str(tmp_path / "killed"), "--set", f"lessons={lessons}", *SMALL, *settings, *ONE]
    command = [setting for setting in command if setting != "start=tiny" or which == "stage1"]
    kills = killed_until_done(forks, command, tmp_path / "killed")
    assert kills > 0
    assert same(weights(tmp_path / "whole")["weights"], weights(tmp_path / "killed")["weights"])
    models = [load_decoder(tmp_path / name / "model", device="cpu").state_dict() for name in ("whole", "killed")]
    assert same(*models)


def test_a_full_disk_leaves_the_last_checkpoint(lessons, tmp_path, monkeypatch, capsys):
    settings = ["steps=9", "checkpoint_every=3"]
    assert stage(lessons, tmp_path / "whole", *settings) == 0
    with monkeypatch.context() as patch:
        save, calls = torch.save, []

        def full(state, file):
            calls.append(1)
            if len(calls) == 2:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            save(state, file)

        patch.setattr(checkpoints.torch, "save", full)
        assert stage(lessons, tmp_path / "full", *settings) == 2
    assert capsys.readouterr().err.strip().endswith("error: No space left on device")
    assert weights(tmp_path / "full")["step"] == 3
    assert stage(lessons, tmp_path / "full", *settings) == 0
    assert same(weights(tmp_path / "whole")["weights"], weights(tmp_path / "full")["weights"])


def test_a_gradient_that_is_no_number_stops_with_the_lessons_name(lessons, tmp_path, capsys):
    folder = tmp_path / "lessons"
    write_made_up(folder / "asr", "asr", SHAPE, rows=8)
    bad = mixture(lessons, {"asr": 1.0}).lessons["asr"][0]
    bad = Lesson(**{**vars(bad), "features": bad.features * float("nan")})
    write_lessons(folder / "text" / "lessons-00000.arrow", [bad])
    write_manifest(folder / "text", [describe_lessons(folder / "text" / "lessons-00000.arrow")], {})
    settings = ["mixture={asr: 0.9, text: 0.1}", "steps=40", "checkpoint_every=1", "micro_batches=1"]
    assert stage(folder, tmp_path / "run", *settings) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the gradient is nan after text (asr-0" in error
    step = int(error.split("step ")[1].split(":")[0])
    kept = weights(tmp_path / "run")
    assert kept["step"] == step > 0
    assert all(torch.isfinite(weight).all() for weight in kept["weights"].values())


@pytest.mark.parametrize("trains", ["all_but_experts", "lora"])
def test_what_learned_in_part_comes_out_whole(lessons, tmp_path, trains):
    assert stage(lessons, tmp_path / "run", f"trains={trains}", "steps=2", "learning_rate=1e-2") == 0
    model, start = load_decoder(tmp_path / "run" / "model", device="cpu"), starting_model("tiny", {}, 0)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, start.get_parameter(name))}
    assert "model.layers.1.self_attn.o_proj.weight" in moved
    assert ("model.layers.1.mlp.experts.gate_up_proj" in moved) == (trains == "lora")


def test_a_stage_starts_from_the_weights_alone(lessons, tmp_path):
    assert stage(lessons, tmp_path / "one", "steps=4") == 0
    start = f"start={tmp_path / 'one' / 'model'}"
    assert (
        cli.main(
            [
                "stage2",
                "--out",
                str(tmp_path / "two"),
                "--set",
                f"lessons={lessons}",
                *SMALL[1:],
                start,
                "steps=1",
                "learning_rate=0",
                *ONE,
            ]
        )
        == 0
    )
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert same(one["weights"], two["weights"])
    assert two["step"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mixture={asr: 0.5, tts: 0.4}"], "expected shares that sum to 1"),
        (["mixture={asr: 0.5, ttx: 0.5}"], "mixture.ttx is no setting"),
        (["steps=0"], "steps is 0; expected 1 or more"),
        (["lerning_rate=1"], "did you mean learning_rate?"),
        (["lessons=nowhere"], "nowhere holds no lessons for asr: prepare some, or give it no share"),
        (["micro_batch_tokens=8"], "holds no lesson of at most 8 tokens"),
        (["start=enormous"], "start is 'enormous'"),
        (["check=nowhere"], "check: nowhere holds no lessons"),
        (["clip=0"], "clip is 0.0; expected more than 0"),
        (["noise.mask_frames=0"], "mask_frames of 1 or more"),
        (["forms.silent=5"], "silent is 5.0; expected a share, 0..1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(lessons, tmp_path, capsys, settings, message):
    assert stage(lessons, tmp_path / "run", *settings) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


def test_other_settings_are_refused_with_the_difference(lessons, tmp_path, capsys):
    assert stage(lessons, tmp_path / "run", "steps=2") == 0
    assert stage(lessons, tmp_path / "run", "steps=3") == 2
    assert "was begun with steps 2, not 3" in capsys.readouterr().err
    assert stage(lessons, tmp_path / "run", "steps=3", options=[*ONE, "--fresh"]) == 0
    assert weights(tmp_path / "run")["step"] == 3


def test_other_weights_to_start_from_are_refused(lessons, tmp_path, capsys):
    for out, seed in (("one", 0), ("other", 1)):
        assert stage(lessons, tmp_path / out, "steps=1", f"seed={seed}") == 0
    start = ["stage2", "--out", str(tmp_path / "two"), "--set", f"lessons={lessons}", *SMALL[1:]]
    start += [f"start={tmp_path / 'one' / 'model'}", "steps=1", *ONE]
    assert cli.main(start) == 0
    shutil.copyfile(tmp_path / "other/model/model.safetensors", tmp_path / "one/model/model.safetensors")
    assert cli.main(start) == 2
    assert "was begun with inputs." in capsys.readouterr().err


def test_a_damaged_shard_is_refused(lessons, tmp_path, capsys):
    folder = tmp_path / "lessons"
    for task in ("asr", "tts", "text"):
        write_made_up(folder / task, task, SHAPE, rows=4)
    path = folder / "tts" / "lessons-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert stage(folder, tmp_path / "run", "steps=1") == 2
    assert "is not what was written (SHA-256 differs)" in capsys.readouterr().err


def test_a_dry_run_takes_a_step_and_leaves_nothing(tmp_path, capsys):
    assert cli.main(["stage1", "--out", str(tmp_path / "run"), "--dry-run", "--set", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "one step on made-up lessons: tokens" in told
    assert "fits into 80 GB" in told
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_rises_and_falls():
    config = Config(steps=100, warmup=10, last_rate=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.1, abs=0.001)


def test_watching_does_not_change_what_is_computed(lessons):
    model = starting_model("tiny", {}, 0).eval()
    batch = mixture(lessons, {"asr": 1.0})[0]
    plain, _ = stages.losses_of(model, batch)
    watch = RoutingWatch(model)
    with watch.watching(True):
        watched, _ = stages.losses_of(model, batch)
    assert torch.equal(plain, watched)
