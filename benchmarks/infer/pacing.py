"""What reading a long prompt beside four streams costs them, and how long it takes, by how much a step may stretch.

    python benchmarks/infer/pacing.py MODEL                    # a Hugging Face folder; 1.6 to 2.4 times
    python benchmarks/infer/pacing.py MODEL --stretches 1.5 3

The native kernels alone, without a server: steps of four streams, then the prompt in pieces as `Pace` has them. The
streams begin with 64 tokens and grow meanwhile. Steps are compared with the median of those before the prompt. Steps in
which one of the threads waited for a core are left out, for what they say is of the machine's other work (Linux).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.pace import Pace
from liuyi.infer.runner import Batch, ids
from liuyi.model.load import load

STREAMS, BEGIN, BEFORE = 4, 64, 300
BLOCK = 32
WAITED_S = 50e-6
"""A step whose threads waited for longer has been interrupted."""

Step = tuple[float, bool]
"""Seconds, and whether it was interrupted."""


class Steps:
    """Steps of streams that grow and one prompt, timed."""

    def __init__(self, runner: NativeRunner, prompt: int) -> None:
        self._runner = runner
        self._generator = np.random.default_rng(0)
        self._blocks = (BEGIN + BEFORE + prompt) // BLOCK + 1
        self._tables = ids(range((STREAMS + 1) * self._blocks)).reshape(STREAMS + 1, self._blocks)
        self._length = BEGIN

    def take(self, count: int, position: int) -> Step:
        """A step that reads `count` tokens of the prompt, 0 for none."""
        counts, lengths = [1] * STREAMS, [self._length] * STREAMS
        if count:
            counts, lengths = [*counts, count], [*lengths, position]
        batch = Batch(
            tokens=ids(self._generator.integers(0, 1000, sum(counts))),
            counts=ids(counts),
            lengths=ids(lengths),
            tables=self._tables[: len(counts)],
            rows=ids(range(STREAMS)),
            adapters=ids([-1] * len(counts)),
        )
        waited, began = _waited_s(), time.perf_counter()
        self._runner.logits(batch)
        seconds = time.perf_counter() - began
        self._length += 1
        return seconds, _waited_s() - waited > WAITED_S


def _waited_s() -> float:
    """For how long the threads of this process have waited for a core in all."""
    threads = Path("/proc/self/task")
    return sum(int((thread / "schedstat").read_text().split()[1]) for thread in threads.iterdir()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stretches", type=float, nargs="+", default=[1.6, 1.8, 2.0, 2.4])
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    model, _ = load(asked.model, torch.float32)
    blocks = (STREAMS + 1) * ((BEGIN + BEFORE + asked.prompt_tokens) // BLOCK + 1)
    runner = NativeRunner(model, blocks, weights="int8", kv="int8", threads=torch.get_num_threads())
    print(
        "stretch  prompt read in, s  steps before, ms: p50  p99  meanwhile, ms: p50  p99  of the p50 before  left out"
    )
    for _ in range(asked.repeats):
        for stretch in asked.stretches:
            before, during = _measure(Steps(runner, asked.prompt_tokens), stretch, asked.prompt_tokens)
            usual, uneven = np.percentile(_undisturbed(before), (50, 99)) * 1000
            middle, late = np.percentile(_undisturbed(during), (50, 99)) * 1000
            left_out = sum(waited for _, waited in before + during) / len(before + during)
            print(
                f"{stretch:7.1f} {sum(seconds for seconds, _ in during):18.1f} {usual:22.1f} {uneven:4.1f} "
                f"{middle:18.1f} {late:4.1f} {late / usual:17.2f}x {left_out:9.0%}",
                flush=True,
            )


def _undisturbed(steps: list[Step]) -> list[float]:
    return [seconds for seconds, waited in steps if not waited]


def _measure(steps: Steps, stretch: float, prompt: int) -> tuple[list[Step], list[Step]]:
    """The steps before the prompt, and those that read it."""
    pace = Pace(prefill_tokens=512, stretch=stretch)
    before: list[Step] = []
    during: list[Step] = []
    position = 0
    for _ in range(BEFORE):
        before.append(steps.take(0, 0))
        pace.observe(STREAMS, 0, [], before[-1][0])
    while position < prompt:
        count = min(pace.budget(STREAMS, 1).tokens(position), prompt - position)
        during.append(steps.take(count, position))
        pace.observe(STREAMS, 0, [(count, position)] if count else [], during[-1][0])
        position += count
    return before, during


if __name__ == "__main__":
    main()
