"""The fast pieces equal their references, in value and in gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from liuyi.model.attention import CausalMask, attention, attention_reference, tiled_attention
from liuyi.model.fused import rms_norm, rms_norm_reference, rotate, rotate_reference


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def _both(fast: Any, reference: Any, *inputs: Tensor) -> None:
    """Same values and same gradients, for a random direction."""
    ours, theirs = fast(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, direction), torch.autograd.grad(theirs, wanted, direction), strict=True
    ):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=5e-5)
    with torch.no_grad():
        assert torch.equal(fast(*inputs), ours)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6, 8)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    _both(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: rms_norm_reference(x, w, 1e-5),
        _random(*shape),
        _random(shape[-1]),
    )


def test_rms_norm_of_views_zeros_and_its_finite_differences() -> None:
    x, weight = _random(3, 8, 6).transpose(1, 2), _random(8)
    _both(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), x, weight)
    zeros = torch.zeros(2, 8, requires_grad=True)
    _both(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), zeros, weight)
    wide = [_random(4, 6, dtype=torch.float64), _random(6, dtype=torch.float64)]
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-5), wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_16_bits_are_scaled_by_what_is_rounded_once(dtype: torch.dtype) -> None:
    """What a row is scaled by is within half a step of its number format of what it should be."""
    sizes = torch.linspace(0.5, 8, 300)[:, None]
    x = (_random(300, 512).detach() * sizes).to(dtype)
    exact = rms_norm_reference(x.double(), torch.ones(512, dtype=torch.float64), 1e-5)
    with torch.no_grad():
        normed = rms_norm(x, torch.ones(512, dtype=dtype), 1e-5).double()
    # Numbers of the row are rounded too, up as often as down.
    off = ((normed * exact).sum(dim=1) / exact.square().sum(dim=1) - 1).abs()
    assert off.max() < torch.finfo(dtype).eps / 2 * 1.1


@pytest.mark.parametrize("rows", [1, 2])
def test_rotation(rows: int) -> None:
    angles = torch.rand(rows, 9, 1, 4) * 6
    x = _random(2, 9, 3, 8)
    _both(lambda x: rotate(x, angles.cos(), angles.sin()), lambda x: rotate_reference(x, angles.cos(), angles.sin()), x)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("seq", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("window", [None, 1, 9, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_tiled_attention(heads: int, kv_heads: int, seq: int, window: int | None, packed: bool) -> None:
    generator = torch.Generator().manual_seed(seq)
    segments = (torch.rand(3, seq, generator=generator) < 0.05).cumsum(dim=1) if packed else None
    mask = CausalMask(3, seq, segments, torch.device("cpu"))
    q, k, v = (_random(3, seq, n, 8, seed=n).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
    visible = mask.visible(window)
    _both(
        lambda q, k, v: tiled_attention(q, k, v, mask, window), lambda *qkv: attention_reference(*qkv, visible), q, k, v
    )
    _both(lambda q, k, v: attention(q, k, v, mask, window), lambda *qkv: attention_reference(*qkv, visible), q, k, v)


@pytest.mark.parametrize("queries", [1, 30, 65, 130])
@pytest.mark.parametrize("window", [None, 9, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_queries_of_the_last_tokens_only(queries: int, window: int | None, packed: bool) -> None:
    segments = (torch.arange(130) // 40).expand(2, -1) if packed else None
    whole = CausalMask(2, 130, segments, torch.device("cpu")).visible(window)
    mask = CausalMask(2, 130, segments, torch.device("cpu"), queries)
    assert torch.equal(mask.visible(window), whole[:, -queries:])
    q = _random(2, queries, 6, 8, seed=1).transpose(1, 2)
    k, v = (_random(2, 130, 2, 8, seed=seed).transpose(1, 2) for seed in (2, 3))
    _both(
        lambda q, k, v: attention(q, k, v, mask, window),
        lambda *qkv: attention_reference(*qkv, whole[:, -queries:]),
        q,
        k,
        v,
    )


def test_the_mask_is_its_definition() -> None:
    segments = torch.tensor([[4, 4, 4, 1, 1, 4, 4]])
    visible = CausalMask(1, 7, segments, torch.device("cpu")).visible(2)[0]
    begins = [0, 0, 0, 3, 3, 5, 5]
    for query in range(7):
        for key in range(7):
            assert bool(visible[query, key]) == (begins[query] <= key <= query and query - key < 2)


def test_tiles_cover_what_is_visible_once_and_skip_what_is_not() -> None:
    segments = torch.arange(4)[:, None] + torch.arange(512) // 64
    mask = CausalMask(4, 512, segments, torch.device("cpu"))
    seen = torch.zeros(4, 512, 512)
    work = 0
    for tile in mask.tiles(None, heads=2):
        seen[tile.rows, tile.queries, tile.keys] += (tile.bias == 0).float()
        work += (tile.rows.stop - tile.rows.start) * tile.bias.shape[1] * tile.bias.shape[2]
    assert torch.equal(seen, mask.visible().float())
    assert work == 4 * 512 * 64


def test_tiled_attention_s_finite_differences() -> None:
    mask = CausalMask(2, 5, torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 2]]), torch.device("cpu"))
    qkv = [_random(2, heads, 5, 4, seed=heads, dtype=torch.float64) for heads in (4, 2, 2)]
    assert gradcheck(lambda q, k, v: tiled_attention(q, k, v, mask), qkv)


def test_tiled_attention_in_bfloat16() -> None:
    mask = CausalMask(2, 70, (torch.arange(70) // 20).expand(2, -1), torch.device("cpu"))
    qkv = [_random(2, heads, 70, 16, seed=heads) for heads in (4, 2, 2)]
    exact = attention_reference(*qkv, mask.visible())
    near = tiled_attention(*(tensor.bfloat16() for tensor in qkv), mask)
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), exact, atol=0.03, rtol=0.05)
    near.sum().backward()
