"""Adapters in the native runner: each sequence of a batch as the model that the adapter is merged into."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from infer_support import random_adapter, tiny_model

from liuyi.core.errors import ModelError
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.runner import Batch, ids
from liuyi.kernels.library import INSTRUCTION_SETS, KernelsAbsent, KernelsError, kernels
from liuyi.model.merge import merge_adapter

try:
    kernels()
except KernelsAbsent as absent:
    pytest.skip(f"no native kernels: {absent.message}", allow_module_level=True)

LENGTH = 70


def batch_of(texts: int, adapters: list[int]) -> Batch:
    tokens = torch.randint(300, (texts, LENGTH), generator=torch.Generator().manual_seed(2)).numpy()
    blocks = -(-LENGTH // 32)
    return Batch(
        tokens=ids(tokens.reshape(-1)),
        counts=ids([LENGTH] * texts),
        lengths=ids([0] * texts),
        tables=ids(range(texts * blocks)).reshape(texts, blocks),
        rows=ids(range(texts * LENGTH)),
        adapters=ids(adapters),
    )


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "head_dim": 6, "intermediate_size": 44}])
def test_sequences_with_different_adapters_share_a_batch(
    changes: dict[str, int], instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", instruction_set)
    model = tiny_model(**changes)
    adapters = [random_adapter(model, 4, 1), random_adapter(model, 7, 2), random_adapter(model, 1, 3, ("v_proj",))]
    runner = NativeRunner(model, 20, weights="fp32", kv="fp32", threads=2)
    for slot, adapter in enumerate(adapters):
        runner.load_adapter(slot, adapter)
    batch = batch_of(4, [1, -1, 0, 2])
    found = runner.logits(batch).split(LENGTH)
    tokens = torch.from_numpy(batch.tokens).long().view(4, LENGTH)
    merged = [merge_adapter(model, adapter)[0] for adapter in adapters]
    for row, which in enumerate((merged[1], model, merged[0], merged[2])):
        with torch.inference_mode():
            exact = which.logits(which(tokens[row : row + 1]))[0]
        assert (found[row] - exact).norm() / exact.norm() < 2e-5


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_who_else_is_in_the_batch_changes_no_bit(weights: str) -> None:
    model = tiny_model()
    runner = NativeRunner(model, 20, weights=weights, kv="int8")
    batch = batch_of(3, [-1, -1, -1])
    plain = runner.logits(batch).split(LENGTH)
    runner.load_adapter(5, random_adapter(model, 4, 1))
    mixed = runner.logits(replace(batch, adapters=ids([-1, 5, -1]))).split(LENGTH)
    assert torch.equal(mixed[0], plain[0])
    assert not torch.allclose(mixed[1], plain[1], atol=0.1)
    assert torch.equal(mixed[2], plain[2])
    last = replace(batch, adapters=ids([-1, 5, -1]), rows=ids([2 * LENGTH - 1]))
    assert torch.equal(runner.logits(last)[0], mixed[1][-1])


@pytest.mark.parametrize("adapters", [[-1, -1, -1], [-1, 1, 0]], ids=["no adapters", "adapters"])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_tokens_that_threads_take_in_blocks_get_the_bits_of_tokens_that_go_together(
    weights: str, adapters: list[int]
) -> None:
    """So many tokens that each thread has whole blocks, of texts that end and begin in them; and a few at a time."""
    model, counts, blocks = tiny_model(), [301, 90, 410], 13
    tokens = [torch.randint(300, (n,), generator=torch.Generator().manual_seed(n)).numpy() for n in counts]
    tables = ids(range(3 * blocks)).reshape(3, blocks)

    def runner_of(threads: int) -> NativeRunner:
        runner = NativeRunner(model, tables.size, weights=weights, kv="int8", threads=threads)
        runner.load_adapter(0, random_adapter(model, 4, 1))
        runner.load_adapter(1, random_adapter(model, 7, 2))
        return runner

    few, apart = runner_of(1), []
    for text, count in enumerate(counts):
        for begin in range(0, count, 60):
            part = ids(tokens[text][begin : begin + 60])
            batch = Batch(
                part, ids([len(part)]), ids([begin]), tables[text : text + 1], ids(range(len(part))), ids([-1])
            )
            apart.append(few.logits(replace(batch, adapters=ids([adapters[text]]))))
    exact = torch.cat(apart)
    together = Batch(
        ids([*tokens[0], *tokens[1], *tokens[2]]), ids(counts), ids([0, 0, 0]), tables, ids(range(801)), ids(adapters)
    )
    for threads in (1, 2, 3):
        runner = runner_of(threads)
        assert torch.equal(runner.logits(together), exact)
        assert torch.equal(runner.logits(replace(together, rows=ids([300, 390, 800]))), exact[[300, 390, 800]])


def test_an_adapter_is_replaced_and_dropped() -> None:
    model = tiny_model()
    runner = NativeRunner(model, 20, weights="fp32", kv="fp32")
    batch = batch_of(1, [3])
    with pytest.raises(KernelsError, match="an adapter that there is not"):
        runner.logits(batch)
    runner.load_adapter(3, random_adapter(model, 4, 1))
    first = runner.logits(batch)
    runner.load_adapter(3, random_adapter(model, 2, 9, ("q_proj", "down_proj")))
    second = runner.logits(batch)
    assert not torch.allclose(first, second, atol=0.1)
    fresh = NativeRunner(model, 20, weights="fp32", kv="fp32")
    fresh.load_adapter(3, random_adapter(model, 2, 9, ("q_proj", "down_proj")))
    assert torch.equal(fresh.logits(batch), second)
    runner.drop_adapter(3)
    with pytest.raises(KernelsError, match="an adapter that there is not"):
        runner.logits(batch)


def test_an_adapter_of_another_model_is_refused() -> None:
    runner = NativeRunner(tiny_model(), 2)
    with pytest.raises(ModelError, match="q_proj"):
        runner.load_adapter(0, random_adapter(tiny_model(hidden_size=48), 4, 1, ("q_proj",)))
