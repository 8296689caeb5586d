"""Forward and backward of a small model: tokens per second, and the fraction of this machine's GEMM peak.

    python benchmarks/train_step.py                        # the 5M-parameter model, beside transformers' Llama
    python benchmarks/train_step.py --threads 1 --hidden 320 --layers 8 --dtype bf16

The models have the same shape, weights and tokens, and take turns, so that what else the machine does meets both.
The fraction counts 6 FLOP for each parameter and token, and takes as the peak the fastest product of square matrices
measured in the same run. With one thread CPU time is taken, which other processes hardly disturb, else wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.loss import linear_cross_entropy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    dtype = DTYPES[arguments.dtype]
    config = DecoderConfig(
        family="llama",
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=11 * arguments.hidden // 4 // 32 * 32,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads,
        head_dim=arguments.hidden // arguments.heads,
        tie_word_embeddings=True,
    )
    batch, seq = arguments.batch, arguments.seq
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(config.vocab_size, (2, batch, seq), generator=generator)
    # Documents of `--document` tokens, not aligned between rows.
    shift = torch.randint(arguments.document, (batch, 1), generator=generator)
    segments = (torch.arange(seq) + shift) // arguments.document

    ours = Decoder(config)
    init_weights(ours, seed=1)
    theirs = _transformers_model(config, ours)

    def our_step(segments: Tensor | None) -> float:
        ours.zero_grad(set_to_none=False)
        hidden = ours(tokens, segments=segments, compute_dtype=dtype)
        loss = linear_cross_entropy(hidden.flatten(0, 1), ours.head_weight, targets.flatten()) / targets.numel()
        loss.backward()
        return loss.item()

    def their_step() -> float:
        theirs.zero_grad(set_to_none=False)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = theirs(tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        return loss.item()

    steps: dict[str, Callable[[], float]] = {
        "liuyi": lambda: our_step(None),
        f"liuyi, packed {arguments.document}-token documents": lambda: our_step(segments),
        "transformers Llama": their_step,
    }
    losses = {name: step() for name, step in steps.items()}
    if not abs(losses["liuyi"] - losses["transformers Llama"]) < (1e-4 if dtype == torch.float32 else 0.05):
        raise SystemExit(f"the models disagree: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peak = 0.0
    for _ in range(arguments.repeats):
        peak = max(peak, _gemm_flops(dtype, clock))
        for name, step in steps.items():
            began = clock()
            step()
            seconds[name].append(clock() - began)

    flops = 6 * config.num_parameters * tokens.numel()
    millions = config.num_parameters / 1e6
    print(f"{millions:.1f}M parameters, {batch}x{seq} tokens, {arguments.dtype}, {arguments.threads} threads")
    print(f"GEMM peak {peak / 1e9:.0f} GFLOP/s")
    theirs_s = _typical(seconds["transformers Llama"])
    for name, measured in seconds.items():
        typical = _typical(measured)
        print(
            f"{name:40} {tokens.numel() / typical:7.0f} tok/s   {flops / typical / peak:4.0%} of peak   "
            f"{theirs_s / typical:.2f}x transformers"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "threads": torch.get_num_threads(),
        "vocab": 4096,
        "hidden": 256,
        "layers": 6,
        "heads": 4,
        "kv-heads": 2,
        "batch": 16,
        "seq": 256,
        "document": 64,
        "repeats": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    return parser.parse_args()


def _transformers_model(config: DecoderConfig, ours: Decoder) -> torch.nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    their_config = transformers.LlamaConfig(**config.to_hf(), attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(their_config)
    model.load_state_dict(ours.state_dict(), strict=False)
    return model


def _gemm_flops(dtype: torch.dtype, clock: Callable[[], float], size: int = 1536) -> float:
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        began = clock()
        left @ right
        best = min(best, clock() - began)
    return 2 * size**3 / best


def _typical(seconds: list[float]) -> float:
    """The median of the faster half: what a step takes when little else runs."""
    ordered = sorted(seconds)
    return statistics.median(ordered[: (len(ordered) + 1) // 2])


if __name__ == "__main__":
    main()
