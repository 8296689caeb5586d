"""All proxies of a step, as many at once as there are cores; each is trained in the same way wherever it is."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from liuyi.core.cores import cores
from liuyi.core.errors import StepError
from liuyi.core.runner.lifetime import die_with_parent
from liuyi.core.step import Context
from liuyi.pretrain.ablate.proxies import Measured, Plan, Proxy, is_done, train_proxy

_LOOK_S = 1.0


def train_proxies(
    ctx: Context, proxies: Sequence[Proxy], plan: Plan, *, before: int = 0, after: int = 0
) -> list[Measured]:
    """Train and measure every proxy that is not done yet; all results, in the order of `proxies`.

    `before` and `after` count the proxies of the same step that were or will be trained besides, for its progress.
    Raises StepError where a process that trains ends without having said why.
    """
    folders = [ctx.workdir / "proxies" / proxy.name for proxy in proxies]
    todo = [(proxy, folder) for proxy, folder in zip(proxies, folders, strict=True) if not is_done(folder)]
    tally = _Tally(ctx, before + len(proxies) - len(todo), before + len(proxies) + after)
    workers = min(cores(), len(todo))
    if workers > 1:
        _train_at_once(todo, plan, workers, tally)
    else:
        for proxy, folder in todo:
            started = time.monotonic()
            train_proxy(proxy, plan, folder, _Told(tally))
            tally.finished(proxy, time.monotonic() - started)
    return [Measured.load(folder) for folder in folders]


@dataclass
class _Tally:
    """How far all proxies together are."""

    ctx: Context
    done: int
    total: int

    def finished(self, proxy: Proxy, seconds: float) -> None:
        self.done += 1
        self.ctx.log(f"{self.done} of {self.total}: {proxy.name} done in {seconds:.1f} s")
        self.ctx.progress(self.done, self.total, "proxies")

    def under_way(self, parts: float, **shown: float) -> None:
        self.ctx.progress(self.done + parts, self.total, "proxies", **shown)


class _Told:
    """Hears one proxy train in this process: its progress as a part of all, and not its every loss."""

    def __init__(self, tally: _Tally) -> None:
        self.tally = tally

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        self.tally.under_way(done / total, **shown)

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        """A thousand steps of twenty proxies say nothing in one curve."""

    def log(self, message: str) -> None:
        self.tally.ctx.log(message)


class _Apart:
    """Hears one proxy train in a process of its own: what is said goes to the step's log, by its standard output."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.share = name, folder / "share"

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        """Written for `_share` to read; a torn line is read as nothing and soon replaced."""
        self.share.write_text(f"{done / total:.4f}", encoding="ascii")

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        """As above."""

    def log(self, message: str) -> None:
        print(f"{self.name}: {message}", flush=True)


def _train_at_once(todo: Sequence[tuple[Proxy, Path]], plan: Plan, workers: int, tally: _Tally) -> None:
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
            waiting = {pool.submit(_train_apart, proxy, plan, folder): (proxy, folder) for proxy, folder in todo}
            try:
                while waiting:
                    ended, _ = wait(waiting, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                    for future in ended:
                        tally.finished(waiting.pop(future)[0], future.result())
                    tally.under_way(sum(_share(folder) for _, folder in waiting.values()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise StepError(
            "a process that trained a proxy ended without a word",
            hint="the machine may be short of memory; what is done is kept, and 'liuyi resume' goes on",
        ) from error


def _train_apart(proxy: Proxy, plan: Plan, folder: Path) -> float:
    """Train in this process; the seconds that it took."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    train_proxy(proxy, plan, folder, _Apart(proxy.name, folder))
    return time.monotonic() - started


def _share(folder: Path) -> float:
    """How much of a proxy has been trained."""
    try:
        return float((folder / "share").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0
