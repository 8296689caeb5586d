"""Many processes and threads share a ledger: none waits for long, none loses a row, leases have one holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier

from liuyi.core.database import BUSY_TIMEOUT_S
from liuyi.core.ledger import Ledger
from liuyi.core.owner import is_alive, this_process
from waiting import wait_for

_fork = multiprocessing.get_context("fork")
PROCESSES = 4


def _open_and_write(url: str, barrier: Barrier, number: int) -> None:
    barrier.wait()
    ledger = Ledger(url)
    run_id = ledger.create_run(recipe=f"r{number}", text="", source="", overrides=[], seed=number)
    for index in range(25):
        ledger.add_metrics(run_id, "step", [("loss", index, float(number))])
        ledger.update_run(run_id, heartbeat=time.time())


def _compete(url: str, barrier: Barrier, number: int) -> None:
    ledger = Ledger(url)
    barrier.wait()
    won = [key for key in map(str, range(20)) if ledger.acquire(key, f"{this_process()}:{number}")]
    run_id = ledger.create_run(recipe=str(number), text=",".join(won), source="", overrides=[], seed=0)
    ledger.update_run(run_id, status="done")
    barrier.wait()


def _together(target: object, url: str) -> None:
    barrier = _fork.Barrier(PROCESSES)
    processes = [_fork.Process(target=target, args=(url, barrier, number)) for number in range(PROCESSES)]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_processes_open_a_new_ledger_at_once_and_lose_nothing(ledger_url: str) -> None:
    _together(_open_and_write, ledger_url)
    ledger = Ledger(ledger_url)
    runs = ledger.runs()
    assert sorted(run.seed for run in runs) == list(range(PROCESSES))
    for run in runs:
        assert [(m.index, m.value) for m in ledger.metrics(run.id)] == [(i, float(run.seed)) for i in range(25)]
    ledger.close()


def test_a_lease_has_one_holder_among_many_that_ask(ledger_url: str) -> None:
    _together(_compete, ledger_url)
    ledger = Ledger(ledger_url)
    won = [key for run in ledger.runs() for key in run.text.split(",") if key]
    assert sorted(won, key=int) == [str(number) for number in range(20)]
    ledger.close()


def test_a_lease_is_taken_renewed_and_released(ledger: Ledger) -> None:
    assert ledger.acquire("key", "far:1:1")
    assert ledger.acquire("key", "far:1:1")
    assert not ledger.acquire("key", "far:2:2")
    assert not ledger.renew("key", "far:2:2")
    assert ledger.renew("key", "far:1:1")
    ledger.release("key", "far:2:2")
    assert ledger.leases() == {"key": "far:1:1"}
    ledger.release("key", "far:1:1")
    assert ledger.leases() == {}
    assert ledger.acquire("key", "far:2:2")


def test_a_lease_ends_when_it_is_not_renewed(ledger: Ledger) -> None:
    assert ledger.acquire("long", "far:1:1", ttl_s=3600)
    assert ledger.acquire("key", "far:1:1", ttl_s=0.1)
    wait_for(lambda: ledger.leases() == {"long": "far:1:1"})
    assert ledger.acquire("key", "far:2:2", ttl_s=3600)
    assert not ledger.renew("key", "far:1:1")


def test_a_killed_process_holds_nothing(ledger: Ledger, ledger_url: str) -> None:
    code = (
        "import sys, time; from liuyi.core.ledger import Ledger; from liuyi.core.owner import this_process;"
        "print(Ledger(sys.argv[1]).acquire('key', this_process(), ttl_s=3600), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, ledger_url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert not ledger.acquire("key", this_process())
    (owner,) = ledger.leases().values()
    assert is_alive(owner)
    os.kill(holder.pid, signal.SIGKILL)
    # It is dead as soon as it is a zombie, before anybody waits for it.
    wait_for(lambda: not is_alive(owner))
    assert ledger.leases() == {}
    assert ledger.acquire("key", this_process())
    holder.stdout.close()
    holder.wait()


def test_a_process_is_told_from_a_later_one_of_the_same_number() -> None:
    host, pid, start = this_process().split(":")
    assert is_alive(f"{host}:{pid}:{start}")
    assert is_alive(f"{host}:{pid}:{start}:a label")
    assert is_alive(f"{host}:{pid}:{int(start) + 1}") is False
    assert is_alive(f"elsewhere-{host}:{pid}:{start}") is None
    assert is_alive("nonsense") is None


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    run_id = ledger.create_run(recipe="r", text="", source="", overrides=[], seed=0)

    def work(number: int) -> int:
        ledger.add_metrics(run_id, f"s{number}", [("loss", number, 1.0)])
        return len(ledger.metrics(run_id, f"s{number}"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(64))) == [1] * 64
    assert len(ledger.metrics(run_id)) == 64


def test_a_forked_child_uses_the_ledger_and_leaves_its_parents_alone(ledger: Ledger) -> None:
    run_id = ledger.create_run(recipe="r", text="", source="", overrides=[], seed=0)

    def child(first: int) -> None:
        for index in range(first, first + 20):
            ledger.add_metrics(run_id, "child", [("n", index, 1.0)])
        ledger.close()

    children = [_fork.Process(target=child, args=(first,)) for first in (0, 20)]
    for process in children:
        process.start()
    for index in range(20):
        ledger.add_metrics(run_id, "parent", [("n", index, 1.0)])
    for process in children:
        process.join(60)
        assert process.exitcode == 0
    assert len(ledger.metrics(run_id, "child")) == 40
    assert len(ledger.metrics(run_id, "parent")) == 20


def test_readers_do_not_wait_for_a_writer(ledger: Ledger) -> None:
    run_id = ledger.create_run(recipe="r", text="", source="", overrides=[], seed=0)
    with ledger._database.write() as session:
        from liuyi.core.tables import PinRow

        session.add(PinRow(digest="d", note="", created=0.0))
        session.flush()
        started = time.monotonic()
        assert ledger.run("last").id == run_id
        assert ledger.pins() == []
        assert time.monotonic() - started < BUSY_TIMEOUT_S / 2
    assert len(ledger.pins()) == 1
