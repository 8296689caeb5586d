"""What would run on a GPU, on a device that is not the CPU: it meets no tensor of the CPU, and computes the same.

Run by `tests/test_other_device.py`, in a process of its own; on the device that `LIUYI_TEST_DEVICE` names, if it does.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_support import preferences, publish, small_model, small_tokenizer
from infer_support import random_adapter, tiny_model
from test_infer_torch_runner import FAMILIES, Player
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import in_process
from liuyi.align.answers import Answers, answer_logprobs
from liuyi.align.objectives import bradley_terry, dpo
from liuyi.align.reward_model import rewards
from liuyi.core.home import Home
from liuyi.infer.open import open_runner
from liuyi.infer.torch_runner import TorchRunner
from liuyi.kernels.library import KernelsAbsent
from liuyi.model import attention
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.lora import LoraConfig, add_lora, lora_adapter
from liuyi.model.loss import token_logprobs
from liuyi.model.merge import merge_adapter
from liuyi.model.quantize import quantize
from liuyi.model.reward import RewardModel
from liuyi.model.working import keep_working_copies
from liuyi.train import launch
from liuyi.train.batches import Batch
from liuyi.train.corruption import checksum
from liuyi.train.ema import Ema
from liuyi.train.interfaces import Deaf, LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.neftune import Neftune
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example, lay_out
from liuyi.train.world import World

if REAL := os.environ.get("LIUYI_TEST_DEVICE"):
    DEVICE = torch.device(REAL)
else:
    import elsewhere
    from elsewhere import DEVICE

in_python = pytest.mark.skipif(bool(REAL), reason="looks into the device that is implemented in Python")
CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2, tied": {"family": "qwen2", "attention_bias": True, "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "mistral with a window": {"family": "mistral", "sliding_window": 9},
    "llama3's rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "dynamic rope": {"max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "experts": {"family": "qwen3_moe", "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 32, "norm_topk_prob": True},
}  # fmt: skip


def decoder(**changes: Any) -> Decoder:
    shape: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    model = Decoder(DecoderConfig(**(shape | changes)))
    init_weights(model, 1, 0.2)
    return model


def packed() -> Batch:
    """Rows of one document and of several."""
    random = np.random.default_rng(0)
    rows = [[9, 12], [20], [24]]
    examples = [[Example(random.integers(1, 96, n), np.arange(n) > 2) for n in row] for row in rows]
    return lay_out(examples, 24, 0)


def both(function: Callable[[torch.device], Any]) -> tuple[Any, Any]:
    return function(CPU), function(DEVICE)


def train(model: Decoder, device: torch.device, optimiser: str = "adamw", dtype: torch.dtype = torch.float32) -> float:
    """Two steps; the loss of the second."""
    model.to(device)
    keep_working_copies(model, dtype)
    stepping = Optimiser(model, OptimiserConfig(optimiser, lr=1e-2))  # type: ignore[arg-type]
    for _ in range(2):
        loss = CausalLM(dtype)(model, packed().to(device))
        loss.total.backward()
        stepping.step(1.0, 1 / loss.count)
        stepping.zero_grad()
    return loss.total.item() / loss.count


@in_python
def test_the_device_refuses_what_cuda_refuses() -> None:
    there = torch.arange(6.0, device=DEVICE).view(2, 3)
    assert (there * 2).device == DEVICE
    assert (there @ there.T).cpu().tolist() == [[5.0, 14.0], [14.0, 50.0]]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        there[:, torch.tensor([0, 1])]
    with pytest.raises(TypeError):
        there.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_every_family_trains(name: str) -> None:
    here, there = both(lambda device: train(decoder(**MODELS[name]), device))
    assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2, tied", "experts"])
def test_in_bfloat16(name: str) -> None:
    here, there = both(lambda device: train(decoder(**MODELS[name]), device, dtype=torch.bfloat16))
    assert here == pytest.approx(there, rel=0.02)


def test_muon() -> None:
    here, there = both(lambda device: train(decoder(), device, "muon"))
    assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("form", [{}, {"dora": True}, {"pissa": True}, {"nf4": True}], ids=str)
def test_adapters_train_and_are_taken_from_there(form: dict[str, bool]) -> None:
    """As in training: the adapter is made on the CPU, and the model moved after that."""

    def changes(device: torch.device) -> list[Tensor]:
        model, config = decoder(), LoraConfig(rank=4, alpha=8.0, **form)
        add_lora(model, config, seed=1)
        train(model, device)
        return [change.product() for change in lora_adapter(model, config).modules.values()]

    for here, there in zip(*both(changes), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_a_run_with_noise_average_and_checkpoints(tmp_path: Path) -> None:
    """Steps taken twice for the redundancy check, killed after three of six steps and gone on with."""

    def losses(device: torch.device) -> float:
        for steps in (3, 6):
            model = decoder().to(device)
            noise = Neftune(model, 5.0, seed=1)
            trainer = Trainer(
                model,
                noise.seeded(lambda index: [packed(), packed()]),
                CausalLM(),
                Optimiser(model, OptimiserConfig(lr=1e-2)),
                lambda step: 1.0,
                config=LoopConfig(steps=steps, verify_every=2),
                workdir=tmp_path / device.type,
                observer=Deaf(),
                monitor=Ema(model, 0.9),
                world=World(device=device),
            )
            result = trainer.run()
        assert result.steps == 6
        assert result.recoveries == 0
        return result.loss

    here, there = both(losses)
    assert here == pytest.approx(there, rel=1e-4)


def test_preferences_and_rewards() -> None:
    random = np.random.default_rng(1)
    batch = packed()
    sequence = torch.where(batch.targets >= 0, torch.arange(3)[:, None], -1)
    ends, lengths = torch.tensor([20, 43, 71]), torch.tensor([5.0, 6.0, 7.0])
    answers = Answers(batch, sequence, torch.from_numpy(random.normal(size=3)).float(), lengths, ends)

    def figures(device: torch.device) -> list[float]:
        policy, given = decoder().to(device), answers.to(device)
        gain = answer_logprobs(policy, given) - given.reference
        loss = dpo(gain[:2].view(1, 2), given.reference[:2].view(1, 2), 0.1).sum()
        loss.backward()
        reward = RewardModel(decoder().to(device))
        torch.nn.init.ones_(reward.score.weight)
        score = bradley_terry(rewards(reward, given)[:2].view(1, 2), torch.zeros(1, device=device)).sum()
        score.backward()
        grad = policy.model.embed_tokens.weight.grad
        assert grad is not None
        return [loss.item(), score.item(), grad.square().sum().item()]

    here, there = both(figures)
    assert here == pytest.approx(there, rel=1e-3)


@pytest.mark.parametrize("learns", [True, False])
def test_logprobs_in_chunks(learns: bool) -> None:
    def gradients(device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(20, 16, generator=generator).to(device).requires_grad_()
        head = torch.randn(50, 16, generator=generator).to(device).requires_grad_(learns)
        targets = torch.arange(20).to(device)
        targets[3] = -100
        token_logprobs(hidden, head, targets, chunk_tokens=6).square().sum().backward()
        assert hidden.grad is not None
        return hidden.grad.cpu()

    here, there = both(gradients)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_a_reward_model_with_an_adapter_is_measured_where_it_was_trained(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step, from the start model to what is published."""
    tokenizer = small_tokenizer()
    inputs = publish(home, tokenizer, preferences(), small_model(tokenizer.vocab_size))
    params = {"method": "lora", "rank": 2, "max_steps": 2, "heldout": 0.3, "seq_len": 96, "compute_dtype": "fp32"}
    found = []
    for device in (CPU, DEVICE):
        monkeypatch.setattr(launch, "World", lambda at=device, **_: World(device=at))
        (tmp_path / device.type).mkdir()
        made = in_process.run_step(home, tmp_path / device.type, "align.reward", inputs, **params)
        found.append(made["checkpoint"].manifest.metrics["loss"])
    assert REAL or elsewhere.calls["_fused_adamw_"]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@in_python
def test_sums_of_words_are_the_same_and_read_at_once() -> None:
    """To read a number waits for the device; the optimiser has hundreds of tensors."""
    tensors = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (3, 4, 5, 1024)]
    there = [tensor.to(DEVICE) for tensor in tensors]
    reads = elsewhere.calls.get("_local_scalar_dense", 0) + elsewhere.copies_here
    assert checksum(there + tensors[:1]) == checksum([*tensors, tensors[0]])
    assert elsewhere.calls.get("_local_scalar_dense", 0) + elsewhere.copies_here == reads + 1


@in_python
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_are_given_to_each_head_where_no_kernel_shares_them(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's kernels that take a mask, or float32, want as many heads of keys as of queries."""
    asked: list[tuple[bool, bool]] = []
    plain = functional.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        asked.append((attn_mask is not None, q.shape[1] == k.shape[1]))
        return plain(q, k, v, attn_mask, **options)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", watched)
    model = decoder().to(DEVICE)
    tokens = packed().to(DEVICE)
    model(tokens.tokens, compute_dtype=dtype)
    model(tokens.tokens, positions=tokens.positions, segments=tokens.segments, compute_dtype=dtype)
    assert len(asked) == 2
    assert all(apart == (masked or dtype == torch.float32) for masked, apart in asked)
    assert {masked for masked, _ in asked} == {False, True}


@pytest.mark.skipif(not REAL, reason="asks CUDA's kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_never_written_out(dtype: torch.dtype) -> None:
    """With the formula forbidden, a kernel is found for rows of one document, for packed ones, and their gradients."""
    model, batch = decoder().to(DEVICE), packed().to(DEVICE)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        whole = model(batch.tokens, compute_dtype=dtype)
        apart = model(batch.tokens, positions=batch.positions, segments=batch.segments, compute_dtype=dtype)
        (whole.float().sum() + apart.float().sum()).backward()
    assert model.model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_runner_reads_in_pieces_from_blocks(name: str) -> None:
    model = tiny_model(**FAMILIES[name])
    player = Player(model, 6)
    player.runner = TorchRunner(copy.deepcopy(model).to(DEVICE), player.runner.blocks)
    player.play({0: 40, 1: 1, 2: 64})
    player.play({5: 5, 3: 90})
    player.play({0: 1, 1: 1, 2: 1, 3: 1, 5: 1})
    player.play({3: 1, 0: 30, 4: 100})


def test_the_runner_with_adapters_in_a_batch_and_quantised_weights() -> None:
    for model in (tiny_model(), quantize(tiny_model(), "int8"), quantize(tiny_model(), "int4")):
        rows = []
        for device in (CPU, DEVICE):
            player = Player(tiny_model(), 3)
            runner = TorchRunner(copy.deepcopy(model).to(device), player.runner.blocks)
            for slot in (0, 1):
                runner.load_adapter(slot, random_adapter(tiny_model(), 2, slot))
            batch = replace(player.batch({0: 20, 1: 30, 2: 10}), adapters=np.array([1, -1, 0], dtype=np.int32))
            rows.append((runner.logits(batch), runner.hidden(batch)))
        for here, there in zip(*rows, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_an_adapter_is_merged_there() -> None:
    adapter = random_adapter(tiny_model(), 2, 1)
    here, there = both(lambda device: merge_adapter(tiny_model().to(device), adapter))
    for one, other in zip(here[0].parameters(), there[0].parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu())
    assert here[1].metrics() == pytest.approx(there[1].metrics(), rel=1e-3)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_weights_that_are_not_multiplied_there_are_refused(form: str) -> None:
    """Rather than run as they are, as if nothing had been asked for."""
    with pytest.raises(KernelsAbsent, match=f"{form} is multiplied by the native kernels"):
        open_runner(tiny_model().to(DEVICE), weights=form)  # type: ignore[arg-type]
    assert open_runner(tiny_model().to(DEVICE), slots=1).device == str(DEVICE)
