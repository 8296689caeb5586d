"""Engines in processes of their own, asked by turns; texts that they are asked to continue; results side by side.

An engine idles between its turns, so that what is measured is one engine on the whole machine. Repetitions are
interleaved and the best of each is taken: other work on a machine makes things slower, never faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from liuyi.model.tokenizer import Tokenizer

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PEERS = {
    "llama.cpp Q8_0": ("llama", "llama_cpp_engine.py", "q8_0.gguf"),
    "llama.cpp bf16": ("llama", "llama_cpp_engine.py", "bf16.gguf"),
    "OpenVINO int8": ("openvino", "openvino_engine.py", "openvino-int8"),
    "vLLM bf16": ("vllm", "vllm_engine.py", "bf16"),
}
"""(venv, worker, model) under the folder that `peers.sh` fills."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all these benchmarks share."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("peers", type=Path, help="the folder that benchmarks/infer/peers.sh filled")
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--json", type=Path, help="also append the results to this file, a JSON object a line")
    return made


class Remote:
    """An engine in another process."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(command),
            )
        self._log = log
        self._answer()

    def ask(self, job: str, **asked: Any) -> dict[str, Any]:
        """Do a job and give what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job, **asked}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def engines(
    asked: argparse.Namespace, weights: str, names: Sequence[str], kv: str = "auto"
) -> Iterator[dict[str, Remote]]:
    """Ours under the name `Liuyi`, and the named peers whose venv is there."""
    models, workers = asked.peers / "models", HERE / "workers"
    commands = {"Liuyi": [sys.executable, workers / "liuyi_engine.py", models / "fp32", asked.threads, weights, kv]}
    for name in names:
        venv, script, model = PEERS[name]
        if not (asked.peers / venv).exists():
            print(f"{name} is not there", file=sys.stderr)
            continue
        commands[name] = [asked.peers / venv / "bin" / "python", workers / script, models / model, asked.threads]
    with ExitStack() as stack:
        started = {}
        for name, command in commands.items():
            log = asked.peers / f"{name.replace(' ', '-')}.log"
            started[name] = Remote(name, [*map(str, command)], log)
            stack.callback(started[name].close)
        yield started


class Texts:
    """Token ids of this repository's own documentation, cut wherever one likes."""

    def __init__(self, model: Path) -> None:
        tokenizer = Tokenizer.load(model)
        files = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
        self._ids = tokenizer.encode(text)
        self._taken = 0

    def take(self, tokens: int) -> list[int]:
        """So many tokens that begin where no text taken before begins, so that no engine has read their beginning."""
        self._taken += 1
        begin = self._taken * 61 % (len(self._ids) - tokens)
        return self._ids[begin : begin + tokens]


def best(engines: dict[str, Remote], repeats: int, measure: Callable[[Remote, int], float]) -> dict[str, float]:
    """The highest rate of each engine, all taking turns; one turn more, at first, to warm up."""
    rates: dict[str, float] = dict.fromkeys(engines, 0.0)
    for repeat in range(repeats + 1):
        for name, engine in engines.items():
            rate = measure(engine, repeat)
            if repeat:
                rates[name] = max(rates[name], rate)
    return rates


@dataclass(frozen=True)
class Bar:
    """A ratio to a peer that is to be reached."""

    peer: str
    ratio: float


def show(
    asked: argparse.Namespace,
    title: str,
    rates: dict[str, float],
    bars: Sequence[Bar],
    *,
    unit: str = "tokens/s",
    limit: float | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Print ours beside each peer, and write it down."""
    ours, needed = rates["Liuyi"], {bar.peer: bar.ratio for bar in bars}
    table = Table(title=title)
    for column in ("", unit, "Liuyi is", "bar", "of the machine's limit"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in rates.items():
        ratio = "" if name == "Liuyi" else f"{ours / rate:.2f}×"
        bar = f"{needed[name]:g}×" if name in needed else ""
        table.add_row(name, f"{rate:,.1f}", ratio, bar, f"{rate / limit:.0%}" if limit else "")
    console = Console()
    console.print(table)
    for name, note in (notes or {}).items():
        console.print(f"{name}: {note}")
    record(asked, title, unit, rates, bars=needed, limit=limit, notes=notes or {})


def record(asked: argparse.Namespace, title: str, unit: str, rates: dict[str, float], **more: Any) -> None:
    """Append a result to the file that was asked for, for `table.py`."""
    if asked.json:
        row = {"title": title, "unit": unit, "rates": rates, "bars": {}, "limit": None, "notes": {}} | more
        with asked.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _environment(command: Sequence[str]) -> dict[str, str]:
    """What vLLM's manual asks for on a CPU: Intel's OpenMP, which lies in its venv."""
    environment = dict(os.environ)
    if str(command[-3]).endswith("vllm_engine.py"):
        found = sorted(Path(command[-4]).parents[1].rglob("libiomp5.so"))
        environment |= {"VLLM_USE_AOT_COMPILE": "0", "LD_PRELOAD": ":".join(map(str, found[:1]))}
    return environment
