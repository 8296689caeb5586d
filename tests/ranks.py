"""Functions run on several gloo processes of this machine, as torchrun would start them.

    losses = run_ranks(2, train_a_little, tmp_path, "adamw")    # [what rank 0 returned, what rank 1 returned]

The function must be found by importing its module, since each process is a new one; it begins with
`world = join(Layout(...))`. Processes are forked from a server that has torch loaded, which takes a tenth of a second
rather than several.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import steady  # noqa: F401

TIMEOUT_S = 120.0
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "liuyi.train.loop",
    "liuyi.train.parallel.apply",
    "liuyi.train.parallel.gather",
    "pandas",
    "pytest",
]


class RankFailed(AssertionError):
    """A rank raised, died, or did not end in time."""


def run_ranks(size: int, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """What `function(*args)` returned on each of `size` ranks; raises RankFailed with the traceback of the first that
    failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        ranks = [
            context.Process(target=_rank, args=(rank, size, meeting, sender, function, args), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        for rank in ranks:
            rank.start()
        for _, sender in pipes:
            sender.close()
        try:
            return _results([receiver for receiver, _ in pipes], time.monotonic() + timeout_s)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _results(receivers: list[Connection], deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(receivers)
    waiting = dict(zip(receivers, range(len(receivers)), strict=True))
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(waiting.values())} did not end in time")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = waiting.pop(receiver)
            try:
                ended_well, results[rank] = receiver.recv()
            except EOFError:
                raise RankFailed(f"rank {rank} died") from None
            if not ended_well:
                raise RankFailed(f"rank {rank}:\n{results[rank]}")
    return results


def _rank(
    rank: int, size: int, meeting: str, sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    try:
        store = dist.FileStore(meeting, size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT_S))
        dist.barrier()  # Whoever leaves before the others have reached it would end them.
        result = True, function(*args)
    except BaseException:
        result = False, traceback.format_exc()
    sender.send(result)
    sys.stdout.flush()
    # Without a farewell to the others, some of whom may have failed.
    os._exit(0)
