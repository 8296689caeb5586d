"""The native kernels of training equal the formulas beside them, in value and in gradient, whatever runs them."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import relative
from torch import Tensor, nn

from liuyi.kernels import library, training
from liuyi.kernels.training import training_kernels
from liuyi.model.attention import CausalMask, attention, attention_reference
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Block
from liuyi.model.fused import (
    add,
    add_norm,
    add_norm_reference,
    norm_to,
    rms_norm_reference,
    rotate,
    rotate_reference,
    swiglu,
    swiglu_reference,
)
from liuyi.model.loss import IGNORED, linear_cross_entropy, linear_cross_entropy_reference
from liuyi.model.rope import Rope
from liuyi.model.working import keep_working_copies

BF16 = torch.bfloat16
LLAMA = DecoderConfig(
    family="llama",
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


@pytest.fixture(params=["amx", "avx512", "avx2"], autouse=True)
def _instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(library.SETTING, request.param)
    training._open.cache_clear()
    if training_kernels() is None:
        pytest.skip("no native kernels for training here")
    yield
    training._open.cache_clear()


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def _agree(fast: Any, reference: Any, *inputs: Tensor, native: str, least: float = 0.0) -> None:
    """Same values and gradients as the formula has in float32, by a native function and not by the plain one.

    Errors are relative to what is compared, or to `least` of the result's own gradient where that is more: of a softmax
    over few keys hardly any gradient is left, while what it is the difference of is rounded.
    """
    ours = fast(*inputs)
    ours = ours if isinstance(ours, tuple) else (ours,)
    assert native in type(ours[-1].grad_fn).__name__
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    theirs = reference(*wide)
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    directions = [torch.randn(one.shape, generator=torch.Generator().manual_seed(9)).to(one.dtype) for one in ours]
    grads = torch.autograd.grad(ours, inputs, directions)
    expected = torch.autograd.grad(theirs, wide, [one.float() for one in directions])
    for near, exact in zip((*ours, *grads), (*theirs, *expected), strict=True):
        scale = max(float(exact.detach().norm()), least * float(directions[0].float().norm()))
        assert float((near.detach().float() - exact.detach()).norm()) < 0.006 * scale


@pytest.mark.parametrize("shape", [(1, 16), (70, 48), (2, 65, 576)])
def test_norms(shape: tuple[int, ...]) -> None:
    x, delta = _random(*shape, dtype=torch.float32), _random(*shape, seed=1)
    weight = _random(shape[-1], seed=2, dtype=torch.float32)
    _agree(
        lambda x, w: norm_to(x, w, 1e-5, BF16),
        lambda x, w: rms_norm_reference(x, w, 1e-5),
        x,
        weight,
        native="NativeNorm",
    )
    _agree(
        lambda x, d, w: add_norm(x, d, w, 1e-5, BF16),
        lambda x, d, w: add_norm_reference(x, d, w, 1e-5, torch.float32),
        x, delta, weight, native="NativeAddNorm",
    )  # fmt: skip


def test_sum() -> None:
    _agree(
        add, lambda x, d: x + d, _random(3, 41, 48, dtype=torch.float32), _random(3, 41, 48, seed=1), native="NativeAdd"
    )


def test_swiglu() -> None:
    _agree(swiglu, swiglu_reference, _random(3, 41, 48), _random(3, 41, 48, seed=1), native="NativeSwiGLU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2])
def test_rotation(rows: int, dtype: torch.dtype) -> None:
    angles = torch.rand(rows, 70, 1, 16, dtype=dtype) * 6
    cos, sin = angles.cos(), angles.sin()
    _agree(
        lambda x: rotate(x, cos, sin),
        lambda x: rotate_reference(x, cos, sin),
        _random(2, 70, 3, 32),
        native="NativeRotate",
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [16, None])
def test_cross_entropy(weighted: bool, chunk: int | None) -> None:
    hidden, weight = _random(50, 32), _random(96, 32, seed=1, dtype=torch.float32)
    targets = torch.randint(96, (50,), generator=torch.Generator().manual_seed(2))
    targets[::7] = IGNORED
    weights = torch.rand(50, generator=torch.Generator().manual_seed(3)) if weighted else None
    ours = linear_cross_entropy(hidden, weight, targets, weights, chunk_tokens=chunk)
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    theirs = linear_cross_entropy_reference(*wide, targets, weights)
    assert relative(ours.detach(), theirs.detach()) < 0.002
    # Logits are rounded to bfloat16 before they are turned into the gradient.
    for near, exact in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * theirs, wide), strict=True
    ):
        assert relative(near.float(), exact) < 0.02


def test_a_target_beyond_the_vocabulary_is_refused() -> None:
    hidden, weight = _random(4, 32), _random(96, 32, seed=1, dtype=torch.float32)
    with pytest.raises(IndexError, match="vocabulary"):
        linear_cross_entropy(hidden, weight, torch.tensor([1, 96, 2, 3]))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 32), (6, 2, 64), (4, 1, 96)])
@pytest.mark.parametrize("seq", [1, 31, 64, 130])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("packed", [False, True])
def test_attention(heads: int, kv_heads: int, head_dim: int, seq: int, window: int | None, packed: bool) -> None:
    native = training_kernels()
    if native is None or not native.has_amx:
        pytest.skip("no AMX")
    generator = torch.Generator().manual_seed(seq)
    segments = (torch.rand(2, seq, generator=generator) < 0.05).cumsum(dim=1) if packed else None
    mask = CausalMask(2, seq, segments, torch.device("cpu"))
    _agree(
        lambda *qkv: attention(*(one.transpose(1, 2) for one in qkv), mask, window),
        lambda *qkv: attention_reference(*(one.transpose(1, 2) for one in qkv), mask.visible(window)),
        *(_random(2, seq, n, head_dim, seed=n) for n in (heads, kv_heads, kv_heads)),
        native="NativeAttention",
        least=0.5,
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_layers_joined_are_the_layers_one_by_one(rows: int) -> None:
    """Of a whole block: the same products, in another order of rounding."""

    def made(kept: bool) -> list[Tensor]:
        block = Block(LLAMA, 0)
        for index, parameter in enumerate(block.parameters()):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
        block.mlp.register_forward_hook(lambda *_: None)  # so that the layer is not one function as a whole
        if kept:
            keep_working_copies(block, BF16)
        x = _random(rows, 40, LLAMA.hidden_size, dtype=torch.float32)
        rope = Rope(LLAMA)(torch.arange(40)[None])
        out = block(x, BF16, rope, CausalMask(rows, 40, None, x.device), None)
        names = {type(one[0]).__name__ for one in _graph(out)}
        assert (
            {"_JoinedMLPBackward", "_JoinedProductsBackward"} <= names
            if kept
            else names.isdisjoint({"_JoinedMLPBackward"})
        )
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (x, *block.parameters()))]

    for ours, theirs in zip(made(kept=True), made(kept=False), strict=True):
        assert ours.dtype == torch.float32
        assert relative(ours, theirs) < 0.01


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    block = Block(
        dataclasses.replace(LLAMA, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, family="qwen3_moe"),
        0,
    )
    for index, parameter in enumerate(block.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
    keep_working_copies(block, BF16)
    x = _random(1, 1, LLAMA.hidden_size, dtype=torch.float32)  # one token: six of the eight are idle
    out = block(x, BF16, Rope(LLAMA)(torch.zeros(1, 1)), CausalMask(1, 1, None, x.device), None)
    out.sum().backward()
    idle = [expert for expert in block.mlp.experts if not expert.down_proj.weight.grad.any()]
    assert len(idle) == 6
    assert all(not parameter.grad.any() for expert in idle for parameter in expert.parameters())


def test_a_library_without_these_kernels_is_one_less(monkeypatch: pytest.MonkeyPatch) -> None:
    older = library.Library(ctypes.CDLL(None), "avx2", "avx2")
    monkeypatch.setattr(training, "kernels", lambda: older)
    assert training_kernels() is None


def test_hooks_are_called_on_layers_that_could_be_joined() -> None:
    block = Block(LLAMA, 0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    keep_working_copies(block, BF16)
    seen: list[str] = []
    for name in ("self_attn.q_proj", "mlp.gate_proj"):
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    block.mlp.up_proj.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = _random(1, 3, LLAMA.hidden_size, dtype=torch.float32)
    block(x, BF16, Rope(LLAMA)(torch.arange(3)[None]), CausalMask(1, 3, None, x.device), None).sum().backward()
    assert seen == ["self_attn.q_proj", "mlp.gate_proj", "backward"]


def _graph(tensor: Tensor) -> Iterator[tuple[Any, int]]:
    """Every node of the graph that made a tensor."""
    found, waiting = set(), [(tensor.grad_fn, 0)]
    while waiting:
        node = waiting.pop()
        if node[0] is not None and node[0] not in found:
            found.add(node[0])
            waiting += node[0].next_functions
            yield node


def test_what_is_no_number_stays_none() -> None:
    """The guards look for it in the loss and in the gradient."""
    hidden, weight = _random(20, 32), _random(96, 32, seed=1, dtype=torch.float32)
    poisoned = weight.detach().clone()
    poisoned[5, 3] = torch.nan
    assert linear_cross_entropy(hidden, poisoned, torch.zeros(20, dtype=torch.int64)).isnan()
    gate, up = _random(2, 16), _random(2, 16, seed=1)
    with torch.no_grad():
        gate[1, 3] = torch.nan
    made = swiglu(gate, up)
    made.sum().backward()
    assert made.isnan().nonzero().tolist() == [[1, 3]]
    assert gate.grad is not None
    assert gate.grad.isnan().any()
    x = torch.zeros(1, 16)
    x[0, 0] = torch.nan
    assert norm_to(x.requires_grad_(), torch.ones(16, requires_grad=True), 1e-5, BF16).isnan().all()
    q = _random(1, 40, 2, 32)
    with torch.no_grad():
        q[0, 7, 1] = torch.nan
    mixed = attention(
        *(one.transpose(1, 2) for one in (q, _random(1, 40, 2, 32), _random(1, 40, 2, 32))),
        CausalMask(1, 40, None, q.device),
    )
    assert mixed[0, 1, 7].isnan().all()
    assert not mixed[0, 0].isnan().any()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def made() -> list[Tensor]:
        x, delta, weight = (
            _random(200, 64, dtype=torch.float32),
            _random(200, 64, seed=1),
            _random(64, seed=2, dtype=torch.float32),
        )
        total, normed = add_norm(x, delta, weight, 1e-5, BF16)
        head = _random(96, 64, seed=3, dtype=torch.float32)
        loss = linear_cross_entropy(normed, head, torch.arange(200) % 96) + total.sum()
        return [loss.detach(), *torch.autograd.grad(loss, (x, delta, weight))]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = made()
        torch.set_num_threads(3)
        together = made()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[1], together[1])
    assert torch.equal(alone[2], together[2])
    assert torch.equal(alone[3], together[3])


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    gate, up = _random(2, 16), _random(2, 16, seed=1)
    (grad,) = torch.autograd.grad(swiglu(gate, up).float().square().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
