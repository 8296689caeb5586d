"""AdamW with eight-bit moments, against torchao's own optimiser and against 32 bits."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_runs import whole
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.core.errors import StepError
from liuyi.train.adamw8bit import AdamW8bit, block_size
from liuyi.train.batches import ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.parallel.apply import parallelize
from liuyi.train.schedule import make_schedule
from liuyi.train.world import Layout, World, join
from ranks import run_ranks

torchao = pytest.importorskip("torchao")


@pytest.fixture(autouse=True)
def uncompiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is compiled has the same arithmetic; compiling it takes twenty seconds."""
    if "slow" in request.keywords:
        yield
        return
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in [(80, 64), (20, 768), (64, 30), (64,)]]


def walk(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 5) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()


def test_it_is_torchaos_where_both_have_the_same_blocks() -> None:
    from torchao.optim import AdamW8bit as Torchaos

    ours, theirs = matrices()[:1], matrices()[:1]
    assert block_size(ours[0]) == 64
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    walk(AdamW8bit(ours, **settings), ours)
    walk(Torchaos(theirs, block_size=64, **settings), theirs)
    assert torch.equal(ours[0], theirs[0])


def test_blocks_stay_within_rows_and_small_parameters_keep_32_bits() -> None:
    parameters = matrices()
    assert [block_size(parameter) for parameter in parameters] == [64, 256, 0, 0]
    optimiser = AdamW8bit(parameters)
    walk(optimiser, parameters, steps=1)
    assert optimiser.state[parameters[1]]["exp_avg_scales"].shape == (20, 3)
    assert optimiser.state[parameters[2]]["exp_avg"].dtype == torch.float32
    # Half of a matrix, stepped by itself as another process would, is half of the whole.
    whole = matrices()[1]
    half = nn.Parameter(matrices()[1][:7].detach().clone())
    torch.manual_seed(2)
    whole.grad = torch.randn_like(whole)
    half.grad = whole.grad[:7].clone()
    for parameter in (whole, half):
        AdamW8bit([parameter]).step()
    assert torch.equal(whole[:7], half)


def test_it_goes_where_32_bits_go() -> None:
    ours, exact = matrices(), matrices()
    starts = matrices()
    walk(AdamW8bit(ours, lr=0.01), ours, steps=20)
    walk(torch.optim.AdamW(exact, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0), exact, steps=20)
    for one, other, start in zip(ours, exact, starts, strict=True):
        moved, expected = (one - start).flatten(), (other - start).flatten()
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.99
        assert (moved.norm() / expected.norm() - 1).abs() < 0.05


def test_state_is_plain_a_quarter_the_size_and_goes_through_a_file_exactly(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(256, 128, bias=False)

    def stepped(split: bool) -> tuple[torch.Tensor, Optimiser]:
        torch.manual_seed(3)
        net = Net()
        optimiser = Optimiser(net, OptimiserConfig("adamw8bit", lr=0.05))
        for step in range(6):
            if split and step == 3:
                save_file(optimiser.state(), tmp_path / "state.safetensors")
                optimiser = Optimiser(net, OptimiserConfig("adamw8bit", lr=0.05))
                optimiser.load_state(load_file(tmp_path / "state.safetensors").items())
            net.proj.weight.grad = torch.randn_like(net.proj.weight)
            optimiser.step(1 / (step + 1))
        return net.proj.weight.detach(), optimiser

    (one, _), (other, optimiser) = stepped(True), stepped(False)
    assert torch.equal(one, other)
    assert {type(value) for value in optimiser.state().values()} == {torch.Tensor}
    held = sum(value.nbytes for value in optimiser.state().values())
    assert held < 0.26 * 2 * one.nbytes


def test_a_run_that_is_interrupted_ends_in_the_same_bits(tmp_path: Path) -> None:
    stream = TokenStream(write_tokens(tmp_path / "tokens", random_documents(40), vocab_size=512))

    def run(folder: Path, inject: str = "") -> tuple[list[torch.Tensor], Listener]:
        model, listener = tiny_model(vocab_size=512, hidden_size=32), Listener()
        trainer = Trainer(
            model,
            ShuffledBatches(TokenRows(stream, 32), batch_rows=2, seed=1),
            CausalLM(),
            Optimiser(model, OptimiserConfig("adamw8bit", lr=0.01)),
            make_schedule("constant", steps=12),
            config=LoopConfig(steps=12, checkpoint_every_s=0, verify_every=5, inject=inject),
            workdir=folder,
            observer=listener,
        )
        assert any(name.endswith("_codes") for name in run_to_end(trainer))
        return [parameter.detach() for parameter in model.parameters()], listener

    def run_to_end(trainer: Trainer) -> list[str]:  # type: ignore[type-arg]
        trainer.run()
        return list(trainer.optimiser.state())

    undisturbed, _ = run(tmp_path / "a")
    disturbed, listener = run(tmp_path / "b", inject="flip@7")
    assert any("silent corruption" in line for line in listener.logs)
    assert all(torch.equal(one, other) for one, other in zip(undisturbed, disturbed, strict=True))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "a" / LOG_FILE).read_text().splitlines()]
    assert losses[-1] < losses[0]


def stepped_by_chance(folder: Path, layout: Layout) -> dict[str, np.ndarray]:
    """Weights and state, whole, after three steps by gradients that are the same in every layout."""
    torch.compiler.set_stance("force_eager")
    model = tiny_model(vocab_size=512, hidden_size=32)
    parallelize(model, join(layout) if layout.size > 1 else World())
    optimiser = Optimiser(model, OptimiserConfig("adamw8bit", lr=0.01, weight_decay=0.1))
    torch.manual_seed(4)
    for _ in range(3):
        for parameter in optimiser.parameters.values():
            grad = torch.randn(parameter.shape)
            cut = isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements) if cut else grad
        optimiser.step(1.0)
    torch.compiler.set_stance("default")
    return {
        name: whole(value.detach()).numpy() for name, value in {**optimiser.parameters, **optimiser.state()}.items()
    }


@pytest.mark.slow
def test_a_matrix_that_is_cut_between_processes_takes_the_steps_of_a_whole_one(tmp_path: Path) -> None:
    """To the bit, its state too."""
    alone = stepped_by_chance(tmp_path, Layout())
    assert alone["model.embed_tokens.weight:exp_avg_codes"].dtype == np.uint8
    for together in run_ranks(2, stepped_by_chance, tmp_path, Layout(shard=2)):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name], value, err_msg=name)


def one_row_for_two() -> np.ndarray:
    """A matrix of which the second process has nothing, after two steps."""
    torch.compiler.set_stance("force_eager")
    torch.manual_seed(5)
    mesh = join(Layout(shard=2)).mesh
    assert mesh is not None
    matrix, *grads = [distribute_tensor(torch.randn(1, 8192), mesh["shard"], [Shard(0)]) for _ in range(3)]
    parameter = nn.Parameter(matrix)
    optimiser = AdamW8bit([parameter], lr=0.01)
    for grad in grads:
        parameter.grad = grad
        optimiser.step()
    return whole(parameter.detach()).numpy()


@pytest.mark.slow
def test_a_process_that_has_no_row_of_a_matrix_steps_too() -> None:
    torch.manual_seed(5)
    matrix, *grads = [torch.randn(1, 8192) for _ in range(3)]
    parameter = nn.Parameter(matrix)
    optimiser = AdamW8bit([parameter], lr=0.01)
    for grad in grads:
        parameter.grad = grad
        optimiser.step()
    for stepped in run_ranks(2, one_row_for_two):
        # A process that has compiled steps of other shapes before may round one in the last place otherwise.
        np.testing.assert_allclose(stepped, parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(StepError, match=r"adamw8bit needs torchao\n.*pip install 'liuyi\[torchao\]'"):
        AdamW8bit(matrices())


@pytest.mark.slow
def test_compiled_it_takes_the_same_steps() -> None:
    ours, exact = matrices()[:1], matrices()[:1]
    walk(AdamW8bit(ours, lr=0.01), ours)
    torch.compiler.set_stance("force_eager")
    walk(AdamW8bit(exact, lr=0.01), exact)
    torch.compiler.set_stance("default")
    # A value that falls between two codes may be rounded to the other one.
    assert (ours[0] - exact[0]).abs().max() < 5e-3
    assert (ours[0] - exact[0]).abs().mean() < 1e-6
