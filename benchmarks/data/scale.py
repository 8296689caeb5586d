"""Speed and memory of `data.clean` and `data.select` from small corpora to large ones.

    python benchmarks/data/scale.py --megabytes 50 500 5000 --folder /tmp/scale

Each size is cleaned and selected by a process of its own, on all cores. Printed are megabytes of text a second, a CPU
second, and the largest sum of memory of all its processes (PSS: shared pages count once). On two cores 500 MB should
take some two minutes and 5 GB a quarter of an hour, and three times as much disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from texts import texts, write_corpus

from liuyi.data.clean.run import clean
from liuyi.data.select.edits import Edits
from liuyi.data.select.run import decide, write
from liuyi.data.select.thresholds import Thresholds

LOOK_S = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[50, 200])
    parser.add_argument("--folder", type=Path, help="where corpora are kept meanwhile; a temporary one if left out")
    parser.add_argument("--corpus", type=Path, help="a corpus with other texts than those of the installed packages")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        _work(asked.work)
        return
    if asked.folder:
        asked.folder.mkdir(parents=True, exist_ok=True)
    table = Table("MB", "documents", "clean s", "select s", "MB/s", "MB a CPU s", "peak MB")
    real = texts(asked.corpus)
    for megabytes in asked.megabytes:
        with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
            size = write_corpus(Path(scratch) / "source", real, int(megabytes * 1e6))
            table.add_row(*_measured(Path(scratch), size / 1e6))
            Console().print(table)


def _measured(folder: Path, megabytes: float) -> tuple[str, ...]:
    before = os.times()
    process = subprocess.Popen([sys.executable, __file__, "--work", str(folder)], stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _held_bytes(process.pid))
        time.sleep(LOOK_S)
    assert process.returncode == 0
    assert process.stdout is not None
    documents, clean_s, select_s = process.stdout.read().split()
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    wall_s = float(clean_s) + float(select_s)
    speeds = f"{megabytes / wall_s:.1f}", f"{megabytes / cpu_s:.2f}"
    return f"{megabytes:,.0f}", documents, clean_s, select_s, *speeds, f"{peak / 1e6:,.0f}"


def _held_bytes(pid: int) -> int:
    held = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            held += process.memory_full_info().pss
    except psutil.NoSuchProcess:  # it has just ended: what was seen so far is enough
        pass
    return held


def _work(folder: Path) -> None:
    for name in ("cleaned", "work", "train", "heldout"):
        (folder / name).mkdir()
    began = time.perf_counter()
    done = clean(folder / "source", folder / "cleaned", folder / "work", jaccard=0.8)
    cleaned = time.perf_counter()
    decision = decide(folder / "cleaned", Thresholds(), Edits(), heldout_fraction=0.05)
    write(folder / "cleaned", decision, Edits(), folder / "train", folder / "heldout")
    print(done.documents, f"{cleaned - began:.1f}", f"{time.perf_counter() - cleaned:.1f}")


if __name__ == "__main__":
    main()
