"""Layers divided over ranks: logits, gradients and a curve of losses as one process has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parallel_models import SHAPES, Outcome, assert_same, divisible_model, outcome
from torch.distributed.tensor import DTensor
from train_support import packed_batch

from liuyi.core.errors import ModelError
from liuyi.model.lora import LoraConfig, add_lora
from liuyi.model.loss import linear_cross_entropy
from liuyi.train.batches import IGNORE
from liuyi.train.parallel import head
from liuyi.train.parallel.head import cross_entropy_over
from liuyi.train.parallel.recompute import checkpoint_activations
from liuyi.train.parallel.tensor import check_divisible, divide_layers
from liuyi.train.world import Layout, join
from ranks import run_ranks


def divided(ranks: int, shapes: list[str]) -> dict[str, tuple[Outcome, NDArray[np.float32], int]]:
    """Loss, gradients, logits, and how many numbers of the weights this rank holds."""
    world = join(Layout(tensor=ranks))
    results = {}
    for shape in shapes:
        model = divisible_model(shape)
        divide_layers(model, world)
        checkpoint_activations(model, "mlp" if shape == "qwen3" else "none")
        batch = packed_batch(2, 41, seed=7)
        loss, grads = outcome(model, batch, cross_entropy_over(world))
        whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()}
        with torch.no_grad():
            logits = model.logits(model(batch.tokens, segments=batch.segments)).numpy()
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
        results[shape] = (loss, {name: grad.double().numpy() for name, grad in whole.items()}), logits, held
    return results


@pytest.mark.parametrize(("ranks", "shapes"), [(2, list(SHAPES)), pytest.param(4, ["mistral"], marks=pytest.mark.slow)])
def test_loss_gradients_and_logits_are_those_of_one_process(ranks: int, shapes: list[str]) -> None:
    results = run_ranks(ranks, divided, ranks, shapes)
    batch = packed_batch(2, 41, seed=7)
    for shape in shapes:
        model = divisible_model(shape)
        expected = outcome(model, batch)
        logits = model.logits(model(batch.tokens, segments=batch.segments)).detach().numpy()
        whole = sum(p.numel() for p in model.parameters())
        in_layers = sum(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight"))
        for result in results:
            found, found_logits, held = result[shape]
            assert_same(found, expected)
            np.testing.assert_allclose(found_logits, logits, atol=2e-5 * np.abs(logits).max())
            # Vectors aside, only the layers' matrices are divided, and these evenly.
            assert whole - held >= in_layers * (1 - 1 / ranks)
        # What is whole everywhere must have the same gradient everywhere, to the bit, or copies would drift apart.
        assert all(
            np.array_equal(results[0][shape][0][1][name], results[-1][shape][0][1][name]) for name in expected[1]
        )


@pytest.mark.parametrize(
    ("ranks", "said"), [(3, "4 attention heads cannot be divided over 3 ranks"), (4, "2 key-value heads cannot")]
)
def test_heads_that_do_not_divide_are_refused(ranks: int, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_divisible(divisible_model("llama").config, ranks)


def adapters() -> str:
    model = divisible_model("llama")
    add_lora(model, LoraConfig(rank=2), seed=1)
    with pytest.raises(ModelError) as error:
        divide_layers(model, join(Layout(tensor=2)))
    return error.value.message


def test_adapters_are_refused() -> None:
    assert "'self_attn.q_proj' of a layer is no full matrix" in run_ranks(2, adapters)[0]


def shares_of_the_head() -> list[int]:
    """How many tokens this rank makes logits of, in two batches."""
    world = join(Layout(tensor=2))
    made = []

    def noted(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        made.append(len(targets))
        return linear_cross_entropy(hidden, weight, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "linear_cross_entropy", noted)
        for targets in (torch.tensor([1, IGNORE, 2, 3, IGNORE, 4, 5]), torch.tensor([IGNORE, 1])):
            hidden, weight = torch.ones(len(targets), 4), torch.ones(8, 4)
            total = cross_entropy_over(world)(hidden, weight, targets)
            torch.testing.assert_close(total, linear_cross_entropy(hidden, weight, targets))
    return made


def test_the_head_s_work_is_shared() -> None:
    """Of five tokens to learn and of one."""
    assert run_ranks(2, shares_of_the_head) == [[3, 1], [2, 0]]
