"""Worker processes that never outlive the command that started them, and what those of a training share."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from train.config import RunOptions, config_hash

if TYPE_CHECKING:  # workers that synthesize speech have no use for torch
    from multiprocessing.queues import SimpleQueue

    import torch


def end_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and nobody waits for a worker whose parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_workers(work: Callable[..., None], most: int, config: Any, out: Path, options: RunOptions) -> int:
    """Call `work(rank, workers, device, config, out, options)` in each worker of a training; 0 when all are done.

    On a CPU each is a process of one thread, `options.threads` of them or one a core, but at most `most`; a GPU has
    one. `options.fresh` discards the checkpoints in `out`. ValueError and OSError of a worker are raised here, too.
    """
    import torch

    from most_core.loading import choose_device
    from train.checkpoints import resume

    device = torch.device(choose_device(options.device))
    if options.fresh:
        resume(out / "checkpoints", config_hash(config), fresh=True)
    workers = min(most, options.threads or os.cpu_count() or 1) if device.type == "cpu" else 1
    args = (device, config, out, options)
    if workers == 1:
        _work(0, 1, 0, work, args)
        return 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # who is stopped beside who failed
    refused = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.spawn(_work_beside_others, (workers, port, refused, work, args), nprocs=workers)
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException):
        if refused.empty():
            raise
        raise refused.get() from None
    return 0


def _work_beside_others(
    rank: int, workers: int, port: int, refused: SimpleQueue, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """`_work`; what it refuses in words is told to the parent, who sees only a traceback as text otherwise."""
    try:
        _work(rank, workers, port, work, args)
    except (ValueError, OSError) as error:
        refused.put(error)
        raise


def _work(rank: int, workers: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    if args[0].type == "cpu":
        torch.set_num_threads(1)
        keep_memory()
    if workers == 1:
        work(rank, workers, *args)
        return
    end_with_parent()
    address = f"tcp://127.0.0.1:{port}"
    patience = timedelta(days=7)  # with workers whose share takes longer; none outlives its parent
    torch.distributed.init_process_group("gloo", timeout=patience, init_method=address, rank=rank, world_size=workers)
    work(rank, workers, *args)
    torch.distributed.destroy_process_group()


def shown_by(rank: int) -> TextIO | None:
    """The stream of a worker's progress: the usual one for the first, nowhere for the others."""
    return None if rank == 0 else open(os.devnull, "w", encoding="utf-8")


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


def agreed(stop: bool, workers: int, device: torch.device | str = "cpu") -> bool:
    """Whether any worker wants to stop: they must all stop at the same step. `device`: where they exchange tensors."""
    if workers == 1:
        return stop
    import torch

    wish = torch.tensor([float(stop)], device=device)
    torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
    return bool(wish.item())
