"""Two gloo processes learn what one does. They run this very file: `torchrun test_sharding.py FOLDER CASE...`."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState

from most_core import MostConfig, MostForCausalLM
from train.checkpoints import load_checkpoint, save_checkpoint
from train.sharding import gather_state, make_mesh, processes, shard, spread_state
from train.stage_config import Config
from train.trainable import make_trainable, trained_parameters

LAUNCHERS = {  # how to start two processes
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"),
}
CASES = {  # what learns, whether head and embeddings are tied, whether activations are checkpointed
    "all": (Config(), False, True),
    "all tied": (Config(), True, False),
    "all_but_experts": (Config(trains="all_but_experts"), False, False),
    "lora": (Config(trains="lora"), False, True),
    "lora tied": (Config(trains="lora"), True, False),
}
launches = pytest.mark.flaky(reruns=2)  # processes meet within a time that a machine may miss that others keep busy


def batches(shape):
    """One of words alone, one of speech alone: each leaves half of the experts idle, the first the projector too."""
    random = torch.Generator().manual_seed(2)
    tokens = shape.tokens
    units = torch.randint(0, tokens.num_units, (2, 12), generator=random) + tokens.first_unit
    speech = torch.cat([torch.full((2, 4), tokens.frame), units], dim=1)
    features = torch.randn(2, 4, shape.speech_feature_size, generator=random)
    words = torch.randint(3, tokens.first_unit, (2, 16), generator=random)
    return [{"input_ids": words}, {"input_ids": speech, "input_features": features}]


def learner(case, mesh=None, **kwargs):
    config, tied, checkpointed = CASES[case]
    torch.manual_seed(0)
    model = make_trainable(MostForCausalLM(MostConfig.tiny(tie_word_embeddings=tied)), config)
    model = shard(model, mesh, checkpoint_activations=checkpointed, **kwargs)
    # A large epsilon: Adam's first steps are the signs of the gradients, and the sign of nearly nothing is chance.
    return model, torch.optim.AdamW(trained_parameters(model).values(), lr=1e-3, eps=1e-4)


def step(model, optimizer, mine, everyones):
    """Learn from the batches `mine`; the gradients."""
    total = sum(batch["input_ids"][:, 1:].numel() for batch in everyones)
    for batch in mine:
        output = model(**batch, use_cache=False)
        logits, labels = output.logits[:, :-1].float(), batch["input_ids"][:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / total
        (loss + output.aux_loss / len(everyones)).backward()
    gradients = {name: whole(parameter.grad) for name, parameter in trained_parameters(model).items()}
    optimizer.step()
    optimizer.zero_grad()
    return gradients


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def two_processes(folder, cases):
    """What each of the two does: each case's first step, a checkpoint, its second step, and that again, resumed."""
    state = processes("cpu")
    assert state.num_processes == 2
    for case in cases:
        mesh = make_mesh(state, CASES[case][0])
        model, optimizer = learner(case, mesh)
        everyones = batches(model.config)
        mine = everyones[state.process_index :][:1]
        gradients = step(model, optimizer, mine, everyones)
        first = gather_state(model, optimizer)
        if state.is_main_process:
            path = save_checkpoint(folder / case, 1, {"gradients": gradients, **first})
        else:
            assert not first["weights"]
        step(model, optimizer, mine, everyones)
        second = gather_state(model, optimizer)

        model, optimizer = learner(case, mesh)
        spread_state(model, optimizer, load_checkpoint(path) if state.is_main_process else {})
        step(model, optimizer, mine, everyones)
        resumed = gather_state(model, optimizer)
        assert second["weights"].keys() == resumed["weights"].keys()
        assert all(torch.equal(second["weights"][name], resumed["weights"][name]) for name in second["weights"])
        state.wait_for_everyone()
    state.destroy_process_group()


def launch(launcher, folder, cases):
    command = [sys.executable, "-m", *LAUNCHERS[launcher], __file__, folder, *cases]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with open(log, "w") as file:
        started = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        assert started.wait(timeout=120) == 0, log.read_text()[-4000:]
    finally:  # what hangs must end, its processes too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return launch("torchrun", tmp_path_factory.mktemp("torchrun"), CASES)


@launches
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(learned, case):
    same_as_one_process(learned, case)


@launches
def test_accelerate_launches_the_same(tmp_path):
    same_as_one_process(launch("accelerate", tmp_path, ["all"]), "all")


def same_as_one_process(folder, case):
    model, optimizer = learner(case)
    everyones = batches(model.config)
    gradients = step(model, optimizer, everyones, everyones)
    state = load_checkpoint(folder / case / "step-00000001")
    assert state["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(state["gradients"][name], gradient, atol=1e-6, rtol=1e-5)
    for name, parameter in trained_parameters(model).items():
        torch.testing.assert_close(state["weights"][name], parameter.detach(), atol=1e-5, rtol=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert not frozen & state["weights"].keys()


def test_what_got_no_token_has_no_gradient_but_a_zero():
    model, optimizer = learner("all")
    gradients = step(model, optimizer, *[batches(model.config)[:1]] * 2)
    text, audio = model.config.expert_groups()[0]
    for name in ("gate_up_proj", "down_proj"):
        experts = gradients[f"model.layers.1.mlp.experts.{name}"]
        assert experts[text].any()
        assert not experts[audio].any()
    assert not gradients["model.speech_projector.weight"].any()
    assert not gradients["model.speech_projector.bias"].any()


@pytest.mark.parametrize("case", ["all", "lora"])
def test_a_state_comes_back_in_one_process(case, tmp_path):
    model, optimizer = learner(case)
    everyones = batches(model.config)
    step(model, optimizer, everyones, everyones)
    path = save_checkpoint(tmp_path, 1, gather_state(model, optimizer))
    step(model, optimizer, everyones, everyones)
    again, resumed = learner(case)
    spread_state(again, resumed, load_checkpoint(path))
    step(again, resumed, everyones, everyones)
    for name, parameter in trained_parameters(model).items():
        assert torch.equal(parameter, again.get_parameter(name))


def test_8_bit_moments_come_back_too(tmp_path):
    from bitsandbytes.optim import AdamW8bit  # slow to import

    def begin():
        torch.manual_seed(0)
        model = make_trainable(MostForCausalLM(MostConfig.tiny()), Config(precision="bfloat16", optimizer="adamw_8bit"))
        model = shard(model, None)
        return model, AdamW8bit(trained_parameters(model).values(), lr=1e-3, min_8bit_size=64)

    model, optimizer = begin()
    everyones = batches(model.config)
    step(model, optimizer, everyones, everyones)
    path = save_checkpoint(tmp_path, 1, gather_state(model, optimizer))
    step(model, optimizer, everyones, everyones)
    again, resumed = begin()
    spread_state(again, resumed, load_checkpoint(path))
    step(again, resumed, everyones, everyones)
    for parameter, same in zip(model.parameters(), again.parameters()):
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, same)


@pytest.fixture
def alone():
    yield processes("cpu")
    if dist.is_initialized():
        dist.destroy_process_group()
    PartialState._reset_state()


@pytest.mark.parametrize("trains", ["all", "all_but_experts", "lora"])
def test_one_process_computes_in_bfloat16_with_weights_kept_in_float32(alone, trains):
    config = Config(trains=trains, precision="bfloat16")
    mesh = make_mesh(alone, config)
    model = make_trainable(MostForCausalLM(MostConfig.tiny()), config)
    shard(model, mesh, compute_dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=1e-4)  # too small a step for bfloat16
    everyones = batches(model.config)
    before = {name: whole(parameter.detach()) for name, parameter in trained_parameters(model).items()}
    assert model(**everyones[0]).logits.dtype == torch.bfloat16
    step(model, optimizer, everyones, everyones)
    for name, weight in gather_state(model, optimizer)["weights"].items():
        assert weight.dtype == torch.float32
        assert not torch.equal(before[name], weight)


def test_one_process_needs_no_mesh_in_one_precision(alone):
    assert make_mesh(alone, Config()) is None
    assert make_mesh(alone, Config(precision="bfloat16", optimizer="adamw_8bit")) is None


def test_eight_bit_moments_are_refused_where_weights_are_sharded():
    class Two:
        num_processes = 2

    with pytest.raises(ValueError, match="cannot update sharded weights"):
        make_mesh(Two(), Config(optimizer="adamw_8bit"))


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]), sys.argv[2:])
