"""SFT of a LoRA adapter beside TRL: target tokens a second, and the loss on conversations held out.

    python benchmarks/train/sft.py --peer PEER/bin/python --model MODEL --data alpaca.json
    python benchmarks/train/sft.py --peer PEER/bin/python --model MODEL --data alpaca.json --quick

PEER is a virtual environment with trl and peft. MODEL is a folder that transformers reads, or a GGUF file. The data are
rows of instruction, input and output. Both learn the same tokens in the same order with rank 16 on every projection,
the same AdamW and about as many conversations a step, and take turns. The first step of each run is not timed. Loss is
measured for all by one evaluator, in float32, with the adapters merged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liuyi.finetune.chats import encode_chats
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter
from liuyi.train.batches import ShuffledBatches
from liuyi.train.lm import CausalLM
from liuyi.train.packing import Example, PackedRows

WORKERS = Path(__file__).parent / "workers"
PEERS: dict[str, dict[str, Any]] = {
    "TRL, four at a time, padded": {"micro": 4, "packing": False},
    "TRL, packed": {"micro": 1, "packing": True},
    "TRL, packed, two rows at once": {"micro": 2, "packing": True},
    "TRL, one at a time": {"micro": 1, "packing": False},
}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    peers = {name: PEERS[name] for name in list(PEERS)[: 1 if arguments.quick else None]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = load(arguments.model, torch.float32)
        save_model(folder / "model", model, tokenizer)
        count = arguments.conversations + arguments.heldout
        rows = json.loads(arguments.data.read_text(encoding="utf-8"))[:count]
        examples = encode_chats(map(_chat, range(count), rows), tokenizer, arguments.seq_len).examples
        learnt, heldout = examples[arguments.heldout :], examples[: arguments.heldout]
        packed = PackedRows(learnt, arguments.seq_len, tokenizer.pad_id or 0)
        batch_rows = min(arguments.batch_rows, len(packed))
        steps = len(packed) // batch_rows
        common = {
            "threads": arguments.threads, "seq_len": arguments.seq_len, "lr": 2e-4, "rank": 16, "alpha": 32,
            "seed": 1, "batch_rows": batch_rows, "micro_rows": arguments.micro_rows, "steps": steps,
        }  # fmt: skip
        batches = ShuffledBatches(packed, batch_rows=batch_rows, seed=1)
        order = [row for index in range(steps) for row in batches.row_numbers(index)]
        turn = [learnt[number] for row in order for number in packed.packed[row]]
        _write(folder / "packed.json", learnt, packed.pad_id)
        _write(folder / "in-turn.json", turn, packed.pad_id)
        each = round(len(turn) / steps)
        print(f"{len(turn)} conversations, {_targets(turn):,} targets, {steps} steps, {arguments.threads} threads")
        results: dict[str, list[tuple[float, float]]] = {}
        for repeat in range(arguments.repeats):
            for number, (name, settings) in enumerate({"liuyi": {}, **peers}.items()):
                out = folder / f"{number}-{repeat}"
                out.mkdir()
                micro = settings.get("micro", 1)
                accumulate = max(1, round((batch_rows if settings.get("packing") else each) / micro))
                script, python, data = ("trl_sft.py", arguments.peer, "in-turn.json")
                if name == "liuyi":
                    script, python, data = ("liuyi_sft.py", sys.executable, "packed.json")
                wanted = json.dumps(common | settings | {"accumulate": accumulate})
                told = run([python, WORKERS / script, folder / "model", folder / data, out, wanted])
                seconds = told["step_s"]
                # The first step compiles or reserves memory; its share of the targets is left out with it.
                speed = _targets(turn) * (1 - 1 / len(seconds)) / sum(seconds[1:])
                loss = heldout_loss(folder / "model", heldout, Adapter.load(out / "adapter"))
                results.setdefault(name, []).append((speed, loss))
                print(f"{name}: {speed:.0f} targets/s, loss {loss:.4f}", file=sys.stderr)
        start = heldout_loss(folder / "model", heldout, None)
    own = statistics.median(speed for speed, _ in results["liuyi"])
    print(f"loss on {len(heldout)} conversations held out, before: {start:.4f}")
    print(f"{'':30}{'targets/s':>10}{'ours is':>9}{'loss after':>12}")
    for name, found in results.items():
        speed = statistics.median(speed for speed, _ in found)
        print(f"{name:30}{speed:10.0f}{own / speed:8.2f}x{statistics.median(loss for _, loss in found):12.4f}")


@torch.no_grad()
def heldout_loss(folder: Path, examples: list[Example], adapter: Adapter | None) -> float:
    """Mean loss of the targets, in nats, in float32."""
    model = load_model(folder)
    if adapter is not None:
        model = merge_adapter(model, adapter, torch.float32)[0]
    rows = PackedRows(examples, 1024, 0)
    total, count = 0.0, 0
    for row in range(len(rows)):
        loss = CausalLM()(model, rows.read(np.array([row])))
        total, count = total + float(loss.total), count + loss.count
    return total / count


def _chat(number: int, row: dict[str, str]) -> tuple[str, list[dict[str, str]], list[Any]]:
    asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    said = {"role": "assistant", "content": row["output"]}
    return str(number), [{"role": "user", "content": asked}, said], []


def _write(path: Path, examples: list[Example], pad_id: int) -> None:
    rows = [{"tokens": one.tokens.tolist(), "learnt": one.learnt.astype(int).tolist()} for one in examples]
    path.write_text(json.dumps({"pad_id": pad_id, "train": rows}))


def _targets(examples: list[Example]) -> int:
    return sum(int(one.learnt[1:].sum()) for one in examples)


def run(command: list[Any]) -> dict[str, list[float]]:
    """What a worker tells in its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, help="python of an environment with trl and peft")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="rows of instruction, input and output, as JSON")
    parser.add_argument("--conversations", type=int, default=54)
    parser.add_argument("--heldout", type=int, default=24)
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens in a packed row")
    parser.add_argument("--batch-rows", type=int, default=2)
    parser.add_argument("--micro-rows", type=int, default=2, help="of ours at once")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="once, beside TRL's best setting only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    return arguments


if __name__ == "__main__":
    main()
