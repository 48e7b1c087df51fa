"""Worker processes that never outlive the command that started them, and what those of a training share."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers that synthesize speech have no use for torch
    import torch


def end_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and nobody waits for a worker whose parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_memory() -> None:
    """Ask glibc to keep freed memory: mapping it anew for every batch took a fifth of the time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def sum_gradients(parameters: Sequence[torch.nn.Parameter], totals: torch.Tensor, workers: int) -> torch.Tensor:
    """Replace gradients by their sums over the workers, those that are not there by zeros; returns `totals` summed."""
    import torch

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if workers == 1:
        return totals
    grads = [parameter.grad for parameter in parameters]
    flat = torch.cat([totals, *(grad.flatten() for grad in grads)])
    torch.distributed.all_reduce(flat)
    pieces = flat[len(totals) :].split([grad.numel() for grad in grads])
    for parameter, piece in zip(parameters, pieces):
        parameter.grad = piece.view_as(parameter).clone()
    return flat[: len(totals)]


def agreed(stop: bool, workers: int) -> bool:
    """Whether any worker wants to stop: they must all stop at the same step."""
    if workers == 1:
        return stop
    import torch

    wish = torch.tensor([float(stop)])
    torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
    return bool(wish.item())
