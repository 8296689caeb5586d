"""Optimisers and schedules against torch's own and against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from liuyi.model.working import in_dtype, keep_working_copies
from liuyi.train.optim import Muon, Optimiser, OptimiserConfig, orthogonalise
from liuyi.train.schedule import make_schedule


def test_muon_is_torchs_muon() -> None:
    """Against `torch.optim.Muon`, which computes in bfloat16: equal in direction, near in size."""
    torch.manual_seed(0)
    shapes = [(24, 48), (48, 24), (32, 32), (24, 48)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    starts = [p.detach().clone() for p in ours]
    mine = Muon(ours, lr=0.02, weight_decay=0.1, momentum=0.9)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        torchs.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        moved, expected = (one - start).flatten(), (other - start).flatten()
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.999
        assert (moved.norm() / expected.norm() - 1).abs() < 0.02


def test_orthogonalise_flattens_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 50)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    aligned = (result * (u @ vh)).sum(dim=(1, 2)) / result.norm(dim=(1, 2)) / (u @ vh).norm(dim=(1, 2))
    assert aligned.min() > 0.97


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 6)
        self.proj = nn.Linear(6, 4)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def test_adamw_follows_its_formula_with_a_rate_and_a_decay_for_each_group() -> None:
    torch.manual_seed(0)
    net = Net()
    config = OptimiserConfig(
        "adamw",
        lr=0.01,
        embed_lr=0.03,
        scalar_lr=0.02,
        weight_decay=0.1,
        embed_weight_decay=0.3,
        norm_weight_decay=0.7,
        betas=(0.9, 0.95),
    )
    optimiser = Optimiser(net, config)
    assert "frozen.weight" not in optimiser.parameters
    rates = {"embed_tokens.weight": (0.03, 0.3), "proj.weight": (0.01, 0.1), "proj.bias": (0.02, 0.7)}
    expected = {name: net.get_parameter(name).detach().clone() for name in rates}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step, factor in enumerate([0.5, 1.0, 0.25], start=1):
        for name, (lr, decay) in rates.items():
            grad = torch.randn_like(expected[name])
            net.get_parameter(name).grad = grad.clone()
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.95 * second[name] + 0.05 * grad**2
            expected[name] *= 1 - factor * lr * decay
            away = (second[name] / (1 - 0.95**step)).sqrt() + 1e-8
            expected[name] -= factor * lr * first[name] / (1 - 0.9**step) / away
        optimiser.step(factor)
    for name, value in expected.items():
        torch.testing.assert_close(net.get_parameter(name).detach(), value)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_group_decays_by_its_own_share_and_by_nothing_else(name: str) -> None:
    """Without a gradient to follow, a step leaves `1 - lr * decay` of the weights: 0 is the default but of matrices."""
    net = Net()
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    optimiser = Optimiser(net, OptimiserConfig(name, lr=0.5, embed_lr=0.25, weight_decay=0.5, norm_weight_decay=0.125))
    for parameter in optimiser.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(0.5)
    left = {"proj.weight": 1 - 0.25 * 0.5, "proj.bias": 1 - 0.25 * 0.125}
    for key, value in net.named_parameters():
        assert torch.equal(value, before[key] * left.get(key, 1.0)), key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_round_trip_is_exact(name: str) -> None:
    def stepped(split: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        net = Net()
        optimiser = Optimiser(net, OptimiserConfig(name, lr=0.05))
        for step in range(6):
            if split and step == 3:
                state = {key: value.clone() for key, value in optimiser.state().items()}
                optimiser = Optimiser(net, OptimiserConfig(name, lr=0.05))
                optimiser.load_state(state.items())
            for parameter in optimiser.parameters.values():
                parameter.grad = torch.randn_like(parameter)
            optimiser.step(1 / (step + 1))
        return [parameter.detach() for parameter in net.parameters()]

    for one, other in zip(stepped(True), stepped(False), strict=True):
        assert torch.equal(one, other)


def test_schedules() -> None:
    wsd = make_schedule("wsd", steps=100, warmup_steps=10, decay_steps=20)
    assert [wsd(0), wsd(9), wsd(10), wsd(79), wsd(80)] == pytest.approx([1 / 11, 10 / 11, 1, 1, 1])
    assert [wsd(90), wsd(99)] == pytest.approx([0.5, 0.05])
    cosine = make_schedule("cosine", steps=110, warmup_steps=10, floor=0.1)
    for step in (10, 35, 60, 109):
        assert cosine(step) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)))
    linear = make_schedule("linear", steps=60, warmup_steps=10)
    assert [linear(10), linear(35), linear(59)] == pytest.approx([1.0, 0.5, 0.02])
    assert make_schedule("constant", steps=5)(4) == 1.0


def test_schedules_whose_warm_up_and_fall_meet_or_fill_the_run() -> None:
    """A fall longer than what the warm-up leaves starts below the peak; a run within its warm-up keeps one step."""
    wsd = make_schedule("wsd", steps=10, warmup_steps=5, decay_steps=8, floor=0.5)
    assert [wsd(step) for step in (0, 4, 5, 9)] == pytest.approx([1 / 6, 5 / 6, 0.5 + 0.5 * 5 / 8, 0.5 + 0.5 / 8])
    for name in ("wsd", "cosine", "linear", "constant"):
        short = make_schedule(name, steps=4, warmup_steps=9)
        assert [short(step) for step in range(3)] == pytest.approx([0.25, 0.5, 0.75])
        assert short(3) > 0
    assert make_schedule("wsd", steps=10)(8) == pytest.approx(1.0)
    assert make_schedule("wsd", steps=10)(9) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear", "constant"])
def test_short_runs_still_learn(name: str) -> None:
    """Every step of a run of one or two steps has a learning rate above zero."""
    for steps in (1, 2):
        factor = make_schedule(name, steps=steps, warmup_steps=5)
        assert all(factor(step) > 0 for step in range(steps))


def test_a_value_head_has_a_rate_of_its_own() -> None:
    """It is not that of the embeddings, which a reward model has too."""
    net = Net()
    net.score = nn.Linear(4, 1, bias=False)
    optimiser = Optimiser(net, OptimiserConfig("adamw", lr=0.01, score_lr=0.2))
    rates = {
        parameter: group["lr"]
        for each in optimiser.optimisers
        for group in each.param_groups
        for parameter in group["params"]
    }
    assert (rates[net.score.weight], rates[net.embed_tokens.weight], rates[net.proj.weight]) == (0.2, 0.01, 0.01)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("native", [True, False])
def test_copies_to_multiply_with_follow_the_weights(name: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they were stepped: PyTorch's fused step does not count its writes by itself."""
    if not native:
        monkeypatch.setattr("liuyi.train.one_pass.training_kernels", lambda: None)
    net = Net()
    keep_working_copies(net, torch.bfloat16)
    optimiser = Optimiser(net, OptimiserConfig(name, lr=0.1))  # type: ignore[arg-type]
    for _ in range(2):
        for parameter in net.parameters():
            in_dtype(parameter, torch.bfloat16)
            parameter.grad = torch.ones_like(parameter)
        optimiser.step(1.0)
        for parameter in net.parameters():
            assert torch.equal(in_dtype(parameter, torch.bfloat16), parameter.to(torch.bfloat16))
