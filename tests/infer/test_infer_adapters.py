"""Many adapters in one batch: as each alone, as PEFT; loaded and dropped while requests run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infer_support import VOCAB, tiny_model

from liuyi.core.errors import ModelError
from liuyi.infer.adapters import AdapterRegistry
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.open import open_runner
from liuyi.infer.request import Completion, Request
from liuyi.infer.runner import Batch, ids
from liuyi.infer.torch_runner import TorchRunner
from liuyi.kernels.library import KernelsAbsent, kernels
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank, projection_shapes
from liuyi.model.checkpoint import save_model
from liuyi.model.merge import merge_adapter
from liuyi.model.tokenizer import Tokenizer

PROMPTS = [list(range(5, 5 + length)) for length in (40, 3, 17, 70, 40)]


def _adapter(seed: int, rank: int = 3, targets: tuple[str, ...] = PROJECTIONS, **shape: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LowRank(
            torch.randn(rank, into, generator=generator) * 0.3, torch.randn(out, rank, generator=generator) * 0.3, 0.5
        )
        for name, (out, into) in projection_shapes(tiny_model(**shape).config).items()
        if name.rpartition(".")[2] in targets
    }
    return Adapter(modules)


ADAPTERS = {"a": _adapter(1), "b": _adapter(2, rank=5, targets=("q_proj", "v_proj")), "c": _adapter(3, rank=1)}
NAMES = ["a", None, "b", "c", "a"]


def _requests(**more: Any) -> list[Request]:
    return [
        Request(prompt_ids=prompt, max_tokens=12, logprobs=True, ignore_eos=True, adapter=name, **more)
        for prompt, name in zip(PROMPTS, NAMES, strict=True)
    ]


def _engine(tokenizer: Tokenizer, **options: Any) -> Engine:
    engine = Engine(tiny_model(), tokenizer, **options)
    for name, adapter in ADAPTERS.items():
        engine.adapters.load(name, adapter)
    return engine


def _close(ours: Completion, other: Completion) -> None:
    assert ours.token_ids == other.token_ids
    assert np.allclose(ours.logprobs, other.logprobs, atol=1e-4)


def test_a_batch_of_adapters_answers_as_each_alone_and_as_merged(tokenizer: Tokenizer) -> None:
    together = _engine(tokenizer).generate(_requests())
    plain = Engine(tiny_model(), tokenizer).generate([replace(each, adapter=None) for each in _requests()])
    for request, answer, without in zip(_requests(), together, plain, strict=True):
        _close(answer, _engine(tokenizer).generate([request])[0])
        if request.adapter is None:
            _close(answer, without)
            continue
        assert answer.token_ids != without.token_ids
        merged, _ = merge_adapter(tiny_model(), ADAPTERS[request.adapter])
        _close(answer, Engine(merged, tokenizer).generate([replace(request, adapter=None)])[0])


def test_native_code_answers_the_same_and_to_the_bit_as_alone(tokenizer: Tokenizer) -> None:
    try:
        kernels()
    except KernelsAbsent as absent:
        pytest.skip(f"no native kernels: {absent.message}")
    shape = {"hidden_size": 64, "head_dim": 16}
    adapters = {name: _adapter(seed, **shape) for seed, name in enumerate(ADAPTERS)}

    def answers(weights: str, requests: list[Request]) -> list[Completion]:
        runner = open_runner(tiny_model(**shape), weights=weights, kv="fp32", kv_tokens=2000)
        engine = Engine(runner, tokenizer)
        for name, adapter in adapters.items():
            engine.adapters.load(name, adapter)
        return engine.generate(requests)

    together = answers("fp32", _requests())
    for request, native, exact in zip(_requests(), together, answers("reference", _requests()), strict=True):
        _close(native, exact)
        alone = answers("fp32", [request])[0]
        assert (native.token_ids, native.logprobs) == (alone.token_ids, alone.logprobs)


@pytest.mark.slow
def test_answers_are_those_of_peft(tokenizer: Tokenizer, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    save_model(tmp_path / "model", tiny_model(), tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, adapter in ADAPTERS.items():
        adapter.save(tmp_path / name)
        if name == "a":
            model = peft.PeftModel.from_pretrained(model, tmp_path / name, adapter_name=name).eval()
        else:
            model.load_adapter(tmp_path / name, adapter_name=name)
    for request, answer in zip(_requests(), _engine(tokenizer).generate(_requests()), strict=True):
        tokens = torch.tensor([[*request.prompt_ids, *answer.token_ids]])
        if request.adapter is None:
            with model.disable_adapter(), torch.no_grad():
                logits = model(tokens).logits
        else:
            model.set_adapter(request.adapter)
            with torch.no_grad():
                logits = model(tokens).logits
        logprobs = logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == list(answer.token_ids)
        assert np.allclose(logprobs.max(-1).values, answer.logprobs, atol=1e-4)


def test_a_prefix_serves_only_the_adapter_that_made_it(tokenizer: Tokenizer) -> None:
    engine, prompt = _engine(tokenizer), list(range(3, 100))
    by_name = {}
    for name in ("a", None, "b", "a", None):
        request = Request(prompt_ids=prompt, max_tokens=8, logprobs=True, ignore_eos=True, adapter=name)
        hits = engine.stats.hit_tokens
        answer = engine.generate([request])[0]
        assert (engine.stats.hit_tokens > hits) == (name in by_name)
        _close(by_name.setdefault(name, answer), answer)
    assert len({answer.token_ids for answer in by_name.values()}) == 3


def test_a_dropped_adapter_stays_until_its_last_request_ends(tokenizer: Tokenizer) -> None:
    engine = _engine(tokenizer)
    request = _requests()[0]
    alone = _engine(tokenizer).generate([request])[0]
    id = engine.submit(request)
    engine.step()
    engine.adapters.drop("a")
    assert engine.adapters.names == ["b", "c"]
    with pytest.raises(RequestError, match="there is no adapter 'a'") as raised:
        engine.submit(request)
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")
    answers = [update.completion for _ in range(40) for update in engine.step() if update.id == id]
    _close(next(answer for answer in answers if answer), alone)
    engine.adapters.load("a", ADAPTERS["b"])
    _close(engine.generate([request])[0], engine.generate([replace(request, adapter="b")])[0])


def test_a_name_loaded_anew_means_the_new_adapter_for_new_requests_only(tokenizer: Tokenizer) -> None:
    engine, request = _engine(tokenizer), _requests()[0]
    before = _engine(tokenizer).generate([request])[0]
    id = engine.submit(request)
    engine.step()
    old = engine.adapters.digest("a")
    engine.adapters.load("a", ADAPTERS["c"])
    assert engine.adapters.digest("a") == ADAPTERS["c"].digest != old
    second = engine.submit(request)
    done: dict[int, Completion] = {}
    while len(done) < 2:
        done |= {update.id: update.completion for update in engine.step() if update.completion is not None}
    _close(done[id], before)
    _close(done[second], _engine(tokenizer).generate([replace(request, adapter="c")])[0])


class _Slots:
    """A runner that only remembers what is in its slots."""

    def __init__(self) -> None:
        self.held: dict[int, Adapter] = {}

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        adapter.check(tiny_model().config)
        self.held[slot] = adapter

    def drop_adapter(self, slot: int) -> None:
        del self.held[slot]


def test_slots_are_given_back_and_bounded() -> None:
    runner = _Slots()
    registry = AdapterRegistry(runner, slots=2)
    registry.load("a", ADAPTERS["a"])
    held = registry.take("a")
    registry.drop("a")
    registry.load("b", ADAPTERS["b"])
    with pytest.raises(ModelError, match="all 2 adapters"):
        registry.load("c", ADAPTERS["c"])
    registry.give_back(held)
    assert registry.load("c", ADAPTERS["c"]).slot != registry.take("b").slot
    assert set(runner.held) == {0, 1}
    registry.drop("c")
    assert list(runner.held.values()) == [ADAPTERS["b"]]
    with pytest.raises(ModelError, match="which the model has not"):
        registry.load("d", Adapter({"model.layers.9.mlp.up_proj": next(iter(ADAPTERS["a"].modules.values()))}))
    assert registry.load("d", ADAPTERS["a"]).slot not in (registry.take("b").slot,)


def test_a_runner_without_adapters_says_so() -> None:
    with pytest.raises(ModelError, match="has no adapters"):
        AdapterRegistry(object()).load("a", ADAPTERS["a"])


def test_hooks_are_gone_with_the_adapters_and_act_on_their_own_runner_only() -> None:
    model = tiny_model()
    first, second = TorchRunner(model, 4), TorchRunner(model, 4)
    batch = Batch(ids([1, 2, 3]), ids([3]), ids([0]), ids([[0]]), ids([2]), ids([0]))
    plain = second.logits(batch)
    first.load_adapter(0, ADAPTERS["a"])
    assert torch.equal(second.logits(batch), plain)
    assert not torch.allclose(first.logits(batch), plain)
    first.drop_adapter(0)
    assert torch.equal(first.logits(batch), plain)
    assert not any(module._forward_hooks for module in model.modules())
    assert plain.shape == (1, VOCAB)
