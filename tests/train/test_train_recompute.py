"""Recomputation: the same gradients from less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from train_support import VOCAB, packed_batch

from liuyi.model.attention import CausalMask
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.lora import LoraConfig, add_lora
from liuyi.train.batches import Batch
from liuyi.train.lm import CausalLM
from liuyi.train.parallel.recompute import checkpoint_activations
from liuyi.train.params import Recompute

SEQ, HIDDEN = 96, 32


def _model(kind: str = "full") -> Decoder:
    config = DecoderConfig(
        family="qwen3_moe" if kind == "experts" else "qwen3",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        qk_norm=True,
        num_experts=4 if kind == "experts" else 0,
        num_experts_per_tok=2 if kind == "experts" else 0,
        moe_intermediate_size=HIDDEN,
    )
    model = Decoder(config)
    init_weights(model, seed=1, std=0.2)
    if kind == "lora":
        add_lora(model, LoraConfig(rank=4, dora=True), seed=2)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return model


def _gradients(model: Decoder, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    CausalLM(dtype)(model, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("what", ["mlp", "layer"])
@pytest.mark.parametrize("kind", ["full", "lora", "experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bits(what: Recompute, kind: str, dtype: torch.dtype) -> None:
    batch = packed_batch(rows=2, seq=SEQ)
    expected = _gradients(_model(kind), batch, dtype)
    model = _model(kind)
    checkpoint_activations(model, what)
    found = _gradients(model, batch, dtype)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _saved_bytes_of_layers(what: Recompute) -> int:
    """Storage that the layers keep for the gradient, but for parameters and for what they are given."""
    model, batch = _model(), packed_batch(rows=2, seq=SEQ)
    checkpoint_activations(model, what)
    hidden = model.model.embed_tokens(batch.tokens)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        # Held, so that no other tensor is given its address.
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    rope = model.rope(batch.positions)
    known |= {part.untyped_storage().data_ptr() for part in rope}
    mask = CausalMask(*batch.tokens.shape, batch.segments, batch.tokens.device)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        for layer in model.model.layers:
            hidden = layer(hidden, torch.float32, rope, mask, None)
    return sum(storages.values())


def test_less_is_kept() -> None:
    stream = 2 * SEQ * HIDDEN * 4
    nothing, mlp, layer = (_saved_bytes_of_layers(what) for what in ("none", "mlp", "layer"))
    # One stream of hidden states into each of three layers, and no more.
    assert layer == 3 * stream
    # An MLP would keep two products at least, three times as wide as its input.
    assert mlp <= nothing - 3 * 2 * 3 * stream


@pytest.mark.parametrize(("what", "times"), [("mlp", 7 / 6), ("layer", 5 / 4)])
def test_what_is_computed_again(what: Recompute, times: float) -> None:
    """Matrix products of the layers: an MLP has three quarters of them here, and its last is not needed again."""

    def products(what: Recompute) -> int:
        model = _model()
        checkpoint_activations(model, what)
        with FlopCounterMode(display=False) as counted:
            model(packed_batch(rows=1, seq=SEQ).tokens).sum().backward()
        return counted.get_total_flops()

    assert products(what) == pytest.approx(times * products("none"), rel=0.01)


def test_a_copy_recomputes_itself_and_names_stay() -> None:
    model = _model()
    names = [name for name, _ in model.named_parameters()]
    checkpoint_activations(model, "layer")
    assert [name for name, _ in model.named_parameters()] == names
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    batch = packed_batch(rows=1, seq=SEQ)
    expected = _gradients(_model(), batch, torch.float32)
    assert all(torch.equal(grad, expected[name]) for name, grad in _gradients(other, batch, torch.float32).items())


def test_looking_at_the_model_computes_once() -> None:
    model, batch = _model(), packed_batch(rows=1, seq=SEQ)
    checkpoint_activations(model, "layer")
    with torch.no_grad():
        assert torch.equal(model(batch.tokens), _model()(batch.tokens))
