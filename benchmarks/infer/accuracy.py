"""How near every number format is to float32 on real text, and llama.cpp's Q8_0 scheme beside them.

    python benchmarks/infer/accuracy.py MODEL TEXT                    # a model folder or GGUF file, a text file
    python benchmarks/infer/accuracy.py MODEL TEXT --rotate 1         # weights off the grid they were stored on
    python benchmarks/infer/accuracy.py MODEL TEXT --windows 4 --only 'int8, kv|q8'
    python benchmarks/infer/accuracy.py MODEL TEXT --rotate 1 --fit OTHER_TEXT --only int4

Teacher-forced over windows of 512 tokens: top-1 agreement with float32 (and its standard error), the increase of the
mean negative log-likelihood, perplexity. Native formats run through the native kernels, as they are served. Schemes
whose names end in "sim" are simulated in torch: matrices and the inputs of every matrix product are rounded to the
scheme's numbers and multiplied in float32, keys and values stay float32. `q8_0 sim` is llama.cpp's: both in groups of
32 with float16 scales.

Weights that came from a file of few bits lie on that file's grid, where rounding to four bits again can look lossless.
`--rotate SEED` multiplies the residual stream with a random orthogonal matrix first, norms folded into the matrices
after them: the same function, with weights that no format favours (as in QuaRot, arXiv 2404.00456).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.infer.agreement import Logits, agreement, decoder_logits, runner_logits, score, windows
from liuyi.infer.blocks import blocks_for
from liuyi.infer.native_runner import NativeRunner
from liuyi.kernels.parts import int8_group
from liuyi.model.decoder import Decoder, Embedding, Linear
from liuyi.model.load import load
from liuyi.model.quantize import quantize

Round = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rotate", type=int, metavar="SEED")
    parser.add_argument("--fit", type=Path, metavar="TEXT", help="a text that int4 is fitted to")
    parser.add_argument("--fit-windows", type=int, default=32, help="so much of it")
    parser.add_argument("--only", default="", help="formats whose name matches this")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model, torch.float32)
    if arguments.rotate is not None:
        model = rotated(model, arguments.rotate)
    texts = windows(tokenizer.encode(arguments.text.read_text()[:1_000_000]), arguments.length, arguments.windows)
    exact = score(decoder_logits(model), texts)
    print(f"{len(exact.nll)} tokens, float32 perplexity {exact.perplexity:.3f}")
    print(f"{'format':34} {'top-1':>8} {'±':>5} {'ΔNLL':>9} {'perplexity':>10}", flush=True)
    fit_to = []
    if arguments.fit is not None:
        fit_to = windows(tokenizer.encode(arguments.fit.read_text()), arguments.length, arguments.fit_windows)
    for name, logits_of in subjects(model, arguments.length, arguments.only, fit_to):
        near = agreement(exact, score(logits_of(), texts))
        print(
            f"{name:34} {near.top1:8.2%} {100 * near.top1_error:5.2f} {near.nll_increase:+9.5f}"
            f" {near.perplexity:10.3f}",
            flush=True,
        )
        gc.collect()


def subjects(
    model: Decoder, length: int, only: str, fit_to: list[Sequence[int]]
) -> Iterator[tuple[str, Callable[[], Logits]]]:
    """Names and how to compute."""
    if fit_to and re.search(only, "int4 fitted, kv int8"):
        small = quantize(model, "int4", fit_to)
        yield (
            "int4 fitted, kv int8",
            lambda: runner_logits(NativeRunner(small, blocks_for(length), weights="int4", kv="int8")),
        )
    for weights, kv in (
        *(("fp32", kv) for kv in ("fp32", "bf16", "int8")),
        *(("bf16", kv) for kv in ("fp32", "bf16", "int8")),
        *(("int8", kv) for kv in ("fp32", "bf16", "int8")),
        *(("int4", kv) for kv in ("fp32", "bf16", "int8")),
    ):
        name = f"{weights}, kv {kv}"
        if re.search(only, name):

            def native(weights: str = weights, kv: str = kv) -> Logits:
                return runner_logits(NativeRunner(model, blocks_for(length), weights=weights, kv=kv))

            yield name, native
    for name, (weights_to, x_to) in SCHEMES.items():
        if re.search(only, f"{name} sim"):

            def simulated(weights_to: Round = weights_to, x_to: Round = x_to) -> Logits:
                return decoder_logits(rounded(model, weights_to, x_to))

            yield f"{name} sim", simulated


def symmetric(bits: int, group: int, scale_dtype: torch.dtype = torch.float32) -> Round:
    """Whole numbers with a scale for every `group` columns (0: one for each row)."""

    def to(x: Tensor) -> Tensor:
        groups = _groups(x, group)
        most = 2 ** (bits - 1) - 1
        scale = (groups.abs().amax(dim=-1, keepdim=True) / most).to(scale_dtype).float()
        numbers = (groups / scale.clamp(min=1e-30)).round().clamp(-most - 1, most)
        return (numbers * scale).flatten(-2)[..., : x.shape[-1]]

    return to


def asymmetric(bits: int, group: int, steps: int = 1) -> Round:
    """Whole numbers with a bfloat16 scale and minimum; the range shrinks in `steps` of 3 %, the nearest one stays."""

    def to(x: Tensor) -> Tensor:
        groups = _groups(x, group)
        low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
        best, least = torch.zeros_like(groups), torch.full_like(low, torch.inf)
        for step in range(steps):
            shrink, middle = 1 - 0.03 * step, (low + high) / 2
            minimum = (middle + (low - middle) * shrink).bfloat16().float()
            scale = ((high - low) * shrink / (2**bits - 1)).bfloat16().float()
            near = ((groups - minimum) / scale.clamp(min=1e-30)).round().clamp(0, 2**bits - 1) * scale + minimum
            error = (near - groups).square().sum(dim=-1, keepdim=True)
            best, least = torch.where(error < least, near, best), torch.minimum(error, least)
        return best.flatten(-2)[..., : x.shape[-1]]

    return to


def symmetric4(group: int, steps: int) -> Round:
    """−8…7: the largest number is −8 times the scale, or less of it, where that is nearer."""

    def to(x: Tensor) -> Tensor:
        groups = _groups(x, group)
        peak = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
        best, least = torch.zeros_like(groups), torch.full_like(peak, torch.inf)
        for step in range(steps):
            scale = (peak / -(8 - 0.2 * step)).bfloat16().float()
            scale = torch.where(scale == 0, 1e-30, scale)
            near = (groups / scale).round().clamp(-8, 7) * scale
            error = (near - groups).square().sum(dim=-1, keepdim=True)
            best, least = torch.where(error < least, near, best), torch.minimum(error, least)
        return best.flatten(-2)[..., : x.shape[-1]]

    return to


def turned(blocks: int) -> Round:
    """int8 with a scale for so many blocks of 64 columns, turned before they are rounded, and back (0: as native int8).

    The blocks of a group are mixed, then each is turned by Hadamard's matrix; both are their own inverses.
    """

    def to(x: Tensor) -> Tensor:
        group = 64 * blocks or int8_group(x.shape[-1])
        basis = torch.kron(_mixing(group // 64), _hadamard(64) / 8)
        near = symmetric(8, group)((_groups(_groups(x, 64).flatten(-2), group) @ basis).flatten(-2))
        return (_groups(near, group) @ basis).flatten(-2)[..., : x.shape[-1]]

    return to


def _mixing(blocks: int) -> Tensor:
    """What twice their mean leaves of each of three or four blocks; sum and difference of two."""
    if blocks == 2:
        return _hadamard(2) / 2**0.5
    return torch.eye(blocks) - (2 / blocks if blocks > 2 else 0)


def _hadamard(order: int) -> Tensor:
    signs = torch.ones(1, 1)
    while len(signs) < order:
        signs = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), signs)
    return signs


def exactly(x: Tensor) -> Tensor:
    """No rounding."""
    return x


def _groups(x: Tensor, group: int) -> Tensor:
    group = group or x.shape[-1]
    return functional.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))


SCHEMES: dict[str, tuple[Round, Round]] = {
    "q8_0": (symmetric(8, 32, torch.float16), symmetric(8, 32, torch.float16)),
    "int8 w 32, x 32": (symmetric(8, 32), symmetric(8, 32)),
    "int8 w 64, x 64": (symmetric(8, 64), symmetric(8, 64)),
    "int8 w 128, x 128": (symmetric(8, 128), symmetric(8, 128)),
    "int8 w 64, x 64, turned": (turned(1), turned(1)),
    "int8 w 64-256, x 64-256, turned": (turned(0), turned(0)),
    "int8 w 64, x exact": (symmetric(8, 64), exactly),
    "int8 w row, x token": (symmetric(8, 0), symmetric(8, 0)),
    "int4 asymmetric 32, searched": (asymmetric(4, 32, 8), symmetric(8, 32)),
    "int4 asymmetric 32": (asymmetric(4, 32), symmetric(8, 32)),
    "int4 symmetric 32, searched": (symmetric4(32, 12), symmetric(8, 32)),
}
"""Names of schemes: what is done to matrices, and to what they are multiplied with. The head is int8 under int4."""


def rounded(model: Decoder, weights_to: Round, x_to: Round) -> Decoder:
    """A copy that rounds its matrices, and the inputs of each."""
    near = copy.deepcopy(model)
    four_bits = weights_to not in {scheme for name, (scheme, _) in SCHEMES.items() if "int4" not in name}
    for module in near.modules():
        if isinstance(module, Linear):
            module.weight.data = weights_to(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (x_to(inputs[0]),))
    head = near._head
    head_to = symmetric(8, 64) if four_bits else weights_to
    if isinstance(head, Embedding):
        near.lm_head = Linear(head.hidden_size, head.vocab_size)
        near.lm_head.weight = nn.Parameter(head_to(head.weight.data))
        near.lm_head.register_forward_pre_hook(lambda _, inputs: (x_to(inputs[0]),))
    near.logits = lambda hidden: near.lm_head(hidden)  # type: ignore[method-assign,misc]
    return near


def rotated(model: Decoder, seed: int) -> Decoder:
    """The same function, its residual stream turned by a random orthogonal matrix and its norms' weights one."""
    config = dataclasses.replace(model.config, tie_word_embeddings=False)
    with torch.device("meta"):
        turned = Decoder(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"].clone())
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size, generator=generator).double()).Q

    def readers(norm: str, names: list[str]) -> None:
        for name in names:
            weights[name] = (weights[name].double() * weights[norm].double() @ q).float()
        weights[norm] = torch.ones_like(weights[norm])

    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        readers(f"{at}.input_layernorm.weight", [f"{at}.self_attn.{n}_proj.weight" for n in "qkv"])
        readers(f"{at}.post_attention_layernorm.weight", [f"{at}.mlp.{n}_proj.weight" for n in ("gate", "up")])
        for name in (f"{at}.self_attn.o_proj.weight", f"{at}.mlp.down_proj.weight"):
            weights[name] = (q.T @ weights[name].double()).float()
    readers("model.norm.weight", ["lm_head.weight"])
    weights["model.embed_tokens.weight"] = (weights["model.embed_tokens.weight"].double() @ q).float()
    turned.load_state_dict(weights, assign=True)
    turned.reset_buffers("cpu")
    return turned


if __name__ == "__main__":
    main()
