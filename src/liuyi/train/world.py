"""The processes that train together, and how the work is laid out over them.

    world = join(Layout(replicate=2, shard=4))      # in each of eight processes that torchrun has started
    world = World()                                 # one process: nothing to wait for, nobody to ask

Every rank takes the same decisions, since each takes them from figures that it shares here with the others: those that
come out of `sum`, `any` and `gather` are the same to the bit everywhere. Nothing is pickled on the way.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from liuyi.core.errors import StepError

COLLECTIVE_S = 1800.0
"""How long a collective may last, where nothing is said."""
DIMENSIONS = ("replicate", "shard", "context", "tensor")


@dataclass(frozen=True)
class Layout:
    """How many processes divide what; there are as many processes as the product.

    Ranks count through `tensor` first, which talks most and should lie closest together, and through `replicate` last.
    """

    replicate: int = 1
    """Copies of the weights, each with its own share of the batch."""
    shard: int = 1
    """Parts that weights, gradients and optimiser state are cut into, each with its own share of the batch (FSDP)."""
    context: int = 1
    """Parts that each row's tokens are cut into."""
    tensor: int = 1
    """Parts that each layer's matrices are cut into."""

    @property
    def size(self) -> int:
        """The number of processes."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """In the order of `DIMENSIONS`."""
        return self.replicate, self.shard, self.context, self.tensor

    @classmethod
    def of(cls, processes: int, *, shard: int = 1, context: int = 1, tensor: int = 1) -> Layout:
        """The layout of so many processes: what the other dimensions leave is copies. Raises StepError if they do not
        divide the processes."""
        divided = shard * context * tensor
        if processes % divided:
            raise StepError(
                f"{processes} processes cannot be laid out as shard {shard} × context {context} × tensor {tensor}",
                hint=f"take a multiple of {divided} processes",
            )
        return cls(processes // divided, shard, context, tensor)


@dataclass
class World:
    """This process among those that train together."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    local_rank: int = 0
    """Among the processes of this machine."""
    mesh: DeviceMesh | None = None
    """Of the dimensions `DIMENSIONS`; None for one process."""
    seen: DeviceMesh | None = None
    """All dimensions but `tensor` as one: the ranks that see different tokens, over which gradients are summed."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waited_s: float = 0.0
    """Time spent in collectives so far."""

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and tells what all have done."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Into how many shares the rows of a global batch are divided."""
        return self.layout.replicate * self.layout.shard

    @property
    def data_rank(self) -> int:
        """Which of these shares is this process's."""
        return self.rank // (self.layout.context * self.layout.tensor)

    @property
    def context_size(self) -> int:
        return self.layout.context

    @property
    def context_rank(self) -> int:
        """Which part of each row's tokens is this process's."""
        return self.rank // self.layout.tensor % self.layout.context

    @property
    def tensor_rank(self) -> int:
        """Which part of each layer's matrices is this process's."""
        return self.rank % self.layout.tensor

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all that saw different tokens; the ranks of one tensor group see the same, and count once."""
        if self.mesh is None:
            return list(values)
        return self._gather(values)[:: self.layout.tensor].sum(dim=0).tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return flag if self.mesh is None else any(self.gather(float(flag)))

    def gather(self, value: float) -> list[float]:
        """The values of all ranks, in their order."""
        return [value] if self.mesh is None else self._gather([value])[:, 0].tolist()

    def from_first(self, values: Sequence[float]) -> list[float]:
        """What the first rank has of these, on every rank."""
        return list(values) if self.mesh is None else self._gather(values)[0].tolist()

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.any(False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as spent in collectives."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - started

    def _gather(self, values: Sequence[float]) -> torch.Tensor:
        """float64 [ranks, values]. All are brought to all and summed by each in the same order, because how a
        collective sums is its own affair."""
        mine = torch.tensor(values, dtype=torch.float64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        with self.waiting():
            dist.all_gather(theirs, mine)
        return torch.stack(theirs)


def join(layout: Layout, *, timeout_s: float = COLLECTIVE_S) -> World:
    """Meet the processes that torchrun started with this one: gloo on the CPU, NCCL between GPUs.

    Figures on the host go through gloo either way, so that to share them does not wait for a GPU. A collective that
    lasts longer than `timeout_s` fails. Raises StepError if there are more or fewer processes than the layout has, or
    more on this machine than GPUs.
    """
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != layout.size:
        shape = " × ".join(f"{name} {size}" for name, size in zip(DIMENSIONS, layout.sizes, strict=True))
        raise StepError(f"{started} processes were started, but {shape} asks for {layout.size}")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise StepError(
                f"this machine has {torch.cuda.device_count()} GPUs, and process {local_rank} of it would have none",
                hint="start one process for each; CUDA_VISIBLE_DEVICES= trains on the CPU",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if layout.size == 1:
        return World(layout, device=device)
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    mesh = init_device_mesh(device.type, layout.sizes, mesh_dim_names=DIMENSIONS)
    seen = mesh["replicate", "shard", "context"]._flatten("seen")
    return World(layout, rank, local_rank, mesh, seen, device)
