"""Where the threads of the native forward pass run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from liuyi.core.cores import cores
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.runner import Batch, ids
from liuyi.kernels.library import KernelsAbsent, kernels
from small_models import small_model

try:
    kernels()
except KernelsAbsent as absent:
    pytest.skip(f"no native kernels: {absent.message}", allow_module_level=True)

pytestmark = pytest.mark.skipif(cores() < 2, reason="one processor")
TASKS = Path("/proc/self/task")
STEPS = 20_000
BATCH = Batch(ids([1]), ids([1]), ids([0]), ids([[0]]), ids([0]), ids([-1]))


def _runner(threads: int) -> NativeRunner:
    return NativeRunner(small_model(64), 4, threads=threads)


def _tasks() -> set[int]:
    return {int(task.name) for task in TASKS.iterdir()}


@pytest.fixture
def processors() -> Iterator[list[int]]:
    """Those that this process may use, before and after."""
    allowed = os.sched_getaffinity(0)
    yield sorted(allowed)
    assert os.sched_getaffinity(0) == allowed


def test_as_many_threads_as_processors_have_one_each(processors: list[int]) -> None:
    before = _tasks()
    runner = _runner(len(processors))
    runner.logits(BATCH)
    workers = [os.sched_getaffinity(task) for task in sorted(_tasks() - before)]
    assert workers == [{processor} for processor in processors[1:]]


def test_who_calls_has_the_first_as_long_as_a_step_takes(processors: list[int]) -> None:
    runner, caller, seen = _runner(len(processors)), threading.get_native_id(), threading.Event()

    def look() -> None:
        while not seen.is_set():
            if os.sched_getaffinity(caller) == {processors[0]}:
                seen.set()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for _ in range(STEPS):
        runner.logits(BATCH)
        if seen.is_set():
            break
    found = seen.is_set()
    seen.set()
    looking.join()
    assert found


def test_who_moves_a_thread_during_a_step_has_the_last_word(processors: list[int]) -> None:
    runner, caller, done = _runner(len(processors)), threading.get_native_id(), threading.Event()

    def move() -> None:
        while not done.is_set():
            if os.sched_getaffinity(caller) == {processors[0]}:
                os.sched_setaffinity(caller, {processors[-1]})
                return

    moving = threading.Thread(target=move, daemon=True)
    moving.start()
    try:
        for _ in range(STEPS):
            runner.logits(BATCH)
            if not moving.is_alive():
                break
        done.set()
        moving.join()
        runner.logits(BATCH)
        assert os.sched_getaffinity(caller) == {processors[-1]}
    finally:
        os.sched_setaffinity(caller, processors)


def test_signals_are_left_to_the_programs_own_threads() -> None:
    before = _tasks()
    runner = _runner(3)
    runner.logits(BATCH)
    for task in _tasks() - before:
        status = (TASKS / str(task) / "status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)
        held = {number for number in signal.valid_signals() if blocked >> (number - 1) & 1}
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1} <= held
        assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL} & held
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_caller_that_may_not_be_there_stays_where_it_may(processors: list[int]) -> None:
    runner, bound, ids_of = _runner(len(processors)), threading.Event(), list[int]()

    def call() -> None:
        os.sched_setaffinity(0, {processors[1]})
        ids_of.append(threading.get_native_id())
        bound.set()
        for _ in range(40):
            runner.logits(BATCH)

    calling = threading.Thread(target=call)
    calling.start()
    bound.wait()
    seen = set()
    while calling.is_alive():
        with suppress(ProcessLookupError):
            seen.add(frozenset(os.sched_getaffinity(ids_of[0])))
    assert seen == {frozenset({processors[1]})}


def test_other_numbers_of_threads_run_wherever_there_is_room(processors: list[int]) -> None:
    before = _tasks()
    runner = _runner(len(processors) + 1)
    runner.logits(BATCH)
    workers = [os.sched_getaffinity(task) for task in _tasks() - before]
    assert workers == [set(processors)] * len(processors)
