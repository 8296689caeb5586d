"""How long training stands still for a checkpoint, and how much slower its steps are while one is written.

    python benchmarks/train/checkpoint.py [--seconds 80] [--every 15] [--url memory://x]

A decoder of SmolLM2-135M's shape is trained on 2 × 512 tokens a step by AdamW: 1.6 GB of weights and moments. The bar
is for one checkpoint a minute; here they come more often, so that there are several, and are scaled to one a minute.
The first copy of each size takes new memory; those after it are what a long run has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.train.batches import ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.schedule import make_schedule

ROWS, SEQ_LEN, VOCAB = 2, 512, 49152
SHAPE = DecoderConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
)


class Ended(Exception):
    """The time is up."""


class Clock:
    """An observer that times steps, and notes whether a checkpoint was being written at their beginning and end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.trainer: Trainer[Decoder, object] | None = None
        self.started = time.monotonic()
        self.stalls: list[float] = []
        self.free: list[float] = []
        self.writing: list[float] = []
        self.writes: list[float] = []
        self._last = self.started
        self._was_busy = True
        self._write_began = self.started

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        assert self.trainer is not None
        now, busy = time.monotonic(), self.trainer.checkpoints.busy()
        if done > 3:
            if busy and self._was_busy:
                self.writing.append(now - self._last)
            elif not busy and not self._was_busy:
                self.free.append(now - self._last)
            elif self._was_busy:
                self.writes.append(now - self._write_began)
        self._was_busy, self._last = busy, now
        if now - self.started > self.seconds:
            raise Ended

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        if name == "checkpoint_stall_s":
            self.stalls.append(value)
            # What comes between two steps is no part of the second.
            self._last = self._write_began = time.monotonic()
            self._was_busy = True

    def log(self, message: str) -> None:
        print(message)


def write_tokens(folder: Path, tokens: int = 200_000) -> None:
    stream = np.random.default_rng(1).zipf(1.3, tokens) % VOCAB
    stream.astype("<u2").tofile(folder / "tokens.bin")
    about = {"dtype": "uint16", "tokens": tokens, "vocab_size": VOCAB, "eos_id": 0}
    (folder / "tokens.json").write_text(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=80.0, help="how long to train")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between checkpoints")
    parser.add_argument("--url", default="", help="where checkpoints are copied to as well")
    parser.add_argument("--folder", type=Path, help="where to write them [default: a temporary folder]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_tokens(folder)
        model = Decoder(SHAPE)
        init_weights(model, 1)
        clock = Clock(given.seconds)
        # A name of its own, by which its copies lie behind the address.
        workdir = folder / folder.name
        steps = 100_000
        trainer = Trainer(
            model,
            ShuffledBatches(TokenRows(TokenStream(folder), SEQ_LEN), batch_rows=ROWS, seed=1),
            CausalLM(torch.bfloat16),
            Optimiser(model, OptimiserConfig("adamw", lr=1e-4)),
            make_schedule("constant", steps=steps),
            config=LoopConfig(
                steps, checkpoint_every_s=given.every, verify_every=0, checkpoint_url=given.url, hang_timeout_s=300.0
            ),
            workdir=workdir,
            observer=clock,
        )
        clock.trainer = trainer
        with suppress(Ended):
            trainer.run()
        newest = max((workdir / "checkpoints").iterdir())
        size = sum(path.stat().st_size for path in newest.iterdir())
        report(clock, size)


def report(clock: Clock, size: int) -> None:
    free, writing = (statistics.median(times or [float("nan")]) for times in (clock.free, clock.writing))
    print(
        f"step of {ROWS} × {SEQ_LEN} tokens: {free:.3f} s (median of {len(clock.free)}), checkpoint {size / 1e9:.2f} GB"
    )
    print("copies that training waited for:", ", ".join(f"{stall:.3f} s" for stall in clock.stalls))
    steady = clock.stalls[2:] or clock.stalls
    stall = statistics.median(steady)
    print(f"stand-still at one checkpoint a minute: {stall:.3f} s, {stall / 60:.2%} of the time (bar: 2 %)")
    if clock.writes:
        write_s = statistics.median(clock.writes)
        slower = writing / free - 1
        print(
            f"while one is written, {write_s:.1f} s long, a step takes {writing:.3f} s ({slower:+.1%}): "
            f"at one a minute {slower * min(write_s, 60) / 60:+.2%}"
        )


if __name__ == "__main__":
    main()
