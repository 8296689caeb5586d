"""The drill of 466: a small run, killed (`kill -9`) 466 times at random moments, must end in the same weights.

    python benchmarks/train/drill.py [--kills 466] [--optimiser muon] [--processes 1]

466 is how often the training of Llama 3.1 405B was interrupted in 54 days (Llama Team 2024, arXiv 2407.21783, §3.3.4).
The run accumulates gradients over two micro-batches, writes checkpoints in the background all the time, and meets three
batches whose loss is not a number, so kills also fall into a rollback and into the writing of checkpoints. Of several
processes a kill meets one, drawn at random; the others are ended and all start again, as an elastic agent has them do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.train.batches import ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.guards import GuardConfig
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.schedule import make_schedule
from liuyi.train.world import Layout, World, join

VOCAB, EOS = 256, 0
FORK = multiprocessing.get_context("fork")


class Quiet:
    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...
    def metric(self, name: str, value: float, index: int | None = None) -> None: ...
    def log(self, message: str) -> None: ...


def write_tokens(folder: Path, tokens: int = 100_000) -> None:
    rng = np.random.default_rng(1)
    stream = 1 + np.cumsum(np.where(rng.random(tokens) < 0.8, 1, rng.integers(1, VOCAB, tokens))) % (VOCAB - 1)
    stream[rng.random(tokens) < 0.02] = EOS
    stream.astype("<u2").tofile(folder / "tokens.bin")
    about = {"dtype": "uint16", "tokens": tokens, "vocab_size": VOCAB, "eos_id": EOS}
    (folder / "tokens.json").write_text(json.dumps(about))


def rank(number: int, processes: int, meeting: Path, data: Path, workdir: Path, steps: int, optimiser: str) -> None:
    """One of the processes of a run."""
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(processes))
    if processes > 1:
        store = dist.FileStore(str(meeting), processes)
        dist.init_process_group("gloo", store=store, rank=number, world_size=processes)
    train(join(Layout(replicate=processes)), data, workdir, steps, optimiser)


def train(world: World, data: Path, workdir: Path, steps: int, optimiser: str) -> None:
    """Start the run or go on with it; at its end `digest.txt` holds the SHA-256 of the weights."""
    torch.set_num_threads(1)
    config = DecoderConfig(
        family="qwen3",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        qk_norm=True,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = Decoder(config)
    init_weights(model, 1)
    third = steps // 3
    trainer = Trainer(
        model,
        ShuffledBatches(
            TokenRows(TokenStream(data), 64),
            batch_rows=4,
            seed=5,
            micro_rows=max(1, 2 // world.size),
            worker=world.data_rank,
            workers=world.data_size,
        ),
        CausalLM(),
        Optimiser(model, OptimiserConfig(optimiser, lr=0.01)),  # type: ignore[arg-type]
        make_schedule("wsd", steps=steps, warmup_steps=20),
        config=LoopConfig(
            steps,
            checkpoint_every_s=0.05,
            guard=GuardConfig(rollback_steps=20),
            inject=",".join(f"nan@{batch}" for batch in range(third, third + 3)),
        ),
        workdir=workdir,
        observer=Quiet(),
        world=world,
    )
    trainer.run()
    if not world.leads:
        return
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    (workdir / "digest.txt").write_text(digest.hexdigest())


class Run:
    """A run in a folder of its own, by so many processes."""

    def __init__(self, data: Path, name: str, given: argparse.Namespace, steps: int) -> None:
        self.data, self.workdir, self.given, self.steps = data, data / name, given, steps
        self.starts = 0

    def attempt(self, life_s: float | None = None, victim: int = 0) -> bool:
        """Processes of which one lives for `life_s` at most; whether they came to the end."""
        self.starts += 1
        meeting = self.data / f"{self.workdir.name}-meeting-{self.starts}"
        processes = self.given.processes
        order = (processes, meeting, self.data, self.workdir, self.steps, self.given.optimiser)
        ranks = [FORK.Process(target=rank, args=(number, *order)) for number in range(processes)]
        for each in ranks:
            each.start()
        ranks[victim].join(life_s)
        killed = ranks[victim].is_alive()
        for each in [ranks[victim], *ranks]:
            if killed and each.is_alive():
                each.kill()
            each.join()
        statuses = [each.exitcode for each in ranks]
        if not killed and any(statuses):
            sys.exit(f"the run failed with statuses {statuses}")
        return not any(statuses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=466)
    parser.add_argument("--steps", type=int, help="steps of the run [default: 8 for each kill]")
    parser.add_argument("--optimiser", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--processes", type=int, choices=[1, 2, 4], default=1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    steps = given.steps or 8 * given.kills
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder)
        started = time.monotonic()
        Run(folder, "whole", given, steps).attempt()
        undisturbed_s = time.monotonic() - started
        kills, ended = 0, False
        mean_life_s = undisturbed_s / given.kills
        startup_s = 0.1
        broken = Run(folder, "broken", given, steps)
        started = time.monotonic()
        while not ended:
            life_s = startup_s + chance.expovariate(1 / mean_life_s) if kills < given.kills else None
            ended = broken.attempt(life_s, chance.randrange(given.processes))
            kills += not ended
        disturbed_s = time.monotonic() - started
        digests = [(folder / run / "digest.txt").read_text() for run in ("whole", "broken")]
        logs = [(folder / run / LOG_FILE).read_bytes() for run in ("whole", "broken")]
    same = "the same" if digests[0] == digests[1] else "DIFFERENT"
    print(f"{steps} steps with {given.optimiser} by {given.processes} process(es)")
    print(f"killed {kills} times, once every {disturbed_s / max(kills, 1):.2f} s")
    print(f"undisturbed {undisturbed_s:.0f} s, disturbed {disturbed_s:.0f} s")
    print(f"final weights: {same} to the bit (SHA-256 {digests[1][:16]})")
    print(f"ledger of batches and losses: {'the same' if logs[0] == logs[1] else 'DIFFERENT'} to the byte")
    if digests[0] != digests[1] or logs[0] != logs[1]:
        sys.exit(f"the drill failed after {kills} kills")
    if kills < given.kills:
        sys.exit(f"the run came to its end after {kills} of {given.kills} kills; give it more --steps")


if __name__ == "__main__":
    main()
