"""Mixtures of experts compute what `transformers` computes, in its own folders, and learn evenly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, relative
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.gguf_config import config_metadata
from liuyi.model.moe import Routing, balance_loss
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.lm import CausalLM

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40},
    ),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
}


@pytest.fixture(params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, Any]:
    """Our decoder, read from the folder that `transformers` wrote, and its model."""
    import transformers

    family, own = MODELS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, "initializer_range": 0.1, **own})
    config._attn_implementation = "eager"
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    return load_model(tmp_path / "theirs"), theirs


def tokens(batch: int, seq: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(SHAPE["vocab_size"], (batch, seq), generator=torch.Generator().manual_seed(seed))


def test_logits_and_balance_are_those_of_transformers(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    given = tokens(3, 29)
    logits = ours.logits(ours(given))
    expected = theirs(given, output_router_logits=True)
    assert relative(logits, expected.logits) < 1e-5
    balance = ours.balance_loss()
    assert balance is not None
    assert balance.item() == pytest.approx(theirs.config.router_aux_loss_coef * expected.aux_loss.item(), rel=1e-5)
    assert ours.config.num_parameters == sum(p.numel() for p in theirs.parameters())


def test_gradients_are_those_of_transformers(pair: tuple[Decoder, Any]) -> None:
    """Of the loss with the balancing term, which `transformers` adds when it is asked for router logits."""
    ours, theirs = pair
    given, targets = tokens(3, 29), tokens(3, 29, seed=2)
    zeros = torch.zeros_like(given)
    batch = Batch(given, targets, zeros, torch.arange(29).expand(3, -1))
    loss = CausalLM()(ours, batch)
    (loss.total / loss.count).backward()
    out = theirs(given, output_router_logits=True)
    plain = functional.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
    (plain + theirs.config.router_aux_loss_coef * out.aux_loss).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert relative(gradient(parameter), _theirs(name, expected)) < 1e-5, name


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zero for an expert that no token went to."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _theirs(name: str, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """A gradient by our name: `transformers` keeps all experts of a layer in one tensor, gate above up."""
    if ".experts." not in name:
        return gradients[name]
    layer, _, rest = name.partition(".experts.")
    expert, projection, _ = rest.split(".")
    if projection == "down_proj":
        return gradients[f"{layer}.experts.down_proj"][int(expert)]
    gate, up = gradients[f"{layer}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


def test_packed_documents_are_as_if_alone(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    given = tokens(1, 24)
    logits = ours.logits(ours(given, segments=torch.tensor([[0] * 10 + [1] * 14])))
    for part in (slice(0, 10), slice(10, 24)):
        assert relative(logits[:, part], theirs(given[:, part]).logits) < 1e-5


def test_transformers_reads_what_is_written(pair: tuple[Decoder, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours, theirs = pair
    save_model(tmp_path / "ours", ours)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    given = tokens(2, 20)
    assert relative(again(given).logits, theirs(given).logits) < 1e-6
    assert load_model(tmp_path / "ours").config == ours.config


def test_an_even_load_has_the_lowest_balance_loss() -> None:
    even = Routing(torch.full((8,), 2 / 8), torch.full((8,), 1 / 8))
    odd = Routing(torch.tensor([1.0, 1.0] + [0.0] * 6), torch.tensor([0.4, 0.4] + [0.2 / 6] * 6))
    assert balance_loss([even, even]).item() == pytest.approx(2.0)
    assert balance_loss([odd]).item() == pytest.approx(8 * 0.8)


def test_the_balancing_term_evens_the_load() -> None:
    """Its gradient alone takes a router that prefers two of eight experts to one that prefers none."""
    config = DecoderConfig(
        "qwen3_moe", 32, 16, 32, 1, 2, 1, 8, qk_norm=True, num_experts=8, moe_intermediate_size=16,
        router_aux_loss_coef=1.0,
    )  # fmt: skip
    model = Decoder(config)
    init_weights(model, 1)
    router = model.model.layers[0].mlp.gate
    with torch.no_grad():
        router.weight[:2] *= 100
    optimiser = torch.optim.Adam(router.parameters(), lr=0.02)
    balances = []
    for _ in range(150):
        model(torch.arange(32)[None])
        balance = model.balance_loss()
        assert balance is not None
        balance.backward()
        optimiser.step()
        optimiser.zero_grad()
        balances.append(balance.item())
    assert balances[0] > 2.5
    assert sum(balances[-20:]) / 20 < 2.1, balances[-5:]


def test_batches_without_targets_have_no_balance_to_learn() -> None:
    config = DecoderConfig(
        "qwen3_moe", 32, 16, 32, 1, 2, 1, 8, qk_norm=True, num_experts=4, moe_intermediate_size=8
    )  # fmt: skip
    model = Decoder(config)
    init_weights(model, 1)
    given = torch.zeros(1, 4, dtype=torch.int64)
    batch = Batch(given, torch.full_like(given, IGNORE), given, torch.arange(4)[None])
    loss = CausalLM()(model, batch)
    assert (loss.count, loss.total.item()) == (0, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts": 0}, "a qwen3_moe model has experts"),
        ({"num_experts_per_tok": 9}, "9 of 4 experts of size 8 cannot be chosen"),
        ({"family": "qwen3"}, "a qwen3 model has no experts"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, Any], said: str) -> None:
    fields = {"family": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8, **change}
    shape = {name: SHAPE[name] for name in list(SHAPE)[:6]}
    with pytest.raises(ModelError, match=said):
        DecoderConfig(**{**shape, "head_dim": 8, **fields})


def test_what_experts_cannot_do_is_said(pair: tuple[Decoder, Any]) -> None:
    ours, _ = pair
    with pytest.raises(ModelError, match="not written as GGUF"):
        config_metadata(ours.config)


def test_a_model_that_learns_can_be_copied(pair: tuple[Decoder, Any]) -> None:
    ours, _ = pair
    ours(tokens(1, 8))
    assert ours.balance_loss() is not None
    again = copy.deepcopy(ours)
    assert again.balance_loss() is None
    assert torch.equal(again(tokens(1, 8)), ours(tokens(1, 8)))
