"""Memory and time of long prompts on a small model whose positions are stretched, read in chunks of bounded size.

    python benchmarks/infer/long_context.py                                    # 8K, 32K and 128K tokens, YaRN
    python benchmarks/infer/long_context.py --runner reference --tokens 8192   # the torch decoder
    python benchmarks/infer/long_context.py --scaling llama3 --kv int8

Each length runs in a process of its own, so that its peak memory is its own. `last chunk` beside `first chunk` shows
what attention over all that came before adds; `beyond` is the peak above weights, runtime and the cache that was
written: what a step needs for itself, which must not grow with the prompt. Weights are random: only sizes matter here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

ORIGINAL = 8192
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": ORIGINAL},
    "linear": {"rope_type": "linear", "factor": 16.0},
    "dynamic": {"rope_type": "dynamic", "factor": 16.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}


@dataclass(frozen=True)
class Measured:
    """One prompt of one length."""

    tokens: int
    runner: str
    ttft_s: float
    first_chunk_s: float
    last_chunk_s: float
    token_s: float
    """Of each token after the first, with the whole prompt before it."""
    cache_bytes: int
    before_bytes: int
    """Peak memory of the process before the prompt."""
    peak_bytes: int

    @property
    def beyond_bytes(self) -> int:
        """Peak memory that is neither there before nor the cache."""
        return self.peak_bytes - self.before_bytes - self.cache_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32_768, 131_072])
    parser.add_argument("--runner", default="auto", choices=["auto", "reference", "fp32", "bf16", "int8", "int4"])
    parser.add_argument("--kv", default="auto", choices=["auto", "fp32", "bf16", "int8"])
    parser.add_argument("--scaling", default="yarn", choices=SCALINGS)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    asked = parser.parse_args()
    table = Table(title=f"{asked.layers} layers, 2 heads of 64 that share one key-value head, {asked.scaling}")
    for name in ("tokens", "TTFT s", "tok/s", "first chunk", "last chunk", "decode", "cache MB", "beyond MB"):
        table.add_column(name, justify="right")
    spawn = multiprocessing.get_context("spawn")
    runner = ""
    for tokens in asked.tokens:
        with spawn.Pool(1) as pool:
            one: Measured = pool.apply(measure, (tokens, vars(asked)))
        runner = one.runner
        table.add_row(
            f"{one.tokens:,}",
            f"{one.ttft_s:.2f}",
            f"{one.tokens / one.ttft_s:,.0f}",
            f"{1e3 * one.first_chunk_s:.0f} ms",
            f"{1e3 * one.last_chunk_s:.0f} ms",
            f"{1e3 * one.token_s:.2f} ms",
            f"{one.cache_bytes / 1e6:.1f}",
            f"{one.beyond_bytes / 1e6:.1f}",
        )
    table.caption = runner
    Console().print(table)


def measure(tokens: int, asked: dict[str, Any]) -> Measured:
    """One prompt of so many tokens, in this process."""
    from liuyi.infer.blocks import blocks_for
    from liuyi.infer.engine import Engine
    from liuyi.infer.open import open_runner
    from liuyi.infer.request import Request
    from liuyi.model.config import DecoderConfig
    from liuyi.model.decoder import Decoder, init_weights
    from liuyi.model.tokenizer import train_bpe

    scaling = asked["scaling"]
    model = Decoder(
        DecoderConfig(
            "llama",
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=asked["layers"],
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            # What a dynamic scaling stretches from; the others name it themselves.
            max_position_embeddings=ORIGINAL if scaling == "dynamic" else 16 * ORIGINAL,
            rope_scaling=SCALINGS[scaling],
            tie_word_embeddings=True,
        )
    )
    init_weights(model, seed=1)
    context = min(tokens + asked["new_tokens"], model.config.context_tokens)
    prompt = random.Random(0).choices(range(4000), k=context - asked["new_tokens"])
    runner = open_runner(model, weights=asked["runner"], kv=asked["kv"], kv_tokens=context)
    engine = Engine(runner, train_bpe(["a b c"], 260), max_slots=1, max_tokens=context)
    engine.generate([Request(prompt_ids=prompt[:1024], max_tokens=2, ignore_eos=True)])
    engine.forget()
    before = _peak_bytes()
    engine.submit(Request(prompt_ids=prompt, max_tokens=asked["new_tokens"], ignore_eos=True))
    times = []
    while engine.has_work:
        began = perf_counter()
        engine.step()
        times.append(perf_counter() - began)
    reading, saying = times[: 1 - asked["new_tokens"]], times[1 - asked["new_tokens"] :]
    return Measured(
        tokens=len(prompt),
        runner=runner.name,
        ttft_s=sum(reading),
        first_chunk_s=reading[0],
        last_chunk_s=reading[-2],
        token_s=min(saying),
        cache_bytes=blocks_for(context) * runner.block_bytes,
        before_bytes=before,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
