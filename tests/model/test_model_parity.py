"""The decoder computes what `transformers` computes: logits, gradients, packed documents, padded rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import SHAPE, hf_model, our_model, relative
from torch.nn import functional

from liuyi.model.decoder import Decoder

VOCAB = SHAPE["vocab_size"]
CLOSE = 1e-5


def _tokens(batch: int, seq: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def test_logits_are_those_of_transformers(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    tokens = _tokens(3, 29)
    assert relative(ours.logits(ours(tokens)), theirs(tokens).logits) < CLOSE


def test_gradients_are_those_of_transformers(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    tokens, targets = _tokens(3, 29), _tokens(3, 29, seed=2).flatten()
    functional.cross_entropy(ours.logits(ours(tokens)).flatten(0, 1), targets).backward()
    functional.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name].grad) < CLOSE, name


def test_names_are_those_of_transformers(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert ours.config.num_parameters == sum(parameter.numel() for parameter in ours.parameters())


def test_packed_documents_are_as_if_alone(pair: tuple[Decoder, Any]) -> None:
    """Logits of each document, and the summed gradients, equal those of the documents one by one."""
    ours, theirs = pair
    lengths = [[13, 5, 11], [29], [3, 3, 3, 20]]
    tokens, targets = _tokens(3, 29), _tokens(3, 29, seed=2)
    segments = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    logits = ours.logits(ours(tokens, segments=segments))
    functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for row, row_lengths in enumerate(lengths):
        begin = 0
        for length in row_lengths:
            part = slice(begin, begin + length)
            alone = theirs(tokens[row : row + 1, part]).logits[0]
            assert relative(logits[row, part], alone) < CLOSE
            functional.cross_entropy(alone, targets[row, part], reduction="sum").backward()
            begin += length
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name].grad) < CLOSE, name


@pytest.mark.parametrize("apart", [False, True], ids=["padding alone", "padding as a segment"])
def test_padding_on_the_right_changes_nothing(pair: tuple[Decoder, Any], apart: bool) -> None:
    ours, theirs = pair
    tokens, length = _tokens(2, 29), 12 if apart or ours.config.rope_type != "dynamic" else 29
    padded, segments = tokens.clone(), torch.zeros_like(tokens)
    padded[0, length:], segments[0, length:] = 0, 1
    short = ours.logits(ours(padded, segments=segments if apart else None))[0, :length]
    assert relative(short, theirs(tokens[:1, :length]).logits[0]) < CLOSE


@pytest.mark.parametrize("numbers", [[5, 2, 9], [1, 0, 1], [-7, 3, -7]])
def test_segment_numbers_need_no_order_between_neighbours(numbers: list[int]) -> None:
    model = our_model(hf_model("smollm2"))
    tokens = _tokens(1, 24)
    plain = torch.tensor([[0] * 8 + [1] * 8 + [2] * 8])
    other = torch.tensor([[n for n in numbers for _ in range(8)]])
    assert torch.equal(model(tokens, segments=plain), model(tokens, segments=other))


def test_computing_in_bfloat16_keeps_master_weights_and_gradients_in_float32() -> None:
    model = our_model(hf_model("llama2"))
    tokens = _tokens(2, 29)
    exact = model.logits(model(tokens))
    hidden = model(tokens, compute_dtype=torch.bfloat16)
    assert hidden.dtype == torch.bfloat16
    logits = model.logits(hidden)
    assert 0 < relative(logits.float(), exact) < 0.05
    logits.float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
