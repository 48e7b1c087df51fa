"""Training on several GPUs and nodes: processes by accelerate, weights sharded by FSDP2, states gathered and spread.

`accelerate launch -m train stage1 ...` and `torchrun -m train stage1 ...` both start one process a GPU. Gradients are
**sums** over the processes, not means: each calls `backward` on its own share of the step's loss, which is the loss
summed over its tokens, divided by the number of tokens of all micro-batches of all processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from most_core.model import MostDecoderLayer
from train.stage_config import Config
from train.trainable import trained_parameters

PATIENCE = timedelta(hours=12)  # with one process that writes, or reads, a checkpoint of hundreds of GB alone


def processes(device: str = "auto") -> PartialState:
    """This process among those that were launched together, connected by nccl on GPUs and by gloo on CPUs.

    A process started without a launcher is alone: `num_processes` is 1.
    """
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise ValueError(f"the launcher started {os.environ['WORLD_SIZE']} processes, which do not find each other")
    return state


def make_mesh(state: PartialState, config: Config) -> DeviceMesh | None:
    """What `shard` spreads weights over; None where a model stays whole in the one process there is.

    One GPU, too, needs a mesh of its own for bfloat16 with AdamW: FSDP2 is what computes in bfloat16 with weights that
    are kept in float32, exactly as on many. Autocast would not do: it rounds the routers' float32 products as well.
    """
    alone = state.num_processes == 1
    if not alone and config.optimizer != "adamw":
        raise ValueError(f"{config.optimizer} cannot update sharded weights: take optimizer adamw, or one GPU")
    if alone and (config.precision == "float32" or config.optimizer == "adamw_8bit"):
        return None
    if not dist.is_initialized():
        backend = "nccl" if state.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(state.device.type, (state.num_processes,))


def shard(
    model: nn.Module,
    mesh: DeviceMesh | None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """The same model, ready for training; with a mesh, each process keeps its part of every weight.

    A decoder layer with all its experts is one unit: gathered, computed and its gradients summed as a whole, whichever
    experts its tokens reach. All else (embeddings, projector, norm, head) is the unit around them. Call the model as a
    whole, `model(...)`; optimizers are made after this. Without a mesh, only the activations are looked after.
    """
    model.train()
    if checkpoint_activations:
        model.activation_checkpointing_enable()
    model.register_forward_pre_hook(_never_without_features, with_kwargs=True)
    if mesh is None:
        return model
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for module in list(model.modules()):
        if isinstance(module, MostDecoderLayer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums
    return model


def reshard(model: nn.Module) -> None:
    """After a forward that no backward followed: the unit around the layers stays gathered, under other parameters than
    the optimizer has, until each process keeps its own part alone again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """After a step: whole, on the CPU, of process 0, the weights that learn and the optimizer's state.

    Frozen weights are not in it: they are those of the run's start. What was on the CPU anyway shares memory with the
    model: write it before the next step.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    weights = {}
    for name, parameter in trained_parameters(model).items():
        weight = parameter.detach()
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight  # all take part
        if first:
            weights[name] = weight.cpu()
    return {"weights": weights, "optimizer": get_optimizer_state_dict(model, optimizer, options=_options())}


def spread_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Inverse of `gather_state`, on all processes together. Only process 0 needs to have read the state."""
    # Not by set_model_state_dict, which expects weights under all their names: peft shares rows between two modules.
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            if isinstance(parameter, DTensor):
                weight = state["weights"][name] if dist.get_rank() == 0 else torch.empty(parameter.shape)
                weight = weight.to(parameter.device, parameter.dtype)
                parameter.copy_(distribute_tensor(weight, parameter.device_mesh, parameter.placements))
            else:
                parameter.copy_(state["weights"][name])
    options = _options(broadcast_from_rank0=dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, state.get("optimizer", {}), options=options)


def _options(**more: Any) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True, **more)


def _never_without_features(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give a batch without speech the features of no frames, so that the projector's gradient is zero, not missing.

    Processes sum the gradients that a unit has: were one missing in some of them, they would hang or mix others up.
    """
    if kwargs.get("input_features") is None and kwargs.get("input_ids") is not None:
        size = (len(kwargs["input_ids"]), 0, model.config.speech_feature_size)
        kwargs = {**kwargs, "input_features": torch.zeros(size, device=kwargs["input_ids"].device)}
    return args, kwargs
