"""DPO of a LoRA adapter beside TRL: answer tokens a second, and the loss on pairs held out.

    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json
    python benchmarks/train/dpo.py --peer PEER/bin/python --model MODEL --data pairs.json --quick

PEER and MODEL are as in `sft.py`. The data are rows of conversations, chosen and rejected, as ShareGPT has them. Both
learn the same tokens in the same order with rank 16 on every projection, the same AdamW and as many pairs a step, and
take turns. The time is that of the reference and of every step but the first. Loss is the mean of the second half of
the steps, and on pairs held out, measured for all by one evaluator, in float32, with the adapters merged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sft import run

from liuyi.align.objectives import dpo
from liuyi.align.pairs import Pair, PairRows, encode_pairs, with_reference
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter
from liuyi.train.batches import ShuffledBatches

WORKERS = Path(__file__).parent / "workers"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
PEERS: dict[str, dict[str, Any]] = {
    "TRL, reference first": {"micro": 1, "precompute": True},
    "TRL, reference in each step": {"micro": 1, "precompute": False},
    "TRL, two at a time, padded": {"micro": 2, "precompute": True},
}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    peers = {name: PEERS[name] for name in list(PEERS)[: 1 if arguments.quick else None]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = load(arguments.model, torch.float32)
        save_model(folder / "model", model, tokenizer)
        rows = map(_row, json.loads(arguments.data.read_text(encoding="utf-8")))
        pairs = encode_pairs(list(rows), tokenizer, arguments.seq_len).pairs[: arguments.pairs + arguments.heldout]
        heldout, learnt = pairs[: arguments.heldout], pairs[arguments.heldout :]
        steps = len(learnt) // arguments.batch_pairs
        common = {
            "threads": arguments.threads, "seq_len": arguments.seq_len, "lr": 3e-4, "rank": 16, "alpha": 32, "seed": 1,
            "batch_pairs": arguments.batch_pairs, "micro_pairs": arguments.micro_pairs, "steps": steps,
        }  # fmt: skip
        pad_id = tokenizer.pad_id or 0
        batches = ShuffledBatches(PairRows(learnt, arguments.seq_len, pad_id), batch_rows=arguments.batch_pairs, seed=1)
        turn = [learnt[row] for index in range(steps) for row in batches.row_numbers(index)]
        for name, each in (("as-given", learnt), ("in-turn", turn)):
            (folder / f"{name}.json").write_text(
                json.dumps({"pad_id": pad_id, "train": [_tokens(one) for one in each]})
            )
        targets = sum(int(answer.learnt[1:].sum()) for pair in turn for answer in (pair.chosen, pair.rejected))
        print(f"{len(turn)} pairs, {targets:,} targets, {steps} steps, {arguments.threads} threads")
        unseen = with_reference(PairRows(heldout, arguments.seq_len, pad_id), model, pairs_at_once=2)
        results: dict[str, list[tuple[float, float, float]]] = {}
        for repeat in range(arguments.repeats):
            for number, (name, settings) in enumerate({"liuyi": {}, **peers}.items()):
                out = folder / f"{number}-{repeat}"
                out.mkdir()
                accumulate = arguments.batch_pairs // settings.get("micro", 1)
                script, python, data = ("trl_dpo.py", arguments.peer, "in-turn.json")
                if name == "liuyi":
                    script, python, data = ("liuyi_dpo.py", sys.executable, "as-given.json")
                wanted = json.dumps(common | settings | {"accumulate": accumulate})
                told = run([python, WORKERS / script, folder / "model", folder / data, out, wanted])
                steady = sum(told["step_s"][1:]) * steps / (steps - 1)
                speed = targets / (told["reference_s"][0] + steady)
                loss = heldout_loss(folder / "model", unseen, Adapter.load(out / "adapter"))
                learnt_loss = statistics.mean(told["losses"][steps // 2 :])
                results.setdefault(name, []).append((speed, learnt_loss, loss))
                print(f"{name}: {speed:.0f} targets/s, loss {learnt_loss:.4f}, {loss:.4f}", file=sys.stderr)
    own = statistics.median(speed for speed, *_ in results["liuyi"])
    print(f"loss on {len(heldout)} pairs held out, before: {np.log(2):.4f}")
    print(f"{'':30}{'targets/s':>10}{'ours is':>9}{'in training':>13}{'held out':>10}")
    for name, found in results.items():
        speed, learnt_loss, loss = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:30}{speed:10.0f}{own / speed:8.2f}x{learnt_loss:13.4f}{loss:10.4f}")


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, help="python of an environment with trl and peft")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="rows of conversations, chosen, rejected, as JSON")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--heldout", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512, help="longest answer with its prompt, in tokens")
    parser.add_argument("--batch-pairs", type=int, default=2)
    parser.add_argument("--micro-pairs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="once, beside the first of TRL's settings only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    return arguments


if __name__ == "__main__":
    main()
