"""Objectives against trl's trainers, against formulas written out in plain Python, and against themselves in parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_support import golden_head, preferences, small_model, small_tokenizer, with_reference
from torch import Tensor

from liuyi.align import objectives
from liuyi.align.answers import answer_logprobs
from liuyi.align.labels import Label, LabelRows, encode_labels, with_reference_point
from liuyi.align.pairs import Pair, PairRows, encode_pairs
from liuyi.align.preference import Kto, PairObjective
from liuyi.align.reward_model import BradleyTerry, RewardRows
from liuyi.core.errors import DataError
from liuyi.model.decoder import Decoder
from liuyi.model.reward import RewardModel
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import ShuffledBatches
from liuyi.train.interfaces import Loss
from liuyi.train.lm import CausalLM
from liuyi.train.packing import Example, PackedRows

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
SEQ_LEN = 96


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def example(found: dict[str, list[int]]) -> Example:
    return Example(np.array(found["tokens"]), np.array(found["learnt"], dtype=np.bool_))


def golden_pairs() -> list[Pair]:
    return [
        Pair(str(at), example(each["chosen"]), example(each["rejected"]), each["margin"])
        for at, each in enumerate(GOLDEN["pairs"])
    ]


def models() -> tuple[Decoder, Decoder]:
    """The policy and the reference of the golden values."""
    return small_model(GOLDEN["vocab_size"], seed=2), small_model(GOLDEN["vocab_size"], seed=1)


def check(model: torch.nn.Module, loss: Loss, name: str) -> None:
    """Mean loss and the norm of its gradient, to one part in 100,000."""
    mean = loss.total / loss.count
    mean.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert mean.item() == pytest.approx(GOLDEN[name]["loss"], rel=1e-5)
    assert float(norm) == pytest.approx(GOLDEN[name]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("dpo", PairObjective("dpo", beta=0.3)),
        ("cdpo", PairObjective("cdpo", beta=0.3, label_smoothing=0.2)),
        ("ipo", PairObjective("ipo", beta=0.3)),
        ("simpo", PairObjective("simpo", beta=2.0, gamma=0.7)),
    ],
)
def test_pairs_cost_what_they_cost_in_trl(name: str, objective: PairObjective) -> None:
    policy, reference = models()
    rows = with_reference(PairRows(golden_pairs(), SEQ_LEN, pad_id=3), reference.eval())
    check(policy, objective(policy, rows.read(np.arange(5))), name)


def test_the_odds_ratio_is_trls() -> None:
    """trl's likelihood term is of the prompt too, so it is left out of both."""
    policy, _ = models()
    batch = PairRows(golden_pairs(), SEQ_LEN, pad_id=3).read(np.arange(5))
    loss = PairObjective("orpo", beta=0.3)(policy, batch)
    means = answer_logprobs(policy, batch).view(-1, 2) / batch.lengths.view(-1, 2)
    check(policy, Loss(loss.total + means[:, 0].sum(), loss.count, {}), "orpo")


def test_labels_cost_what_they_cost_in_trl() -> None:
    """The reference point among it."""
    policy, reference = models()
    labels = [
        Label(str(at), example(each["answer"]), each["desirable"], example(each["mismatched"]))
        for at, each in enumerate(GOLDEN["labels"])
    ]
    rows = with_reference(LabelRows(labels, SEQ_LEN, pad_id=3), reference.eval())
    batches = with_reference_point(ShuffledBatches(rows, batch_rows=len(rows), seed=0), policy)
    (batch,) = batches(0)
    check(policy, Kto(0.4, (1.3, 0.8))(policy, batch), "kto")


def test_rewards_cost_what_they_cost_in_trl() -> None:
    """With margins."""
    reward = RewardModel(models()[0])
    reward.score.weight.data.copy_(golden_head(32))
    rows = RewardRows(PairRows(golden_pairs(), SEQ_LEN, pad_id=3))
    check(reward, BradleyTerry()(reward, rows.read(np.arange(5))), "reward")


def test_conversations_cost_what_they_cost_in_trl() -> None:
    policy, _ = models()
    rows = PackedRows([pair.chosen for pair in golden_pairs()], SEQ_LEN, pad_id=3)
    check(policy, CausalLM()(policy, rows.read(np.arange(len(rows)))), "sft")


POLICY = torch.tensor([[-3.0, -5.0], [-4.0, -2.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-3.5, -4.0], [-4.5, -2.5]], dtype=torch.float64)
LENGTHS = torch.tensor([[3.0, 4.0], [2.0, 5.0]], dtype=torch.float64)
WANTED, KL = torch.tensor([[True, False], [False, True]]), torch.tensor(0.2, dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "dpo": lambda p: objectives.dpo(p, REFERENCE, 0.3),
    "cdpo": lambda p: objectives.cdpo(p, REFERENCE, 0.3, 0.1),
    "ipo": lambda p: objectives.ipo(p, REFERENCE, LENGTHS, 0.3),
    "simpo": lambda p: objectives.simpo(p, LENGTHS, 2.0, 0.5),
    "orpo": lambda p: objectives.orpo(p, LENGTHS, 0.3),
    "kto": lambda p: objectives.kto(p - REFERENCE, WANTED, KL, 0.3, (1.0, 2.0)),
    "bradley_terry": lambda p: objectives.bradley_terry(p, torch.tensor([0.0, 1.5], dtype=torch.float64)),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, n: int) -> float:
    """The papers' formulas on plain numbers; `kto` of the chosen answer."""
    (pc, pr), (rc, rr), (lc, lr) = (each[n].tolist() for each in (POLICY, REFERENCE, LENGTHS))
    lead = (pc - rc) - (pr - rr)
    match name:
        case "dpo":
            return -math.log(sigmoid(0.3 * lead))
        case "cdpo":
            return -0.9 * math.log(sigmoid(0.3 * lead)) - 0.1 * math.log(sigmoid(-0.3 * lead))
        case "ipo":
            return float(((pc - rc) / lc - (pr - rr) / lr - 1 / 0.6) ** 2)
        case "simpo":
            return -math.log(sigmoid(2 * (pc / lc - pr / lr) - 0.5))
        case "orpo":
            odds = [math.exp(m) / (1 - math.exp(m)) for m in (pc / lc, pr / lr)]
            return -pc / lc - 0.3 * math.log(sigmoid(math.log(odds[0] / odds[1])))
        case "kto":
            return 1 - sigmoid(0.3 * (pc - rc - 0.2)) if n == 0 else 2 * (1 - sigmoid(0.3 * (0.2 - (pc - rc))))
    return -math.log(sigmoid(pc - pr - (0.0, 1.5)[n]))


@pytest.mark.parametrize("name", list(LOSSES))
def test_each_loss_is_its_formula_and_its_gradient_that_of_the_formula(name: str) -> None:
    losses = LOSSES[name](POLICY)
    for n in range(2):
        found = losses[n, 0] if name == "kto" else losses[n]
        assert found.item() == pytest.approx(by_hand(name, n), rel=1e-6)
    assert torch.autograd.gradcheck(LOSSES[name], (POLICY.clone().requires_grad_(),))


def test_odds_of_certain_answers_are_finite() -> None:
    """An answer of probability one, and one of nearly none."""
    policy = torch.tensor([[0.0, -800.0], [-1e-9, -1e-9]], requires_grad=True)
    losses = objectives.orpo(policy, torch.ones(2, 2), beta=1.0)
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    assert bool(policy.grad.isfinite().all())  # type: ignore[union-attr]


def gradients(model: torch.nn.Module, parts: list[Loss]) -> tuple[float, int, list[Tensor]]:
    model.zero_grad()
    for part in parts:
        part.total.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return sum(part.total.item() for part in parts), sum(part.count for part in parts), grads


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "simpo", "orpo", "kto", "reward"])
def test_eight_parts_of_one_learn_as_one_of_eight(name: str, tokenizer: Tokenizer) -> None:
    """Sums over pairs (answers with KTO), divided once; KTO's reference point is of the whole batch in both."""
    table = preferences(12)
    for number, row in enumerate(table):
        row["chosen"] += " on" * (number % 5)
    policy, reference = small_model(tokenizer.vocab_size, 2), small_model(tokenizer.vocab_size, 1).eval()
    model: Any = policy
    found = []
    for micro in (8, 1):
        rows: Any
        if name == "kto":
            rows = with_reference(LabelRows(encode_labels(table, tokenizer, SEQ_LEN).labels, SEQ_LEN, 3), reference)
        else:
            rows = with_reference(PairRows(encode_pairs(table, tokenizer, SEQ_LEN).pairs, SEQ_LEN, 3), reference)
        batches: Any = ShuffledBatches(
            RewardRows(rows) if name == "reward" else rows, batch_rows=8, seed=4, micro_rows=micro
        )
        objective: Any = PairObjective(name, beta=0.5, nll_weight=0.3)  # type: ignore[arg-type]
        if name == "kto":
            batches, objective = with_reference_point(batches, policy), Kto(0.5, (1.0, 1.5))
        elif name == "reward":
            model, objective = RewardModel(policy), BradleyTerry()
            model.score.weight.data.copy_(golden_head(32))
        parts = batches(3)
        assert len(parts) == 8 // micro
        found.append(gradients(model, [objective(model, part) for part in parts]))
    (loss, count, grads), (split_loss, split_count, split_grads) = found
    assert count == split_count == 8
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(grads, split_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_reference_point_is_the_mean_gain_of_mismatched_answers(tokenizer: Tokenizer) -> None:
    """One by one, and never below zero."""
    policy, reference = small_model(tokenizer.vocab_size, 2).eval(), small_model(tokenizer.vocab_size, 1).eval()
    labels = encode_labels(preferences(6), tokenizer, SEQ_LEN).labels
    rows = with_reference(LabelRows(labels, SEQ_LEN, 3), reference)

    def logprob(model: Decoder, each: Example) -> float:
        ids = torch.from_numpy(each.tokens)
        with torch.no_grad():
            scores = model.logits(model(ids[None]))[0].log_softmax(-1)
        return sum(float(scores[at - 1, ids[at]]) for at in range(1, len(ids)) if each.learnt[at])

    for subject, other in ((policy, reference), (reference, policy)):
        rows = with_reference(LabelRows(labels, SEQ_LEN, 3), other)
        batches = with_reference_point(ShuffledBatches(rows, batch_rows=6, seed=1, micro_rows=4), subject)
        inner = ShuffledBatches(rows, batch_rows=6, seed=1)
        chosen = [labels[row] for row in inner.row_numbers(0)]
        gain = sum(logprob(subject, each.mismatched) - logprob(other, each.mismatched) for each in chosen) / 6
        for part in batches(0):
            assert float(part.kl) == pytest.approx(max(0.0, gain), rel=1e-3, abs=1e-6)


def test_a_mismatched_answer_is_one_to_another_prompt(tokenizer: Tokenizer) -> None:
    table = preferences(4)
    labels = encode_labels(table, tokenizer, SEQ_LEN).labels
    assert [label.desirable for label in labels] == [True, False] * 4
    prompts = {row["id"]: row["prompt"] for row in table}
    for label in labels:
        text = tokenizer.decode(label.mismatched.tokens.tolist())
        assert prompts[label.id][0]["content"] in text
        said = tokenizer.decode(label.mismatched.tokens[label.mismatched.learnt].tolist()).removesuffix("<|im_end|>")
        others = {row[side] for row in table if row["id"] != label.id for side in ("chosen", "rejected")}
        assert said in others
    with pytest.raises(DataError, match="one prompt"):
        encode_labels(table[:1], tokenizer, SEQ_LEN)


def test_labels_come_from_either_side(tokenizer: Tokenizer) -> None:
    table = preferences(3)
    table[0]["rejected"] = None
    table[1]["chosen"] = None
    table[2]["chosen"] = "yes " * 200
    encoded = encode_labels(table, tokenizer, SEQ_LEN)
    assert [(label.id, label.desirable) for label in encoded.labels] == [("p0", True), ("p1", False), ("p2", False)]
    assert "more than 96" in encoded.left_out["p2"]


def test_the_figures_of_kto_are_means_over_its_answers(tokenizer: Tokenizer) -> None:
    """The margin is what the loss is a sigmoid of, for wanted and unwanted answers alike."""
    policy, reference = small_model(tokenizer.vocab_size, seed=2), small_model(tokenizer.vocab_size).eval()
    rows = with_reference(LabelRows(encode_labels(preferences(4), tokenizer, SEQ_LEN).labels, SEQ_LEN, 3), reference)
    (batch,) = with_reference_point(ShuffledBatches(rows, batch_rows=8, seed=0), policy)(0)
    loss = Kto(0.5)(policy, batch)
    gain = answer_logprobs(policy, batch.answers) - batch.answers.reference
    leads = [
        0.5 * (each - batch.kl.item()) * (1 if wanted else -1)
        for each, wanted in zip(gain.tolist(), batch.desirable.tolist(), strict=True)
    ]
    assert loss.metrics["margin"].item() == pytest.approx(sum(leads), rel=1e-4)
    assert loss.metrics["accuracy"].item() == sum(lead > 0 for lead in leads)
    assert loss.total.item() == pytest.approx(sum(1 - sigmoid(lead) for lead in leads), rel=1e-4)
