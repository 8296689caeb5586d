"""Python work on all cores: an ordered map over processes that end when their parent ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from liuyi.core.cores import cores
from liuyi.core.errors import StepError

T = TypeVar("T")
R = TypeVar("R")

_WAITING_PER_WORKER = 4


def map_ordered(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`function` of each item, in the order of the items, by `workers` processes (default: one a core).

    With one worker nothing is started. `items` are drawn as they are needed, so results wait for a slow consumer.
    Raises StepError where a worker ends without a word.
    """
    workers = cores() if workers is None else workers
    if workers <= 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= workers * _WAITING_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise StepError(
                "a worker process ended without a word",
                hint="the machine may be short of memory; 'liuyi resume' goes on",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
