"""Work on all cores: in order, drawn as needed, errors told, and nothing left behind when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from liuyi.core.errors import StepError
from liuyi.data.pool import map_ordered
from waiting import wait_for


def slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(folder: Path) -> None:
    (folder / f"asleep-{os.getpid()}").touch()
    time.sleep(60)


def test_results_come_in_order_from_several_processes() -> None:
    results = list(map_ordered(slow_first, range(30), workers=2))
    assert [number for number, _ in results] == list(range(30))
    assert os.getpid() not in {pid for _, pid in results}
    assert list(map_ordered(slow_first, range(3), workers=1)) == [(number, os.getpid()) for number in range(3)]


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            drawn.append(number)
            yield number

    results = map_ordered(fail_at_three, items(), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(drawn) < 50
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(StepError, match="a worker process ended"):
        list(map_ordered(die_at_three, range(100), workers=2))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}\n"
        "from pathlib import Path\nfrom test_data_pool import sleep_long\nfrom liuyi.data.pool import map_ordered\n"
        "if __name__ == '__main__':\n    list(map_ordered(sleep_long, [Path(sys.argv[1])] * 4, workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    wait_for(lambda: len(list(tmp_path.glob("asleep-*"))) == 2)
    workers = [psutil.Process(int(path.name.partition("-")[2])) for path in tmp_path.glob("asleep-*")]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert len(gone) == 2
