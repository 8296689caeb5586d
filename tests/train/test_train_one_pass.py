"""AdamW in one pass is PyTorch's AdamW, sums up what it reads and writes, and keeps the working copies fresh."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_support import Listener

from liuyi.kernels.training import training_kernels
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.loss import linear_cross_entropy
from liuyi.model.working import in_dtype, keep_working_copies, rows, working_copy
from liuyi.train.batches import Batch
from liuyi.train.corruption import checksum
from liuyi.train.interfaces import LoopConfig, Loss
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.one_pass import OnePassAdamW
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example, lay_out
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gradients import gradient_norm
from liuyi.train.schedule import make_schedule
from liuyi.train.world import World

needs_kernels = pytest.mark.skipif(training_kernels() is None, reason="no native kernels for training here")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 50)
        self.odd = nn.Linear(5, 3)


def _gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@needs_kernels
def test_reserved_state_is_none_until_a_step_and_begins_at_zero_whatever_lay_there() -> None:
    found = []
    for reserved in (True, False):
        torch.manual_seed(0)
        net = Net()
        one_pass = OnePassAdamW(net.parameters(), lr=0.02, fused=True)
        if reserved:
            one_pass.reserve_state()
            for state in one_pass._reserved.values():
                state["exp_avg"].fill_(math.nan)
                state["exp_avg_sq"].fill_(math.nan)
            assert len(one_pass._reserved) == 1
            assert not one_pass.state
        for step in range(2):
            _gradients(net, step)
            one_pass.step_natively(1.0)
            one_pass.step()
            one_pass.reserve_state()
        assert not one_pass._reserved
        found.append([*net.parameters(), *(tensor for state in one_pass.state.values() for tensor in state.values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_kernels
def test_it_steps_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = Net()
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    one_pass = OnePassAdamW(ours.parameters(), fused=True, **settings)
    torch_s = torch.optim.AdamW(theirs.parameters(), **settings)
    for step in range(5):
        _gradients(ours, step)
        _gradients(theirs, step)
        for parameter in theirs.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.25)
        _, stepped = one_pass.step_natively(0.25)
        assert {id(ours.first.weight)} <= stepped
        assert ours.first.weight.grad is None
        assert id(ours.odd.weight) not in stepped  # 15 numbers make no whole vector
        for parameter in (ours.first.bias, ours.odd.weight, ours.odd.bias):
            assert parameter.grad is not None
            parameter.grad.mul_(0.25)
        one_pass.step()
        torch_s.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-6, atol=1e-7)
        for entry in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one_pass.state[mine][entry], torch_s.state[other][entry], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_checksums_are_those_of_the_tensors(name: str) -> None:
    net = Net()
    optimiser = Optimiser(net, OptimiserConfig(name, lr=0.01))
    for step in range(3):
        before = checksum(optimiser.tensors())
        _gradients(net, step)
        assert optimiser.step(1.0, 0.5) == (before, checksum(optimiser.tensors()))


def test_a_flipped_bit_shows_in_the_sum_before() -> None:
    net = Net()
    optimiser = Optimiser(net, OptimiserConfig("adamw", lr=0.01))
    _gradients(net, 0)
    _, after = optimiser.step(1.0)
    moment: Tensor = optimiser.state()["first.weight:exp_avg_sq"]
    moment.view(torch.int32).view(-1)[77] ^= 1 << 9
    _gradients(net, 1)
    before, _ = optimiser.step(1.0)
    assert before != after


def test_the_working_copy_is_the_rounded_weight_whoever_changed_it() -> None:
    net = Net()
    keep_working_copies(net, torch.bfloat16)
    weight = net.first.weight
    assert working_copy(net.first.bias) is None
    optimiser = Optimiser(net, OptimiserConfig("adamw", lr=0.3))
    for step in range(3):
        _gradients(net, step)
        optimiser.step(1.0)
        assert torch.equal(in_dtype(weight, torch.bfloat16), weight.bfloat16())
    with torch.no_grad():
        weight.copy_(torch.full_like(weight, 1e-40))  # as a checkpoint does; no normal number
    assert torch.equal(in_dtype(weight, torch.bfloat16), weight.bfloat16())
    assert in_dtype(weight, torch.float32) is weight
    weight.data = torch.ones_like(weight)
    assert torch.equal(in_dtype(weight, torch.bfloat16), weight.bfloat16())


@needs_kernels
def test_numbers_too_small_to_be_normal_are_rounded_as_torch_rounds_them() -> None:
    """Or a resumed run, whose copies torch makes, would differ from an undisturbed one."""
    net = Net()
    keep_working_copies(net, torch.bfloat16)
    with torch.no_grad():
        net.first.weight.fill_(1.1e-39)
    optimiser = Optimiser(net, OptimiserConfig("adamw", lr=1e-42))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(1.0)
    assert torch.equal(in_dtype(net.first.weight, torch.bfloat16), net.first.weight.bfloat16())


def test_gradients_go_to_the_weight_and_not_to_its_copy() -> None:
    net = Net()
    keep_working_copies(net, torch.bfloat16)
    x = torch.randn(4, 32).bfloat16()
    nn.functional.linear(x, in_dtype(net.first.weight, torch.bfloat16)).sum().backward()
    expected = x.float().sum(0).expand(50, 32)
    assert net.first.weight.grad is not None
    assert net.first.weight.grad.dtype == torch.float32
    torch.testing.assert_close(net.first.weight.grad, expected, rtol=0.01, atol=0.01)


TINY = DecoderConfig(
    family="llama",
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
)


@dataclass(frozen=True)
class Watched(CausalLM):
    """Notes the dtypes of all gradients that a step ends with."""

    uses_weights_once: ClassVar[bool]
    seen: set[torch.dtype] = field(default_factory=set)

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: self.seen.add(p.grad.dtype))
        return loss


class Once(Watched):
    uses_weights_once = True


class Often(Watched):
    uses_weights_once = False


@needs_kernels
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_kept_as_made_lead_to_the_same_bits(tmp_path: Path, micro_batches: int) -> None:
    """A product's bfloat16 gradient loses nothing by staying so, where nothing is added to it."""
    tokens = torch.randint(64, (2, 2, 48), generator=torch.Generator().manual_seed(4)).numpy()

    def batches(index: int) -> list[Batch]:
        return [
            lay_out([[Example(row, np.ones(48, bool))] for row in rows], 48, 0)
            for rows in np.split(tokens[index], micro_batches)
        ]

    def trained(objective: Watched) -> list[Tensor]:
        model = Decoder(TINY)
        init_weights(model, 1)
        parallelize(model, World(), compute_dtype=torch.bfloat16)
        Trainer(
            model,
            batches,
            objective,
            Optimiser(model, OptimiserConfig("adamw", lr=0.01)),
            make_schedule("constant", steps=2),
            config=LoopConfig(2, checkpoint_every_s=3600),
            workdir=tmp_path / type(objective).__name__,
            observer=Listener(),
        ).run()
        return [parameter.detach() for parameter in model.parameters()]

    once, often = Once(torch.bfloat16), Often(torch.bfloat16)
    for kept, widened in zip(trained(once), trained(often), strict=True):
        assert torch.equal(kept, widened)
    assert (torch.bfloat16 in once.seen) is (micro_batches == 1)
    assert often.seen == {torch.float32}


@pytest.mark.parametrize("with_head", [True, False])
def test_rows_of_a_weight_with_a_copy_have_the_gradient_that_torch_gives_them(with_head: bool) -> None:
    """As summand of the head's, and alone."""
    tokens = torch.tensor([[3, 5, 3], [0, 3, 7]])

    def gradient(kept: bool) -> Tensor:
        table = nn.Embedding(9, 32)
        nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(2))
        if kept:
            keep_working_copies(table, torch.bfloat16)
        taken = rows(table.weight, tokens)
        made = taken.bfloat16() @ in_dtype(table.weight, torch.bfloat16).T if with_head else taken
        made.float().square().sum().backward()
        assert table.weight.grad is not None
        return table.weight.grad

    ours, theirs = gradient(kept=True), gradient(kept=False)
    assert ours.layout == torch.strided
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_rows_of_a_tied_head_are_added_into_its_gradient_as_made() -> None:
    """In place, and rounded once."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(48, (1, 40), generator=generator)
    targets = torch.randint(64, (40,), generator=generator)

    def gradient(as_made: bool) -> Tensor:
        table = nn.Embedding(64, 32)
        nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(2))
        keep_working_copies(table, torch.bfloat16)
        if as_made:
            table.weight.grad_dtype = None
        linear_cross_entropy(rows(table.weight, tokens)[0].bfloat16(), table.weight, targets).backward()
        assert table.weight.grad is not None
        return table.weight.grad

    as_made, widened = gradient(as_made=True), gradient(as_made=False)
    assert as_made.dtype == torch.bfloat16
    assert widened.dtype == torch.float32
    assert torch.equal(as_made, widened.bfloat16())


def test_the_norm_is_that_of_all_gradients_in_whatever_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(70, 32, generator=generator), torch.randn(5, 3, generator=generator)]
    grads.append(torch.randn(40_000, 16, generator=generator).bfloat16())
    exact = torch.cat([grad.double().flatten() for grad in grads]).norm()
    assert gradient_norm(grads, World()) == pytest.approx(float(exact), rel=1e-5)
    grads[0][3, 3] = math.nan
    assert math.isnan(gradient_norm(grads, World()))


def test_a_run_in_bfloat16_that_is_cut_ends_in_the_same_bits(tmp_path: Path) -> None:
    """The copies that a resumed run makes are those that the optimiser had written."""
    config = replace(TINY, tie_word_embeddings=True)
    tokens = torch.randint(64, (8, 2, 48), generator=torch.Generator().manual_seed(4)).numpy()

    def batches(index: int) -> list[Batch]:
        return [lay_out([[Example(row, np.ones(48, bool))] for row in rows], 48, 0) for rows in (tokens[index],)]

    def trained(folder: Path, *, until: Sequence[int]) -> list[Tensor]:
        for steps in until:
            model = Decoder(config)
            init_weights(model, 1)
            parallelize(model, World(), compute_dtype=torch.bfloat16)
            Trainer(
                model,
                batches,
                CausalLM(torch.bfloat16),
                Optimiser(model, OptimiserConfig("adamw", lr=0.01)),
                make_schedule("constant", steps=8),
                config=LoopConfig(steps, checkpoint_every_s=3600, verify_every=4),
                workdir=folder,
                observer=Listener(),
            ).run()
        return [parameter.detach() for parameter in model.parameters()]

    for cut, whole in zip(
        trained(tmp_path / "cut", until=(3, 5, 8)), trained(tmp_path / "whole", until=(8,)), strict=True
    ):
        assert torch.equal(cut, whole)
