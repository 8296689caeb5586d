"""Compiled layers: the same model, to rounding."""

from __future__ import annotations

import copy

import torch
from torch._dynamo.utils import counters
from train_support import VOCAB, packed_batch

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.train.lm import CausalLM
from liuyi.train.parallel.compile import compile_layers
from liuyi.train.parallel.recompute import checkpoint_activations


def test_gradients_are_those_of_the_plain_layers_and_layers_share_what_is_compiled() -> None:
    config = DecoderConfig(
        family="qwen3",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=9,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        qk_norm=True,
    )
    plain = Decoder(config)
    init_weights(plain, seed=1, std=0.2)
    compiled = copy.deepcopy(plain)
    checkpoint_activations(compiled, "mlp")
    # The same graphs, which PyTorch's own operations run: to generate code for them takes long.
    compile_layers(compiled, backend="aot_eager")
    counters.clear()
    batch = packed_batch(2, 48)
    losses = [CausalLM()(model, batch).total for model in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for (name, found), (_, expected) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert (found.grad - expected.grad).norm() < 1e-4 * expected.grad.norm(), name
    assert 0 < counters["stats"]["unique_graphs"] < config.num_hidden_layers
