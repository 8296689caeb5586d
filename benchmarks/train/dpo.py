"""DPO of a LoRA adapter beside TRL: answer tokens a second, loss curves, and the loss on pairs held out.

    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json
    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json --quick

PEER and MODEL are as in `sft.py`. The data are rows of conversations, chosen and rejected, as ShareGPT has them. Both
learn the same tokens in the same order with rank 16 on every projection, the same first values, the same AdamW and the
same pairs at every step, and take turns. The time is that of the reference and of every step but the first.

Losses are compared with TRL's in float32. In bfloat16 an answer's log-probability, a sum over its tokens, is off by
tenths of a nat, so curves lie apart though the method is the same; how far apart TRL's own settings lie is the measure
of that, and another first adapter shows what the seed does. `apart` is the mean over all steps, `last` that of the last
step. Pairs held out are measured for all by one evaluator, in float32, with the adapters merged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import SEED, parse, parser, take_turns, write_start

from liuyi.align.objectives import dpo
from liuyi.align.pairs import Pair, PairRows, encode_pairs
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter
from liuyi.train.batches import ShuffledBatches

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
OURS: dict[str, dict[str, Any]] = {"liuyi": {"dtype": "bf16"}, "liuyi, float32": {"dtype": "fp32"}}
EXACT = "TRL, float32"
PEERS: dict[str, dict[str, Any]] = {
    "TRL, reference first": {"dtype": "bf16", "micro": 1, "precompute": True},
    EXACT: {"dtype": "fp32", "micro": 1, "precompute": True},
    "TRL, reference in each step": {"dtype": "bf16", "micro": 1, "precompute": False},
    "TRL, two at a time, padded": {"dtype": "bf16", "micro": 2, "precompute": True},
    "TRL, another first adapter": {"dtype": "bf16", "micro": 1, "precompute": True, "start_seed": SEED + 1},
}


@dataclass(frozen=True)
class Run:
    """What one setting came to once."""

    targets_s: float
    losses: list[float]
    heldout: float


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = load(asked.model, torch.float32)
        save_model(folder / "model", model, tokenizer)
        rows = map(_row, json.loads(asked.data.read_text(encoding="utf-8")))
        pairs = encode_pairs(list(rows), tokenizer, asked.seq_len).pairs[: asked.pairs + asked.heldout]
        unseen = PairRows(pairs[: asked.heldout], asked.seq_len, tokenizer.pad_id or 0)
        learnt = PairRows(pairs[asked.heldout :], asked.seq_len, tokenizer.pad_id or 0)
        take_reference(unseen, model)
        steps = len(learnt) // asked.batch_pairs
        batches = ShuffledBatches(learnt, batch_rows=asked.batch_pairs, seed=SEED)
        turn = [learnt.pairs[row] for index in range(steps) for row in batches.row_numbers(index)]
        for name, each in (("ours", learnt.pairs), ("theirs", turn)):
            tokens = {"pad_id": learnt.pad_id, "train": [_tokens(one) for one in each]}
            (folder / f"{name}.json").write_text(json.dumps(tokens))
        targets = sum(int(answer.learnt[1:].sum()) for pair in turn for answer in (pair.chosen, pair.rejected))
        print(f"{len(turn)} pairs, {targets:,} targets, {steps} steps, {asked.threads} threads")

        def accumulate(peer: Mapping[str, Any]) -> int:
            return asked.batch_pairs // int(peer["micro"])

        settings = {
            "lr": 3e-4, "batch_pairs": asked.batch_pairs, "micro_pairs": asked.micro_pairs, "steps": steps,
        }  # fmt: skip
        ours = dict(list(OURS.items())[: 1 if asked.quick else None])
        peers = dict(list(PEERS.items())[: 2 if asked.quick else None])
        for name, peer in peers.items():
            if "start_seed" in peer:
                peers[name] = {**peer, "start": write_start(folder, peer["start_seed"])}
        results: dict[str, list[Run]] = {}
        for name, adapter, told in take_turns(asked, "dpo", folder, ours, peers, settings, accumulate):
            steady = sum(told["step_s"][1:]) * steps / (steps - 1)
            loss = heldout_loss(folder / "model", unseen, Adapter.load(adapter))
            run = Run(targets / (told["reference_s"][0] + steady), told["losses"], loss)
            results.setdefault(name, []).append(run)
            print(f"{name}: {run.targets_s:.0f} targets/s, {run.heldout:.4f}", file=sys.stderr)
    print(f"loss on {len(unseen)} pairs held out, before: {np.log(2):.4f}")
    print_table(results)
    print_curves({name: runs[0].losses for name, runs in results.items()})


def take_reference(pairs: PairRows, model: Decoder) -> None:
    """Log-probabilities in float32, two pairs at once."""
    pairs.take_reference(ShuffledBatches(pairs, batch_rows=2, seed=SEED), model)


def heldout_loss(folder: Path, pairs: PairRows, adapter: Adapter) -> float:
    """Mean loss of DPO, in nats, in float32; the reference is that of the pairs."""
    policy = PairRows(pairs.pairs, pairs.seq_len, pairs.pad_id)
    take_reference(policy, merge_adapter(load_model(folder), adapter, torch.float32)[0])
    return float(dpo(policy.reference, pairs.reference, 0.1).mean())


def print_table(results: Mapping[str, Sequence[Run]]) -> None:
    """Speed, how far the losses of training lie from the exact ones, and the loss held out; of each the median."""
    exact = np.array(results[EXACT][0].losses)
    own = statistics.median(run.targets_s for run in results["liuyi"])
    print(f"{'':30}{'targets/s':>10}{'ours is':>9}{'apart':>9}{'at most':>9}{'last':>9}{'held out':>10}")
    for name, runs in results.items():
        columns = []
        for run in runs:
            apart = np.abs(np.array(run.losses) - exact)
            columns.append((run.targets_s, apart.mean(), apart.max(), apart[-1], run.heldout))
        speed, mean, most, last, loss = (float(np.median(column)) for column in zip(*columns, strict=True))
        print(f"{name:30}{speed:10.0f}{own / speed:8.2f}x{mean:9.5f}{most:9.5f}{last:9.5f}{loss:10.4f}")


def print_curves(losses: Mapping[str, Sequence[float]]) -> None:
    """The losses of every step beside one another."""
    for number, name in enumerate(losses):
        print(f"({number}) {name}")
    print("step  " + "".join(f"{f'({number})':>9}" for number in range(len(losses))))
    for step, row in enumerate(zip(*losses.values(), strict=True), start=1):
        print(f"{step:4}  " + "".join(f"{loss:9.4f}" for loss in row))


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
