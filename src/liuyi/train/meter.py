"""The figures beside the bar: how fast training goes, what part of this machine's limit that is, and memory.

They say what the clock said, so they are no part of `training.jsonl`, which a killed run and an undisturbed one write
alike: they go to whoever watches, to the ledger every few seconds, and into the metrics of what is published.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liuyi.core.machine import gemm_flops
from liuyi.train.batches import Batch
from liuyi.train.flops import ModelFlops
from liuyi.train.interfaces import Listener
from liuyi.train.world import World

PEAK_FILE = "gemm-peak.json"
PEAK_AFTER_S = 10.0
"""The limit is measured when training has lasted so long: it takes half a second, which a short run should not pay."""
WINDOW_S = 20.0
"""Live speeds are means over about so long."""
RECORD_S = 5.0
"""How far apart the ledger's figures are, at least."""
RECORDS = 200
"""About how many of them there are in a long run, until each later one is as far from the last as all before."""
MOST = 0.98
"""Where more of the tokens than this are learnt from, one speed says it all."""
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class _Mark:
    """How much was done by when."""

    time: float
    tokens: float = 0.0
    learnt: float = 0.0
    flops: float = 0.0

    def speeds(self, since: _Mark, unit: str) -> dict[str, float]:
        """Per second: tokens, and what of them, or what else, was learnt from."""
        seconds = max(self.time - since.time, 1e-9)
        speeds = {"tok_s": (self.tokens - since.tokens) / seconds} if self.tokens else {}
        learnt = (self.learnt - since.learnt) / seconds
        if unit != "tokens":
            return {**speeds, f"{unit}_s": learnt}
        return {**speeds, "learnt_tok_s": learnt} if speeds else {"tok_s": learnt}


class Meter:
    """Measures one process's part of a training, and speaks for all of them.

    Every process does the same work, so speeds are this one's times how many see different tokens; the fraction of the
    limit is this one's, of its own device.
    """

    def __init__(self, model: nn.Module, objective: object, workdir: Path, world: World, told: Listener) -> None:
        self.flops = ModelFlops.of(model)
        self.dtype: torch.dtype = getattr(objective, "compute_dtype", torch.float32)
        self.unit: str = getattr(objective, "unit", "tokens")
        self.device = next(model.parameters()).device
        self.workdir, self.world, self.told = workdir, world, told
        self.peak_flops: float | None = None
        self._tokens = self._done_flops = 0.0
        self._paused_s = 0.0
        """Spent on measuring the limit."""
        self._gpu_memory_before = 0.0
        """The most before that measurement, which takes memory of its own."""
        self.begin()

    def begin(self) -> None:
        """The clock starts."""
        self._first = self._last = _Mark(self._now(), self._tokens, 0.0, self._done_flops)
        self._recent = deque([self._first])
        self._recorded = self._first.time

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """What is computed meanwhile is undone: it takes its time, and is no progress."""
        counted = self._tokens, self._done_flops
        yield
        self._tokens, self._done_flops = counted

    def saw(self, batch: Batch) -> None:
        """A micro-batch went forward and backward."""
        self._tokens += batch.tokens.numel() * self.world.data_size * self.world.context_size
        self._done_flops += self.flops.batch(batch) / self.world.layout.tensor

    def after_step(self, step: int, row: Mapping[str, Any], learnt: int) -> dict[str, float]:
        """The figures to show after a step; `learnt` is the count of what all processes have learnt from so far."""
        now = self._now()
        self._last = _Mark(now, self._tokens, float(learnt), self._done_flops)
        self._recent.append(self._last)
        while len(self._recent) > 2 and now - self._recent[1].time >= WINDOW_S:
            self._recent.popleft()
        if self.peak_flops is None and now - self._first.time >= PEAK_AFTER_S and self.world.leads:
            self.peak_flops = self._measured_peak()
        speeds = self._figures(self._recent[0])
        if now - self._recorded >= max(RECORD_S, (now - self._first.time) / RECORDS):
            self._recorded = now
            for name, value in speeds.items():
                self.told.metric(name, value, step)
        if self.unit == "tokens" and speeds.get("learnt_tok_s", 0.0) > MOST * speeds["tok_s"]:
            del speeds["learnt_tok_s"]
        return {name: row[name] for name in ("loss", "lr", "grad_norm")} | speeds

    def summary(self) -> dict[str, float]:
        """The means since this process began, for the metrics of what is published."""
        return self._figures(self._first)

    def _figures(self, since: _Mark) -> dict[str, float]:
        figures = self._last.speeds(since, self.unit)
        if self.peak_flops and self.flops.token:
            rate = (self._last.flops - since.flops) / max(self._last.time - since.time, 1e-9)
            figures[f"{_NAMES[self.dtype]}_mfu"] = rate / self.peak_flops
        figures["memory_bytes"] = peak_memory_bytes()
        if self.device.type == "cuda":
            most = float(torch.cuda.max_memory_allocated(self.device))
            figures["gpu_memory_bytes"] = max(most, self._gpu_memory_before)
        return figures

    def _now(self) -> float:
        return time.monotonic() - self._paused_s

    def _measured_peak(self) -> float:
        """FLOP/s of a large matrix product in the dtype that the model computes in; measured once a workdir. 0 where
        the model leaves the device no room for it."""
        name = f"{_NAMES[self.dtype]}/{self.device.type}/{torch.get_num_threads()}"
        path = self.workdir / PEAK_FILE
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in known:
            began = time.monotonic()
            try:
                known[name] = self._apart(partial(gemm_flops, _NAMES[self.dtype], self.device.type))
            except torch.OutOfMemoryError:
                return 0.0
            finally:
                self._paused_s += time.monotonic() - began
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps(known), encoding="utf-8")
            draft.rename(path)
        return known[name]

    def _apart(self, measure: Callable[[], float]) -> float:
        """What is measured, and the memory that it took given back and not counted as the training's."""
        if self.device.type != "cuda":
            return measure()
        self._gpu_memory_before = float(torch.cuda.max_memory_allocated(self.device))
        try:
            return measure()
        finally:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def peak_memory_bytes() -> float:
    """The most memory that this process has had at one time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
