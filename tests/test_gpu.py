"""What only a CUDA device can show: its kernels give the figures of the CPU, in the memory meant for them.

    pytest -m gpu

That no tensor of the CPU is met on the way is shown without one, by `test_other_device.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.request import Request
from liuyi.infer.speculate.draft_model import DraftModel
from liuyi.model.attention import CausalMask, attention, attention_reference
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.interfaces import Deaf, LoopConfig
from liuyi.train.lm import CausalLM, choose_compute_dtype
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example, lay_out
from liuyi.train.parallel.apply import parallelize
from liuyi.train.rng import load_rng_state, rng_state
from liuyi.train.world import World
from small_models import small_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
VOCAB = 300
BF16, FP32 = torch.bfloat16, torch.float32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(
    folder: Path, device: torch.device, *, optimiser: str = "adamw", dtype: torch.dtype = FP32, compiled: bool = False
) -> float:
    """Six steps on packed documents, gone on with after three; the loss at the end."""
    random = np.random.default_rng(0)
    documents = [[Example(random.integers(1, VOCAB, n), np.arange(n) > 2) for n in row] for row in ([30, 33], [64])]
    batch = lay_out(documents, 64, 0)
    for steps in (3, 6):
        model, world = small_model(VOCAB, std=0.1), World(device=device)
        parallelize(model, world, compute_dtype=dtype, compiled=compiled)
        result = Trainer(
            model,
            lambda index: [batch, batch],
            CausalLM(dtype),
            Optimiser(model, OptimiserConfig(optimiser, lr=1e-2)),  # type: ignore[arg-type]
            lambda step: 1.0,
            config=LoopConfig(steps=steps, verify_every=2),
            workdir=folder,
            observer=Deaf(),
            world=world,
        ).run()
    assert (result.steps, result.recoveries) == (6, 0)
    return result.loss


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "adamw8bit"])
def test_a_run_learns_as_on_the_cpu(tmp_path: Path, optimiser: str) -> None:
    """Eight bits are rounded by compiled code there, which takes another order."""
    if optimiser == "adamw8bit":
        pytest.importorskip("torchao")
    here, there = (train(tmp_path / device.type, device, optimiser=optimiser) for device in (CPU, GPU))
    assert here == pytest.approx(there, rel=0.02 if optimiser == "adamw8bit" else 5e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_stays_near_float32(tmp_path: Path, compiled: bool) -> None:
    exact = train(tmp_path / "exact", CPU)
    assert train(tmp_path / "near", GPU, dtype=BF16, compiled=compiled) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("window", [None, 300])
def test_attention_in_packed_rows_never_holds_all_scores(dtype: torch.dtype, window: int | None) -> None:
    """Forward and backward, with heads that share keys: of one row there would be 16 · 4,096² of them."""
    heads, kv_heads, seq = 16, 4, 4096
    made = torch.Generator(GPU).manual_seed(1)
    shapes = [(1, count, seq, 64) for count in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, device=GPU, dtype=dtype, generator=made).requires_grad_() for shape in shapes)
    segments = torch.arange(seq, device=GPU)[None] // 700
    mask = CausalMask(1, seq, segments, GPU)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mixed = attention(q, k, v, mask, window)
    mixed.float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert torch.cuda.max_memory_allocated() - before < heads * seq * seq * dtype.itemsize
    with torch.no_grad():
        wanted = attention_reference(q.float(), k.float(), v.float(), mask.visible(window))
        assert (mixed.float() - wanted).abs().max() < (0.03 if dtype == BF16 else 5e-3)


def test_auto_takes_bfloat16_where_it_is_fast(tmp_path: Path) -> None:
    fast = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_compute_dtype("auto", tmp_path, World(device=GPU)) == (BF16 if fast else FP32)


def test_the_generator_of_the_device_goes_on_where_it_was() -> None:
    state = rng_state()
    drawn: list[Tensor] = []
    for _ in range(2):
        load_rng_state(state)
        drawn.append(torch.rand(8, device=GPU))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], torch.rand(8, device=GPU))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["turn on the light in the kitchen, the hall and the garden"] * 4, VOCAB - 8)


def answers(model: Decoder, tokenizer: Tokenizer, *, drafts: bool = False) -> list[list[int]]:
    """Greedy and drawn ones, to prompts that begin alike and are read in pieces."""
    drafter = DraftModel(open_runner(model, weights="reference", slots=8)) if drafts else None
    runner = open_runner(model, weights="reference", slots=8, max_tokens=256)
    engine = Engine(runner, tokenizer, max_slots=8, max_tokens=256, prefill_tokens=48, drafter=drafter)
    prompts = [[(7 * at + number) % (VOCAB - 10) + 1 for at in range(40 + 30 * number)] for number in range(4)]
    requests = [
        Request(prompt_ids=[*range(1, 65), *ids], max_tokens=24, temperature=temperature, seed=5, ignore_eos=True)
        for ids in prompts[:2]
        for temperature in (0.0, 0.9)
    ]
    return [list(completion.token_ids) for completion in engine.generate(requests)]


def test_the_engine_says_there_what_it_says_here(tokenizer: Tokenizer) -> None:
    """Draws too: noise is made on the CPU, and rounding moves none of them."""
    here = answers(small_model(VOCAB, std=0.3), tokenizer)
    there = small_model(VOCAB, std=0.3).to(GPU)
    assert answers(there, tokenizer) == here
    assert answers(there, tokenizer, drafts=True) == here
