import dataclasses
import math
import time

import pytest
import torch

from most_core import MostConfig, MostForCausalLM
from train.config import PRESETS, load_config
from train.plan import fitting, layer_bytes, plan
from train.stage_config import TASKS, Config
from train.trainable import make_trainable, trained_parameters

FULL_SIZE = Config(
    start="lite",
    trains="all_but_experts",
    precision="bfloat16",
    checkpoint_activations=True,
    micro_batch_tokens=4096,
    micro_batches=64,
    steps=2000,
)


def gigabytes(planned, *names):
    return sum(line.gb for line in planned.memory if line.name in names)


def test_all_weights_with_8_bit_moments_take_95_gb_and_do_not_fit():
    planned = plan(dataclasses.replace(FULL_SIZE, trains="all", optimizer="adamw_8bit"))
    assert planned.parameters == planned.trained == pytest.approx(15.7e9, rel=0.005)
    assert gigabytes(planned, "weights", "gradients", "optimizer") == pytest.approx(95, abs=1)
    assert not planned.fits
    assert "does not fit into 80 GB" in str(planned)
    assert "note: trains: all_but_experts fits" in str(planned)


def test_frozen_experts_take_51_gb_and_fit():
    planned = plan(FULL_SIZE)
    assert planned.trained == pytest.approx(1.3e9, rel=0.02)
    assert gigabytes(planned, "weights", "gradients", "optimizer") == pytest.approx(51, abs=1.5)
    assert planned.fits
    assert planned.total_gb == pytest.approx(sum(line.gb for line in planned.memory))
    assert "trains: all would take" in str(planned)


def test_the_fullest_way_that_fits_is_found_in_ten_seconds():
    start = time.process_time()
    found = [fitting(dataclasses.replace(FULL_SIZE, gpu_gb=gb)) for gb in (24, 60, 80, 300)]
    assert found == [None, "lora", "all_but_experts", "all"]
    assert fitting(dataclasses.replace(FULL_SIZE, gpus=48)) == "all"
    assert (time.process_time() - start) / 5 < 10


def test_where_nothing_fits_it_says_so():
    assert "nothing fits" in str(plan(dataclasses.replace(FULL_SIZE, gpu_gb=24)))


def test_tokens_and_hours():
    planned = plan(dataclasses.replace(FULL_SIZE, start="tiny", gpus=4))
    assert planned.tokens == 2000 * 64 * 4096
    assert planned.hours == pytest.approx(2000 * 64 * 4096 / 4 / 3000 / 3600)


@pytest.mark.parametrize("trains", ["all", "all_but_experts", "lora"])
def test_what_learns_is_counted_as_it_is(trains):
    config = Config(start="tiny", trains=trains)
    model = make_trainable(MostForCausalLM(MostConfig.tiny()), config)
    assert plan(config).trained == sum(p.numel() for p in trained_parameters(model).values())


def test_gpus_share_weights_gradients_and_moments():
    one, four = plan(FULL_SIZE), plan(dataclasses.replace(FULL_SIZE, gpus=4))
    shared = ("weights", "gradients", "optimizer")
    assert gigabytes(four, *shared) == pytest.approx(gigabytes(one, *shared) / 4)
    assert gigabytes(four, "activations", "logits") == gigabytes(one, "activations", "logits")


def test_whole_experts_are_dealt_out():
    plans = [plan(dataclasses.replace(FULL_SIZE, trains="all", gpus=gpus)) for gpus in (32, 48, 64)]
    weights = [gigabytes(planned, "weights") for planned in plans]
    assert weights[1] == pytest.approx(weights[0], rel=0.05)  # two of 64 experts: nothing is won by 16 GPUs more
    assert weights[2] == pytest.approx(weights[0] / 2, rel=0.01)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_are_those_that_autograd_keeps(dtype, size):
    tokens = 256
    shapes = [MostConfig.nano(num_hidden_layers=layers) for layers in (2, 4)]
    measured = [kept_bytes(MostForCausalLM(shape).to(dtype).train(), tokens) for shape in shapes]
    per_layer = (measured[1] - measured[0]) / 2 / tokens
    assert layer_bytes(shapes[1], 3, size) == pytest.approx(per_layer, rel=0.15)


def kept_bytes(model, tokens):
    """Bytes of everything but weights that autograd keeps of a forward pass without the head."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.arange(tokens).view(2, -1) + 3
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(input_ids=ids, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", ["stage1-a100", "stage2-a100", "stage1-cluster", "stage2-cluster"])
def test_presets_fit_and_take_the_fullest_way_that_does(name):
    config = load_config(Config, PRESETS / f"{name}.yaml")
    assert plan(config).fits
    assert fitting(config) == config.trains
    assert set(config.mixture) <= set(TASKS)
    assert math.isclose(sum(config.mixture.values()), 1)


def test_the_cluster_is_the_papers():
    first, second = (load_config(Config, PRESETS / f"stage{n}-cluster.yaml") for n in (1, 2))
    assert (first.steps, second.steps, first.gpus, second.gpus) == (500_000, 10_000, 48, 48)
    assert first.betas == second.betas == (0.9, 0.95)
    assert first.mixture == {"asr": 0.4, "tts": 0.4, "text": 0.2}
    assert second.mixture == {"speech_instructions": 0.4, "text_instructions": 0.4, "asr": 0.1, "tts": 0.1}
