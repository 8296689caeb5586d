"""What the benchmarks of SFT and DPO share: ours and TRL's settings learn by turns, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from liuyi.model.checkpoint import load_model
from liuyi.model.lora import LoraConfig, add_lora, lora_adapter

WORKERS = Path(__file__).parent / "workers"
LORA = LoraConfig(rank=16, alpha=32)
SEED = 1


def parser(description: str | None, data: str) -> argparse.ArgumentParser:
    """The options of both; `data` says what the file has."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--peer", required=True, help="python of an environment with trl and peft")
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--data", type=Path, required=True, help=data)
    made.add_argument("--repeats", type=int, default=1)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--quick", action="store_true", help="once, and few settings")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    asked = made.parse_args()
    if asked.quick:
        asked.repeats = 1
    torch.set_num_threads(asked.threads)
    return asked


def take_turns(
    asked: argparse.Namespace,
    task: str,
    folder: Path,
    ours: Mapping[str, Mapping[str, Any]],
    peers: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    accumulate: Callable[[Mapping[str, Any]], int],
) -> Iterator[tuple[str, Path, dict[str, list[float]]]]:
    """Each of our settings and of TRL's, as often as asked: its name, the folder of its adapter, and what it told.

    `folder` has the model, `ours.json` as our batches draw from it, and `theirs.json` in the order of learning. Of a
    peer's settings `accumulate` says how many times they make a step.
    """
    lora = {"rank": LORA.rank, "alpha": LORA.alpha, "start": write_start(folder, SEED)}
    common = {"threads": asked.threads, "seq_len": asked.seq_len, "seed": SEED, **lora, **settings}
    for repeat in range(asked.repeats):
        for number, (name, own) in enumerate({**ours, **peers}.items()):
            out = folder / f"{number}-{repeat}"
            out.mkdir()
            if name in ours:
                worker, python, data, wanted = f"liuyi_{task}.py", sys.executable, "ours.json", {**common, **own}
            else:
                worker, python, data = f"trl_{task}.py", asked.peer, "theirs.json"
                wanted = {**common, **own, "accumulate": accumulate(own)}
            told = run([python, WORKERS / worker, folder / "model", folder / data, out, json.dumps(wanted)])
            yield name, out / "adapter", told


def write_start(folder: Path, seed: int) -> str:
    """The adapter that ours begins with under this seed, for the peers to begin with it too."""
    model = load_model(folder / "model")
    add_lora(model, LORA, seed)
    out = folder / f"start-{seed}"
    lora_adapter(model, LORA).save(out)
    return str(out)


def run(command: list[Any]) -> dict[str, list[float]]:
    """What a worker tells in its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return told
