"""DPO of a LoRA adapter beside TRL: answer tokens a second, and the loss on pairs held out.

    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json
    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json --quick

PEER and MODEL are as in `sft.py`. The data are rows of conversations, chosen and rejected, as ShareGPT has them. Both
learn the same tokens in the same order with rank 16 on every projection, the same first values, the same AdamW and the
same pairs at every step, and take turns. The time is that of the reference and of every step but the first. Losses are
the mean of the second half of the steps, by how much a step's differs from ours on average and at most, and on pairs
held out, measured for all by one evaluator, in float32, with the adapters merged.
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

from liuyi.align.objectives import dpo
from liuyi.align.pairs import Pair, PairRows, encode_pairs, with_reference
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter
from liuyi.train.batches import ShuffledBatches

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
PEERS: dict[str, dict[str, Any]] = {
    "TRL, reference first": {"micro": 1, "precompute": True},
    "TRL, reference in each step": {"micro": 1, "precompute": False},
    "TRL, two at a time, padded": {"micro": 2, "precompute": True},
}


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = load(asked.model, torch.float32)
        save_model(folder / "model", model, tokenizer)
        rows = map(_row, json.loads(asked.data.read_text(encoding="utf-8")))
        pairs = encode_pairs(list(rows), tokenizer, asked.seq_len).pairs[: asked.pairs + asked.heldout]
        heldout, learnt = pairs[: asked.heldout], pairs[asked.heldout :]
        steps = len(learnt) // asked.batch_pairs
        pad_id = tokenizer.pad_id or 0
        batches = ShuffledBatches(PairRows(learnt, asked.seq_len, pad_id), batch_rows=asked.batch_pairs, seed=SEED)
        turn = [learnt[row] for index in range(steps) for row in batches.row_numbers(index)]
        for name, each in (("ours", learnt), ("theirs", turn)):
            (folder / f"{name}.json").write_text(
                json.dumps({"pad_id": pad_id, "train": [_tokens(one) for one in each]})
            )
        targets = sum(int(answer.learnt[1:].sum()) for pair in turn for answer in (pair.chosen, pair.rejected))
        print(f"{len(turn)} pairs, {targets:,} targets, {steps} steps, {asked.threads} threads")
        unseen = with_reference(PairRows(heldout, asked.seq_len, pad_id), model, pairs_at_once=2)

        def accumulate(peer: Mapping[str, Any]) -> int:
            return asked.batch_pairs // int(peer["micro"])

        settings = {
            "lr": 3e-4, "batch_pairs": asked.batch_pairs, "micro_pairs": asked.micro_pairs, "steps": steps,
        }  # fmt: skip
        results: dict[str, list[tuple[float, ...]]] = {}
        own_losses: list[float] = []
        for name, adapter, told in take_turns(asked, "dpo", folder, PEERS, settings, accumulate):
            steady = sum(told["step_s"][1:]) * steps / (steps - 1)
            speed = targets / (told["reference_s"][0] + steady)
            loss = heldout_loss(folder / "model", unseen, Adapter.load(adapter))
            own_losses = own_losses or told["losses"]
            apart = [abs(theirs - ours) for theirs, ours in zip(told["losses"], own_losses, strict=True)]
            learnt_loss = statistics.mean(told["losses"][steps // 2 :])
            results.setdefault(name, []).append((speed, learnt_loss, statistics.mean(apart), max(apart), loss))
            print(f"{name}: {speed:.0f} targets/s, losses {told['losses']}, {loss:.4f}", file=sys.stderr)
    own = statistics.median(speed for speed, *_ in results["liuyi"])
    print(f"loss on {len(heldout)} pairs held out, before: {np.log(2):.4f}")
    print(f"{'':30}{'targets/s':>10}{'ours is':>9}{'in training':>13}{'apart':>8}{'at most':>9}{'held out':>10}")
    for name, found in results.items():
        speed, learnt_loss, mean, most, loss = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:30}{speed:10.0f}{own / speed:8.2f}x{learnt_loss:13.4f}{mean:8.4f}{most:9.4f}{loss:10.4f}")


def heldout_loss(folder: Path, pairs: PairRows, adapter: Adapter) -> float:
    """Mean loss of DPO, in nats, in float32; the reference is that of the pairs."""
    model = merge_adapter(load_model(folder), adapter, torch.float32)[0]
    policy = with_reference(pairs, model, pairs_at_once=2).reference
    return float(dpo(policy, pairs.reference, 0.1).mean())


def _row(row: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    sides = {side: row[side]["value"] for side in ("chosen", "rejected")}
    return {"id": json.dumps(row["conversations"]), "prompt": prompt, **sides}


def _tokens(pair: Pair) -> dict[str, list[int]]:
    start = int(np.flatnonzero(pair.chosen.learnt)[0])
    return {
        "prompt_ids": pair.chosen.tokens[:start].tolist(),
        "chosen_ids": pair.chosen.tokens[start:].tolist(),
        "rejected_ids": pair.rejected.tokens[start:].tolist(),
    }


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, "rows of conversations, chosen, rejected, as JSON")
    made.add_argument("--pairs", type=int, default=16)
    made.add_argument("--heldout", type=int, default=8)
    made.add_argument("--seq-len", type=int, default=512, help="longest answer with its prompt, in tokens")
    made.add_argument("--batch-pairs", type=int, default=2)
    made.add_argument("--micro-pairs", type=int, default=2)
    return parse(made)


if __name__ == "__main__":
    main()
