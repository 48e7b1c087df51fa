"""A folder filled with shards by several workers, whose command may be stopped, or killed, and given again.

What a shard holds must depend on the settings and its number alone: then shards are made in any order, and a command
continues with those that are not there yet.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import RunOptions, deadline
from train.data.shards import MANIFEST, ShardInfo, read_manifest, write_manifest
from train.workers import end_with_parent


@dataclass(frozen=True)
class Job:
    """What a folder is filled with.

    `make(shard)` writes the shard of that number as `shard_name` calls it, in a process of its own, so it is pickled;
    `describe` gives the manifest's line of a whole shard; `report` says in words how far it is, of the shards there are
    and the speed; `generator` is what decides the content of a shard. `tidy` removes what a maker keeps beside shards
    that are not there (any more).
    """

    shards: int
    workers: int
    generator: dict[str, Any]
    make: Callable[[int], ShardInfo]
    describe: Callable[[Path], ShardInfo]
    report: Callable[[Iterable[ShardInfo], float], str]
    tidy: Callable[[Path], None] = lambda out: None


def shard_name(shard: int) -> str:
    return f"speech-{shard:05}.arrow"


def fill(out: Path, job: Job, options: RunOptions) -> int:
    """Make the shards that are missing in `out`; 0 once they are all there, 1 if time ran out."""
    if options.fresh:
        for path in [*out.glob("speech-*.arrow"), out / MANIFEST]:
            path.unlink(missing_ok=True)
    done = _finished(out, job)
    left = [shard for shard in range(job.shards) if shard_name(shard) not in done]
    write_manifest(out, done.values(), job.generator)
    over, started, made = deadline(options.minutes), time.monotonic(), 0.0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(job.workers, len(left)) or 1, context, initializer=end_with_parent) as pool:
        running: set[Future[ShardInfo]] = set()
        try:
            while left or running:
                while left and len(running) < job.workers and not over():
                    running.add(pool.submit(job.make, left.pop(0)))
                if not running:
                    break
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    info = future.result()
                    done[info.name] = info
                    made += info.seconds
                write_manifest(out, done.values(), job.generator)
                print(job.report(done.values(), made / (time.monotonic() - started)), flush=True)
        except BrokenProcessPool as error:
            raise ChildProcessError("a worker was killed (too little memory?): the same command continues") from error
        except BaseException:
            for process in multiprocessing.active_children():  # rather than wait for shards that take minutes
                process.terminate()
                process.join()
            _sweep(out, job)
            raise
    if left:
        print(f"stopped after {options.minutes:g} minutes; the same command continues", flush=True)
        return 1
    return 0


def _finished(out: Path, job: Job) -> dict[str, ShardInfo]:
    """Shards that need not be made: listed ones, and whole ones that a killed run had no time to list."""
    out.mkdir(parents=True, exist_ok=True)
    listed: dict[str, ShardInfo] = {}
    if (out / MANIFEST).exists():
        shards, generator = read_manifest(out)
        if different := [name for name, value in job.generator.items() if generator.get(name) != value]:
            name = different[0]
            raise ValueError(
                f"{out} holds speech made with {name} {generator.get(name)!r}, not {job.generator[name]!r}: "
                "choose another --out, or --fresh to discard it"
            )
        listed = {shard.name: shard for shard in shards}
    elif any(out.glob("*.arrow")):
        raise ValueError(f"{out} holds shards but no {MANIFEST}: choose another --out, or --fresh to discard them")
    _sweep(out, job)
    done = {}
    for path in sorted(out.glob("speech-*.arrow")):
        info = listed.get(path.name) or job.describe(path)
        if path.stat().st_size == info.bytes:
            done[path.name] = info
    return done


def _sweep(out: Path, job: Job) -> None:
    """Remove what workers that were stopped or killed have left half-written."""
    for path in out.glob("*.unfinished"):
        path.unlink(missing_ok=True)
    job.tidy(out)
