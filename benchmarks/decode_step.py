"""One decoding step of many sequences through the cache, beside the same step of transformers' Llama.

    python benchmarks/decode_step.py                       # 64 sequences of 200 tokens, the 5M-parameter model
    python benchmarks/decode_step.py --threads 1 --slots 1

Both models have the same shape and take turns. With one thread CPU time is taken, else wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from liuyi.infer.blocks import blocks_for
from liuyi.infer.runner import Batch, ids
from liuyi.infer.torch_runner import TorchRunner
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights

CONFIG = DecoderConfig("llama", 4096, 256, 704, 6, 4, 2, 64, tie_word_embeddings=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    ours, theirs = _our_step(arguments.slots, arguments.tokens), _their_step(arguments.slots, arguments.tokens)
    seconds: dict[str, list[float]] = {"liuyi": [], "transformers Llama": []}
    for _ in range(arguments.repeats):
        for name, step in zip(seconds, (ours, theirs), strict=True):
            began = clock()
            with torch.inference_mode():
                step()
            seconds[name].append(clock() - began)
    print(f"{arguments.slots} sequences of {arguments.tokens} tokens, {arguments.threads} threads")
    typical = {name: statistics.median(sorted(times)[: len(times) // 2 + 1]) for name, times in seconds.items()}
    for name, value in typical.items():
        print(f"{name:20} {value * 1e3:7.2f} ms a step   {typical['transformers Llama'] / value:.2f}x transformers")


def _our_step(slots: int, tokens: int) -> Callable[[], object]:
    model = Decoder(CONFIG)
    init_weights(model, seed=1)
    per_slot = blocks_for(tokens + 1)
    runner = TorchRunner(model, slots * per_slot)

    def batch(length: int, count: int) -> Batch:
        return Batch(
            tokens=ids(torch.randint(CONFIG.vocab_size, (slots * count,)).numpy()),
            counts=ids([count] * slots),
            lengths=ids([length] * slots),
            tables=ids(range(slots * per_slot)).reshape(slots, -1),
            rows=ids(range(count - 1, slots * count, count)),
            adapters=ids([-1] * slots),
        )

    runner.logits(batch(0, tokens))
    new = batch(tokens, 1)
    return lambda: runner.logits(new)


def _their_step(slots: int, tokens: int) -> Callable[[], object]:
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(**CONFIG.to_hf(), attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config).eval()
    cache = transformers.DynamicCache(config=config)
    with torch.inference_mode():
        model(torch.randint(CONFIG.vocab_size, (slots, tokens)), cache=cache)
    new = torch.randint(CONFIG.vocab_size, (slots, 1))

    def step() -> object:
        logits = model(new, cache=cache).logits
        cache.crop(-1)
        return logits

    return step


if __name__ == "__main__":
    main()
