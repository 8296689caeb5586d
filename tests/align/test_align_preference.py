"""The step of preferences, and the collapse watch against planted collapses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_support import alone, preferences, publish, small_model, small_tokenizer, with_reference

import in_process
from liuyi.align.answers import Answers, answer_logprobs
from liuyi.align.labels import LabelRows, encode_labels, with_reference_point
from liuyi.align.pairs import Pair, PairRows, encode_pairs
from liuyi.align.preference import PairObjective
from liuyi.align.watch import CollapseWatch, Figures, Probe, Thresholds, repetition
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.model.chat import encode_chat
from liuyi.model.checkpoint import load_model
from liuyi.model.lora import LoraConfig
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import ShuffledBatches
from liuyi.train.curves import read_samples
from liuyi.train.inject import Injector
from liuyi.train.log import LOG_FILE
from liuyi.train.packing import Example, pack
from liuyi.train.parallel.apply import parallelize
from liuyi.train.tuning import Tuning, prepare
from liuyi.train.world import World


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def test_packed_answers_have_their_own_logprobs(tokenizer: Tokenizer) -> None:
    table = preferences(7)
    model = small_model(tokenizer.vocab_size).eval()
    rows = PairRows(encode_pairs(table, tokenizer, 160).pairs, 160, pad_id=1)
    batch = rows.read(np.array([4, 0, 6]))
    assert batch.packed.tokens.shape[0] < 6
    with torch.no_grad():
        found = answer_logprobs(model, batch).tolist()
    expected = [alone(model, tokenizer, table[n], side) for n in (4, 0, 6) for side in ("chosen", "rejected")]
    assert found == pytest.approx(expected, rel=1e-4)


def test_objective_sums_over_pairs(tokenizer: Tokenizer) -> None:
    table = preferences(5)
    start, policy = small_model(tokenizer.vocab_size).eval(), small_model(tokenizer.vocab_size, seed=2).eval()
    pairs = encode_pairs(table, tokenizer, 96).pairs
    rows = with_reference(PairRows(pairs, 96, pad_id=1), start, at_once=2)
    loss = PairObjective("dpo", beta=0.2, nll_weight=0.5)(policy, rows.read(np.arange(5)))
    expected, nll_sum = 0.0, 0.0
    for row, pair in zip(table, pairs, strict=True):
        chosen, rejected = (alone(policy, tokenizer, row, side) for side in ("chosen", "rejected"))
        margin = chosen - alone(start, tokenizer, row, "chosen") - rejected + alone(start, tokenizer, row, "rejected")
        nll = -chosen / int(pair.chosen.learnt.sum())
        expected += math.log1p(math.exp(-0.2 * margin)) + 0.5 * nll
        nll_sum += nll
    assert loss.count == 5
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.metrics["chosen_nll"].item() == pytest.approx(nll_sum, rel=1e-4)


def test_rows_of_answers_are_no_longer_than_they_need_be(tokenizer: Tokenizer) -> None:
    pairs = encode_pairs(preferences(9), tokenizer, 96).pairs
    rows = PairRows(pairs, 4096, pad_id=1)
    tokens = sum(len(answer) for pair in pairs[:7] for answer in (pair.chosen, pair.rejected))
    assert rows.read(np.arange(7)).packed.tokens.shape == (1, -(-tokens // 32) * 32)
    few = PairRows(pairs, 160, pad_id=1).read(np.arange(7)).packed
    fewest = len(pack([len(answer) for pair in pairs[:7] for answer in (pair.chosen, pair.rejected)], 160))
    assert few.tokens.shape[0] == fewest
    assert few.tokens.shape[1] <= 160
    assert few.tokens.numel() - tokens < 32 * fewest + 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_begins_with_the_numbers_of_its_reference(tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """To the bit, in every micro-batch of the first epoch; the model is trained as before afterwards."""
    table = preferences(7)
    for number, row in enumerate(table):
        row["chosen"] += " on" * number
    model = small_model(tokenizer.vocab_size).train()
    prepare(model, Tuning("lora", LoraConfig(rank=2)), 1, dtype)
    parallelize(model, World(), compute_dtype=dtype)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    pairs = PairRows(encode_pairs(table, tokenizer, 160).pairs, 160, pad_id=1)
    labels = LabelRows(encode_labels(table, tokenizer, 160).labels, 160, pad_id=1)
    for rows in (pairs, labels):
        batches: Any = ShuffledBatches(rows, batch_rows=3, seed=1, micro_rows=2)
        rows.take_reference(batches, model, dtype)  # type: ignore[attr-defined]
        assert model.training
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
        met = 0
        for index in range(len(rows) // 3):
            for batch in batches(index):
                answers = batch if isinstance(batch, Answers) else batch.answers
                policy = answer_logprobs(model, answers, dtype)
                assert policy.requires_grad
                assert torch.equal(policy, answers.reference)
                assert (answers.reference < 0).all()
                met += 1
        assert met == 2 * (len(rows) // 3)
    points = with_reference_point(batches, model, dtype)
    assert [float(part.kl) for index in range(4) for part in points(index)] == [0.0] * 8


def test_the_first_step_of_an_adapter_costs_log_two(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    inputs = publish(home, tokenizer, preferences(9), small_model(tokenizer.vocab_size))
    adapter = run_dpo(
        home,
        tmp_path / "work",
        inputs,
        method="lora",
        rank=2,
        max_steps=2,
        batch_pairs=6,
        micro_pairs=4,
        nll_weight=0.0,
    )
    first, second = [json.loads(line)["loss"] for line in adapter.file(LOG_FILE).read_text().splitlines()]
    assert first == pytest.approx(math.log(2), abs=1e-7)
    assert second != first


def test_at_the_start_every_pair_costs_log_two(tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer.vocab_size)
    rows = with_reference(PairRows(encode_pairs(preferences(), tokenizer, 96).pairs, 96, pad_id=1), model)
    loss = PairObjective("dpo", beta=0.7)(model, rows.read(np.arange(24)))
    assert loss.total.item() / 24 == pytest.approx(math.log(2), abs=1e-4)


def test_pairs_that_teach_nothing_are_left_out(tokenizer: Tokenizer) -> None:
    table: list[dict[str, Any]] = [*preferences(5)]
    table[3]["rejected"] = None
    table[4]["margin"] = math.nan
    table[1]["rejected"] = table[1]["chosen"]
    table[2]["chosen"] = "yes " * 200
    encoded = encode_pairs(table, tokenizer, 96)
    assert [pair.id for pair in encoded.pairs] == ["p0"]
    assert encoded.left_out["p1"] == "chosen and rejected are equal"
    assert encoded.left_out["p3"] == "a labelled answer, not a pair"
    assert "more than 96" in encoded.left_out["p2"]
    assert encoded.left_out["p4"] == "the margin is nan"
    with pytest.raises(DataError, match="no preference"):
        encode_pairs(table[1:], tokenizer, 96)


def test_only_the_last_answer_counts(tokenizer: Tokenizer) -> None:
    """An earlier turn of the assistant is context, not something to learn."""
    prompt = [
        {"role": "user", "content": "light"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "hall"},
    ]
    row = {"id": "x", "prompt": prompt, "chosen": "yes", "rejected": "no"}
    (pair,) = encode_pairs([row], tokenizer, 96).pairs
    assert tokenizer.decode(pair.chosen.tokens[pair.chosen.learnt].tolist()) == "yes<|im_end|>"


def chosen_of(pairs: Sequence[Pair]) -> list[tuple[str, Example]]:
    return [(pair.id, pair.chosen) for pair in pairs]


def run_dpo(home: Home, workdir: Path, inputs: dict[str, Artifact], **params: object) -> Artifact:
    workdir.mkdir(exist_ok=True)
    watched = {"probe_prompts": 6, "watch_every": 5} if params.get("watch", True) else {}
    settings = {"seq_len": 96, "batch_pairs": 8, **watched, **params}
    return in_process.run_step(home, workdir, "align.preference", inputs, **settings)[
        "adapter" if params.get("method") == "lora" else "checkpoint"
    ]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_run_that_goes_on_ends_with_the_same_bits(
    home: Home, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Its reference is taken anew, before the weights of the checkpoint are there."""
    inputs = publish(home, tokenizer, preferences(9), small_model(tokenizer.vocab_size))
    params: dict[str, Any] = {"objective": objective, "method": "lora", "rank": 2, "lr": 0.01, "watch": False}
    params |= {"batch_pairs": 4, "micro_pairs": 3, "max_steps": 6, "seq_len": 96, "checkpoint_every_s": 0.0}
    whole = run_dpo(home, tmp_path / "whole", inputs, **params)
    before_step = Injector.before_step

    def break_off(self: Injector, step: int) -> None:
        before_step(self, step)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Injector, "before_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        run_dpo(home, tmp_path / "broken", inputs, **params)
    monkeypatch.undo()
    rest = run_dpo(home, tmp_path / "broken", inputs, **params)
    assert "resumed at step 3" in (tmp_path / "broken" / "events.jsonl").read_text()
    (weights,) = [path.name for path in whole.path.glob("*.safetensors")]
    assert rest.file(weights).read_bytes() == whole.file(weights).read_bytes()
    assert rest.file(LOG_FILE).read_bytes() == whole.file(LOG_FILE).read_bytes()


def test_the_step_separates_the_answers(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    table = preferences()
    inputs = publish(home, tokenizer, table, small_model(tokenizer.vocab_size))
    params = {"max_steps": 30, "lr": 3e-3, "nll_weight": 1.0, "watch": False, "compute_dtype": "fp32"}
    checkpoint = run_dpo(home, tmp_path / "work", inputs, **params)
    before, after = load_model(inputs["model"].path).eval(), load_model(checkpoint.path).eval()
    for row in table[:6]:
        gains = [alone(after, tokenizer, row, s) - alone(before, tokenizer, row, s) for s in ("chosen", "rejected")]
        assert gains[0] > max(0.0, gains[1] + 1.0)
    log = [json.loads(line) for line in checkpoint.file("training.jsonl").read_text().splitlines()]
    # The start is its own reference; a head that is trained too is multiplied another way for its gradient.
    assert log[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert log[-1]["accuracy"] == 1.0
    assert json.loads(checkpoint.file("liuyi.json").read_text())["watch"] is None
    assert run_dpo(home, tmp_path / "again", inputs, **params).digest == checkpoint.digest


def test_a_gentle_run_is_looked_at_and_goes_on(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    inputs = publish(home, tokenizer, preferences(), small_model(tokenizer.vocab_size))
    asked = {"samples_every": 10, "sample_prompts": ("light in the hall on",), "sample_tokens": 4}
    checkpoint = run_dpo(home, tmp_path / "work", inputs, max_steps=12, lr=1e-5, **asked)
    about = json.loads(checkpoint.file("liuyi.json").read_text())
    assert [look["step"] for look in about["watch"]["history"]] == [0, 5, 10, 12]
    said = [json.loads(line) for line in checkpoint.file("samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in said] == [
        (10, "light in the hall on"),
        (12, "light in the hall on"),
    ]
    assert checkpoint.manifest.metrics["pairs_s"] > 0
    assert (about["steps"], about["stopped"], about["watch"]["reverted_to"]) == (12, "", None)


SAMPLES = {"samples_every": 1000, "sample_tokens": 2}
"""After the last step, that is."""


def test_a_collapse_stops_the_run_and_goes_back(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A learning rate far too high: the checkpoint is the start model, and says why."""
    inputs = publish(home, tokenizer, preferences(), small_model(tokenizer.vocab_size))
    checkpoint = run_dpo(
        home, tmp_path / "work", inputs, max_steps=40, lr=0.5, nll_weight=0.0, clip_norm=100.0, **SAMPLES
    )
    about = json.loads(checkpoint.file("liuyi.json").read_text())
    assert about["steps"] == 5
    assert about["watch"]["reverted_to"] == 0
    assert {row["step"] for row in read_samples(checkpoint.path)} == {5}
    assert about["stopped"].startswith(about["watch"]["reason"])
    before, after = load_model(inputs["model"].path), load_model(checkpoint.path)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


START = Figures(chosen_logprob=-0.5, kl=0.0, entropy=0.4, repetition=0.1, distinct_2=0.6, length=30.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chosen_logprob": -1.2}, "chosen log-probability"),
        ({"kl": 0.7}, "KL to the reference"),
        ({"entropy": 1.6}, "entropy"),
        ({"entropy": 0.001}, "entropy"),
        ({"repetition": 0.35}, "repetition"),
        ({"distinct_2": 0.2}, "distinct bigrams"),
        ({"length": 90.0}, "answer length"),
        ({"length": 3.0}, "answer length"),
        ({"kl": math.nan}, "not finite"),
    ],
)
def test_each_figure_has_its_bound(change: dict[str, float], named: str) -> None:
    assert named in replace(START, **change).breach(START, Thresholds())


def test_what_is_within_bounds_passes() -> None:
    assert START.breach(START, Thresholds()) == ""
    moved = Figures(chosen_logprob=-0.7, kl=0.2, entropy=0.2, repetition=0.2, distinct_2=0.5, length=40.0)
    assert moved.breach(START, Thresholds()) == ""


def test_figures_of_planted_models(tokenizer: Tokenizer) -> None:
    """KL, entropy and log-probability against a forward pass of each prompt alone; a policy equal to its reference
    has no KL; a policy that says one token for ever repeats itself."""
    table = preferences(6)
    reference, policy = small_model(tokenizer.vocab_size).eval(), small_model(tokenizer.vocab_size, seed=3).eval()
    probe = Probe.choose(table, chosen_of(encode_pairs(table, tokenizer, 96).pairs), tokenizer, 6, seed=1, seq_len=96)
    assert probe.look(reference, reference).kl == pytest.approx(0, abs=1e-6)
    narrow = replace(probe, compute_dtype=torch.bfloat16).look(policy, reference)
    kl, entropy, chosen, count = 0.0, 0.0, 0.0, 0
    for row in table:
        ids, said = encode_chat(tokenizer, [*row["prompt"], {"role": "assistant", "content": row["chosen"]}])
        with torch.no_grad():
            ours, theirs = (m.logits(m(torch.tensor([ids]))).log_softmax(-1)[0] for m in (policy, reference))
        for at in range(1, len(ids)):
            if said[at]:
                p = ours[at - 1].exp()
                kl += float((p * (ours[at - 1] - theirs[at - 1])).sum())
                entropy -= float((p * ours[at - 1]).sum())
                chosen += float(ours[at - 1, ids[at]])
                count += 1
    figures = probe.look(policy, reference)
    assert figures.kl == pytest.approx(kl / count, rel=1e-3)
    assert figures.entropy == pytest.approx(entropy / count, rel=1e-3)
    assert figures.chosen_logprob == pytest.approx(chosen / count, rel=1e-3)
    assert narrow.chosen_logprob != figures.chosen_logprob
    assert narrow.chosen_logprob == pytest.approx(chosen / count, rel=1e-2)
    assert narrow.kl == pytest.approx(kl / count, rel=3e-2)
    with torch.no_grad():
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        policy.model.embed_tokens.weight.copy_(torch.nn.functional.normalize(torch.randn(policy.config.vocab_size, 32)))
        policy.model.embed_tokens.weight.mul_(10)
    stuck = probe.look(policy, reference)
    assert stuck.repetition > 0.9
    assert stuck.distinct_2 < 0.2


def test_repetition() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)


def test_the_watch_is_part_of_a_checkpoint(tokenizer: Tokenizer) -> None:
    table = preferences(6)
    model, reference = small_model(tokenizer.vocab_size), small_model(tokenizer.vocab_size)
    probe = Probe.choose(table, chosen_of(encode_pairs(table, tokenizer, 96).pairs), tokenizer, 4, seed=1, seq_len=96)

    class Deaf:
        def metric(self, name: str, value: float, index: int | None = None) -> None:
            pass

    def watch() -> CollapseWatch:
        return CollapseWatch(probe, model, reference, every=2, steps=10, observer=Deaf())

    first = watch()
    with torch.no_grad():
        model.model.norm.weight.add_(0.01)
    assert first.after_step(model, 1) == ""
    assert first.after_step(model, 2) == ""
    saved = json.loads(json.dumps(first.state()))
    second = watch()
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()}, saved)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    reason = second.after_step(model, 4)
    assert "not finite" in reason
    assert "step 2" in reason
    torch.testing.assert_close(model.model.norm.weight.detach(), torch.full((32,), 1.01))
    assert second.report()["reverted_to"] == 2
    assert asdict(second.start)["kl"] == pytest.approx(0, abs=1e-6)


def test_an_answer_without_tokens_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Where the template ends an answer by a token, that much is learnt; where it does not, there is nothing."""
    table: list[dict[str, Any]] = [*preferences(3)]
    table[1]["rejected"] = ""
    assert int(encode_pairs(table, tokenizer, 96).pairs[1].rejected.learnt.sum()) == 1
    tokenizer.save(tmp_path)
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    asks = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    endless = Tokenizer.load(tmp_path)
    endless.chat_template = bare + asks
    encoded = encode_pairs(table, endless, 96)
    assert [pair.id for pair in encoded.pairs] == ["p0", "p2"]
    assert encoded.left_out == {"p1": "the answer is empty"}
