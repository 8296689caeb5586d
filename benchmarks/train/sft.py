"""SFT of a LoRA adapter beside TRL: target tokens a second, and the loss on conversations held out.

    python benchmarks/train/sft.py --peer PEER/bin/python --model MODEL --data alpaca.json
    python benchmarks/train/sft.py --peer PEER/bin/python --model MODEL --data alpaca.json --quick

PEER is a virtual environment with trl and peft. MODEL is a folder that transformers reads, or a GGUF file. The data are
rows of instruction, input and output. Both learn the same tokens in the same order with rank 16 on every projection,
the same first values, the same AdamW and about as many conversations a step, and take turns. The first step of each run
is not timed. Loss is measured for all by one evaluator, in float32, with the adapters merged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import SEED, parse, parser, take_turns

from liuyi.finetune.chats import encode_chats
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter
from liuyi.train.batches import ShuffledBatches
from liuyi.train.lm import CausalLM
from liuyi.train.packing import Example, PackedRows

PEERS: dict[str, dict[str, Any]] = {
    "TRL, four at a time, padded": {"micro": 4, "packing": False},
    "TRL, packed": {"micro": 1, "packing": True},
    "TRL, packed, two rows at once": {"micro": 2, "packing": True},
    "TRL, one at a time": {"micro": 1, "packing": False},
}


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = load(asked.model, torch.float32)
        save_model(folder / "model", model, tokenizer)
        count = asked.conversations + asked.heldout
        rows = json.loads(asked.data.read_text(encoding="utf-8"))[:count]
        examples = encode_chats(map(_chat, range(count), rows), tokenizer, asked.seq_len).examples
        learnt, heldout = examples[asked.heldout :], examples[: asked.heldout]
        packed = PackedRows(learnt, asked.seq_len, tokenizer.pad_id or 0)
        batch_rows = min(asked.batch_rows, len(packed))
        steps = len(packed) // batch_rows
        batches = ShuffledBatches(packed, batch_rows=batch_rows, seed=SEED)
        order = [row for index in range(steps) for row in batches.row_numbers(index)]
        turn = [learnt[number] for row in order for number in packed.packed[row]]
        _write(folder / "ours.json", learnt, packed.pad_id)
        _write(folder / "theirs.json", turn, packed.pad_id)
        each = round(len(turn) / steps)
        print(f"{len(turn)} conversations, {_targets(turn):,} targets, {steps} steps, {asked.threads} threads")

        def accumulate(peer: Mapping[str, Any]) -> int:
            return max(1, round((batch_rows if peer["packing"] else each) / peer["micro"]))

        settings = {"lr": 2e-4, "batch_rows": batch_rows, "micro_rows": asked.micro_rows, "steps": steps}
        peers = dict(list(PEERS.items())[: 1 if asked.quick else None])
        results: dict[str, list[tuple[float, float]]] = {}
        for name, adapter, told in take_turns(asked, "sft", folder, {"liuyi": {}}, peers, settings, accumulate):
            seconds = told["step_s"]
            # The first step compiles or reserves memory; its share of the targets is left out with it.
            speed = _targets(turn) * (1 - 1 / len(seconds)) / sum(seconds[1:])
            loss = heldout_loss(folder / "model", heldout, Adapter.load(adapter))
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


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, "rows of instruction, input and output, as JSON")
    made.add_argument("--conversations", type=int, default=54)
    made.add_argument("--heldout", type=int, default=24)
    made.add_argument("--seq-len", type=int, default=1024, help="tokens in a packed row")
    made.add_argument("--batch-rows", type=int, default=2)
    made.add_argument("--micro-rows", type=int, default=2, help="of ours at once")
    return parse(made)


if __name__ == "__main__":
    main()
