"""What reading a long prompt beside some streams costs them, and how long it takes, by how much a step may stretch.

    python benchmarks/infer/pacing.py MODEL                    # a Hugging Face folder; 1.4 to 2 times
    python benchmarks/infer/pacing.py MODEL --stretches 1.5 3

The engine over the native kernels, without a server: steps of the streams, then those that read a prompt beside them.
Their texts grow meanwhile. Steps are compared with the median of those before the prompt.
Those in which one of the threads waited for a core are left out: what they say is of the machine's other work (Linux).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from liuyi.infer.engine import Engine
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.request import Request
from liuyi.infer.runner import BLOCK_TOKENS
from liuyi.model.load import load

BEFORE, SETTLED = 350, 50
MOST_STEPS = 3000
WAITED_S = 50e-6
"""A step whose threads waited for longer has been interrupted."""

Step = tuple[float, bool]
"""Seconds, and whether it was interrupted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stretches", type=float, nargs="+", default=[1.4, 1.6, 1.8, 2.0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--stream-tokens", type=int, default=512, help="that each of them begins with")
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    model, tokenizer = load(asked.model, torch.float32)
    each = max(asked.stream_tokens + BEFORE + MOST_STEPS, asked.prompt_tokens + 1) // BLOCK_TOKENS + 1
    blocks = (asked.streams + 1) * each
    runner = NativeRunner(model, blocks, weights="int8", kv="int8", threads=torch.get_num_threads())
    print(
        "stretch  prompt read in, s  steps before, ms: p50  p99  meanwhile, ms: p50  p99  of the p50 before  left out"
    )
    for _ in range(asked.repeats):
        for stretch in asked.stretches:
            before, during = _measure(Engine(runner, tokenizer, stretch=stretch), asked)
            if not _undisturbed(before) or not _undisturbed(during):
                raise SystemExit("something else takes the cores in every step: there is nothing to tell")
            usual, uneven = np.percentile(_undisturbed(before), (50, 99)) * 1000
            middle, late = np.percentile(_undisturbed(during), (50, 99)) * 1000
            left_out = sum(waited for _, waited in before + during) / len(before + during)
            print(
                f"{stretch:7.1f} {sum(seconds for seconds, _ in during):18.1f} {usual:22.1f} {uneven:4.1f} "
                f"{middle:18.1f} {late:4.1f} {late / usual:17.2f}x {left_out:9.0%}",
                flush=True,
            )


def _measure(engine: Engine, asked: argparse.Namespace) -> tuple[list[Step], list[Step]]:
    """The steps before the prompt, and those that read it."""
    generator = np.random.default_rng(0)

    def submit(count: int, new_tokens: int) -> int:
        prompt = generator.integers(0, engine.tokenizer.vocab_size, count).tolist()
        return engine.submit(Request(prompt_ids=prompt, max_tokens=new_tokens, ignore_eos=True))

    streams = [submit(asked.stream_tokens, BEFORE + MOST_STEPS) for _ in range(asked.streams)]
    while not all(_step(engine)[1] >= set(streams) for _ in range(SETTLED)):
        pass
    before = [_step(engine)[0] for _ in range(BEFORE - SETTLED)]
    prompt = submit(asked.prompt_tokens, 1)
    during: list[Step] = []
    ended = False
    while not ended:
        step, said = _step(engine)
        during.append(step)
        ended = prompt in said
    for stream in streams:
        engine.cancel(stream)
    engine.forget()
    return before, during


def _step(engine: Engine) -> tuple[Step, set[int]]:
    """A step's time, and who said something."""
    waited, began = _waited_s(), time.perf_counter()
    updates = engine.step()
    seconds = time.perf_counter() - began
    return (seconds, _waited_s() - waited > WAITED_S), {update.id for update in updates}


def _waited_s() -> float:
    """For how long the threads of this process have waited for a core in all."""
    threads = Path("/proc/self/task")
    return sum(int((thread / "schedstat").read_text().split()[1]) for thread in threads.iterdir()) / 1e9


def _undisturbed(steps: list[Step]) -> list[float]:
    return [seconds for seconds, waited in steps if not waited]


if __name__ == "__main__":
    main()
