"""fp8 training, emulated: against rounding by hand, against bfloat16, and what is left of it afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, Linear, init_weights
from liuyi.train.batches import ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.float8 import float8
from liuyi.train.schedule import make_schedule
from liuyi.train.world import Layout, World

pytest.importorskip("torchao")
CPU = torch.device("cpu")


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Scaled so that the largest value is the format's largest, rounded, and scaled back."""
    scale = torch.finfo(dtype).max / values.abs().max()
    return (values * scale).to(dtype).to(values.dtype) / scale


def fp8_model() -> Decoder:
    model = tiny_model(hidden_size=32)
    float8(model, CPU, emulate=True)
    return model


def test_products_are_those_of_operands_rounded_by_hand() -> None:
    torch.manual_seed(0)
    linear = fp8_model().model.layers[0].mlp.up_proj
    x = torch.randn(3, 7, 32, requires_grad=True)
    grad = torch.randn(3, 7, 32)
    y = linear(x)
    y.backward(grad)
    rows, grads = x.detach().view(-1, 32), grad.view(-1, 32)
    x8, w8 = rounded(rows, torch.float8_e4m3fn), rounded(linear.weight.detach(), torch.float8_e4m3fn)
    grad8 = rounded(grads, torch.float8_e5m2)
    torch.testing.assert_close(y.detach().view(-1, 32), x8 @ w8.T)
    torch.testing.assert_close(x.grad.view(-1, 32), grad8 @ w8)
    torch.testing.assert_close(linear.weight.grad, grad8.T @ x8)
    # Eight bits make a difference, so the above shows more than that it multiplies.
    assert not torch.allclose(y.detach().view(-1, 32), rows @ linear.weight.T, rtol=1e-3)


def sparse_config() -> DecoderConfig:
    return DecoderConfig(
        family="qwen3_moe",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        qk_norm=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def test_only_linear_maps_of_the_layers_that_fit_are_touched() -> None:
    model = Decoder(sparse_config())
    float8(model, CPU, emulate=True)
    touched = {name for name, module in model.named_modules() if "forward" in vars(module)}
    linear = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    left = {"lm_head", *(f"model.layers.0.{name}" for name in ("mlp.gate", "self_attn.k_proj", "self_attn.v_proj"))}
    assert touched == linear - left


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    """Two tokens, an expert for each: fourteen of the sixteen have none."""
    model = Decoder(replace(sparse_config(), num_experts_per_tok=1))
    init_weights(model, 1)
    float8(model, CPU, emulate=True)
    model(torch.tensor([[3, 5]]), compute_dtype=torch.bfloat16).float().square().sum().backward()
    grads = [expert.up_proj.weight.grad for expert in model.model.layers[0].mlp.experts]
    assert 1 <= sum(bool(grad.any()) for grad in grads) <= 2


def train(model: Decoder, folder: Path) -> list[float]:
    """The losses of a short run in bfloat16."""
    stream = TokenStream(write_tokens(folder / "tokens", random_documents(60)))
    Trainer(
        model,
        ShuffledBatches(TokenRows(stream, 32), batch_rows=8, seed=1),
        CausalLM(torch.bfloat16),
        Optimiser(model, OptimiserConfig("adamw", lr=0.01)),
        make_schedule("constant", steps=40),
        config=LoopConfig(steps=40, checkpoint_every_s=1000, verify_every=10),
        workdir=folder,
        observer=Listener(),
    ).run()
    return [json.loads(line)["loss"] for line in (folder / LOG_FILE).read_text().splitlines()]


def test_it_learns_as_bfloat16_does_and_leaves_a_plain_model(tmp_path: Path) -> None:
    plain, model = tiny_model(hidden_size=32), fp8_model()
    kinds = {name: (value.shape, value.dtype) for name, value in plain.state_dict().items()}
    exact, eight = train(plain, tmp_path / "plain"), train(model, tmp_path / "fp8")
    assert eight != exact
    assert exact[-1] < exact[0] - 0.5
    assert eight == pytest.approx(exact, rel=0.05)
    assert {name: (value.shape, value.dtype) for name, value in model.state_dict().items()} == kinds
    fresh = tiny_model(hidden_size=32)
    fresh.load_state_dict(model.state_dict())


def test_it_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(hidden_size=32)
    with pytest.raises(ModelError, match=r"fp8 needs a GPU of compute capability 8.9 or later, this is a CPU"):
        float8(model, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ModelError, match="this is NVIDIA A100"):
        float8(model, torch.device("cuda"))
    with pytest.raises(ModelError, match="multiples of 16"):
        float8(Decoder(DecoderConfig(**NARROW)), CPU, emulate=True)
    with pytest.raises(ModelError, match="this is a CPU"):
        parallelize(model, World(), fp8=True)
    with pytest.raises(ModelError, match="do not go together"):
        parallelize(model, World(Layout(tensor=2)), fp8=True)
    assert not any("forward" in vars(module) for module in model.modules())


NARROW = {
    "family": "llama",
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_what_is_emulated() -> None:
    device = torch.device("cuda")
    real, emulated = (tiny_model(hidden_size=64).to(device) for _ in range(2))
    init_weights(real, 3)
    emulated.load_state_dict(real.state_dict())
    float8(real, device)
    float8(emulated, device, emulate=True)
    tokens = torch.randint(0, 64, (2, 40), device=device)
    for model in (real, emulated):
        model(tokens, compute_dtype=torch.bfloat16).float().square().sum().backward()
    for one, other in zip(real.parameters(), emulated.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() < 0.05 * other.grad.norm()
