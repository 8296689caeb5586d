"""A layer as one function gives the bits of its pieces, and leaves a layer that is no plain one to them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from liuyi.kernels.training import training_kernels
from liuyi.model.attention import CausalMask
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Block, Decoder, init_weights
from liuyi.model.lora import LoraConfig, add_lora
from liuyi.model.rope import Rope
from liuyi.model.working import keep_working_copies
from liuyi.train.parallel.recompute import checkpoint_activations

BF16 = torch.bfloat16
CONFIG = DecoderConfig(
    family="llama",
    vocab_size=64,
    hidden_size=80,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
)


@pytest.fixture(autouse=True)
def _needs_amx() -> None:
    native = training_kernels()
    if native is None or not native.has_amx:
        pytest.skip("no AMX")


def _block(config: DecoderConfig = CONFIG, kept: bool = True, as_made: bool = False) -> Block:
    block = Block(config, 0)
    for index, parameter in enumerate(block.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
    if kept:
        keep_working_copies(block, BF16)
    for parameter in block.parameters():
        parameter.grad_dtype = None if as_made and parameter.ndim == 2 else parameter.dtype
    return block


def _run(block: Block, rows: int = 2, seq: int = 40, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    width = block.input_layernorm.weight.shape[0]
    x = torch.randn(rows, seq, width, generator=torch.Generator().manual_seed(99)).requires_grad_()
    rope = Rope(CONFIG)(torch.arange(seq)[None])
    out: Tensor = block(x, BF16, rope, CausalMask(rows, seq, segments, x.device), None)
    return x, out


def _is_joined(out: Tensor) -> bool:
    return "NativeLayer" in type(out.grad_fn).__name__


def _made(block: Block, **shape: Any) -> list[Tensor]:
    x, out = _run(block, **shape)
    out.square().sum().backward()
    return [out.detach(), *(one.grad for one in (x, *block.parameters()) if one.grad is not None)]


@pytest.mark.parametrize("as_made", [False, True])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize(("rows", "seq"), [(1, 1), (2, 70), (3, 64)])
@pytest.mark.parametrize("packed", [False, True])
def test_it_gives_the_bits_of_the_pieces(rows: int, seq: int, window: int | None, packed: bool, as_made: bool) -> None:
    segments = None
    if packed:
        segments = (torch.rand(rows, seq, generator=torch.Generator().manual_seed(seq)) < 0.1).cumsum(dim=1)
    found = []
    for watched in (False, True):
        block = _block(as_made=as_made)
        block.self_attn.window = window
        if watched:
            block.mlp.register_forward_hook(lambda *_: None)
        assert _is_joined(_run(block)[1]) != watched
        found.append(_made(block, rows=rows, seq=seq, segments=segments))
    assert len(found[0]) == 11
    for whole, pieces in zip(*found, strict=True):
        assert whole.dtype == pieces.dtype
        assert torch.equal(whole, pieces)


def test_of_a_wide_layer_too() -> None:
    """Rows longer than what is multiplied at once."""
    config = replace(CONFIG, hidden_size=2048, intermediate_size=352)
    whole, pieces = _block(config), _block(config)
    pieces.mlp.register_forward_hook(lambda *_: None)
    found = _made(whole), _made(pieces)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_number_of_threads_changes_no_bits() -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(_made(_block(), rows=3, seq=130))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


def test_layers_of_a_step_share_the_memory_of_what_they_do_not_keep_and_it_goes_with_the_step() -> None:
    small, large = _run(_block(), rows=1)[1], _run(_block())[1]
    both = _run(_block())[1]
    assert both.grad_fn.scratch is large.grad_fn.scratch is not small.grad_fn.scratch  # type: ignore[union-attr]
    held = weakref.ref(large.grad_fn.scratch)  # type: ignore[union-attr]
    (large + both).sum().backward()
    del large, both
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.self_attn.register_forward_pre_hook(lambda *_: None),
        lambda block: block.self_attn.o_proj.register_forward_hook(lambda *_: None),
        lambda block: block.post_attention_layernorm.register_full_backward_hook(lambda *_: None),
        lambda block: block.mlp.down_proj.weight.requires_grad_(False),
        lambda block: block.input_layernorm.to(BF16),
        lambda block: delattr(block.self_attn.v_proj.weight, "working_copy"),
        lambda block: checkpoint_activations(block, "mlp"),
        lambda block: setattr(block.mlp, "forward", block.mlp.forward),
    ],
)
def test_what_is_no_plain_layer_is_left_to_its_pieces(change: Callable[[Block], object]) -> None:
    block = _block()
    assert _is_joined(_run(block)[1])
    change(block)
    assert not _is_joined(_run(block)[1])


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, family="qwen2", attention_bias=True),
        replace(CONFIG, family="qwen3", qk_norm=True),
        replace(CONFIG, family="mixtral", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    ],
)
def test_other_families_are_left_to_their_pieces(config: DecoderConfig) -> None:
    assert not _is_joined(_run(_block(config))[1])


def test_neither_float32_nor_evaluation_nor_an_adapter_is_joined() -> None:
    model = Decoder(CONFIG)
    init_weights(model, seed=1)
    keep_working_copies(model, BF16)
    names: list[str] = []
    model.model.layers[0].register_forward_hook(lambda _, __, out: names.append(type(out.grad_fn).__name__))
    tokens = torch.arange(8)[None]
    model(tokens, compute_dtype=BF16)
    model(tokens)
    with torch.no_grad():
        model(tokens, compute_dtype=BF16)
    add_lora(model, LoraConfig(rank=4, alpha=8), seed=1)
    model(tokens, compute_dtype=BF16)
    assert ["NativeLayer" in name for name in names] == [True, False, False, False]


def test_recomputed_it_keeps_its_input_only_and_gives_the_same_bits() -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    found = []
    for recompute in ("none", "layer"):
        block = _block()
        checkpoint_activations(block, recompute)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            x, out = _run(block, rows=2, seq=70)
        if recompute == "layer":
            assert sum(kept) < 4 * x.nbytes
        out.square().sum().backward()
        found.append([out.detach(), x.grad, *(one.grad for one in block.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
