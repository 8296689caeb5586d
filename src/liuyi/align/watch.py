"""The collapse watch: is a model that learns preferences still a model that can talk?

Every so many steps the policy is looked at on a fixed probe set. When a figure leaves its bounds, training stops and
the weights go back to those of the last probe that was within them. Bounds are relative to the model at the start.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liuyi.core.effect import Table
from liuyi.core.errors import DataError
from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.request import Request
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.interfaces import Listener
from liuyi.train.packing import Example, lay_out, pack
from liuyi.train.parallel.gather import gather_model
from liuyi.train.world import World


@dataclass(frozen=True)
class Thresholds:
    """How far the policy may go from where it started."""

    chosen_drop: float = 0.5
    """Fall of the chosen answers' log-probability, in nats a token."""
    kl: float = 0.5
    """KL(policy ‖ reference) on the chosen answers, in nats a token."""
    entropy_rise: float = 1.0
    """In nats a token."""
    entropy_left: float = 0.05
    """Part of the start's entropy that must be left; looked at only where the start had 0.1 nats or more."""
    repetition_rise: float = 0.2
    """Rise of the part of an answer's 4-grams that it has had before."""
    distinct_left: float = 0.5
    """Part of the start's distinct bigrams over all answers that must be left."""
    length_factor: float = 2.0
    """Answers may become this much longer or shorter on average, and 8 tokens besides."""


@dataclass(frozen=True)
class Figures:
    """What a probe shows."""

    chosen_logprob: float
    """Mean log-probability of the chosen answers' tokens."""
    kl: float
    entropy: float
    repetition: float
    distinct_2: float
    length: float
    """Mean tokens of a greedy answer."""

    def breach(self, start: Figures, bounds: Thresholds) -> str:
        """Which bound these figures break; empty when none."""
        if not all(math.isfinite(value) for value in asdict(self).values()):
            return "a figure of the probe is not finite"
        tests = [
            ("chosen log-probability", self.chosen_logprob, start.chosen_logprob - bounds.chosen_drop, "below"),
            ("KL to the reference", self.kl, bounds.kl, "above"),
            ("entropy", self.entropy, start.entropy + bounds.entropy_rise, "above"),
            ("entropy", self.entropy, start.entropy * bounds.entropy_left if start.entropy >= 0.1 else 0.0, "below"),
            ("repetition", self.repetition, start.repetition + bounds.repetition_rise, "above"),
            ("distinct bigrams", self.distinct_2, start.distinct_2 * bounds.distinct_left, "below"),
            ("answer length", self.length, start.length * bounds.length_factor + 8, "above"),
            ("answer length", self.length, start.length / bounds.length_factor - 8, "below"),
        ]
        for name, value, bound, side in tests:
            if (value > bound) if side == "above" else (value < bound):
                return f"{name} {value:.3f} is {side} {bound:.3f}"
        return ""


@dataclass(frozen=True)
class Probe:
    """Fixed prompts, with the chosen answers packed to be scored."""

    prompts: list[list[int]]
    chosen: list[Batch]
    tokenizer: Tokenizer
    max_tokens: int
    compute_dtype: torch.dtype
    """Of the matrix products, as in training; log-probabilities are taken in float32."""

    @classmethod
    def choose(
        cls,
        table: Sequence[Mapping[str, Any]],
        wanted: Sequence[tuple[str, Example]],
        tokenizer: Tokenizer,
        size: int,
        seed: int,
        seq_len: int,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Probe:
        """`size` of the wanted answers, by the ids of their rows in `table`, drawn by seed; each prompt once.

        Raises DataError where no answer is wanted.
        """
        if not wanted:
            raise DataError("no answer is wanted, so there is none to watch", hint="set watch: false, or label some")
        asked = {row["id"]: row for row in table}
        taken: dict[tuple[int, ...], Example] = {}
        for at in np.random.default_rng(seed).permutation(len(wanted)):
            id, answer = wanted[at]
            row = asked[id]
            ids, _ = encode_chat(tokenizer, row["prompt"], add_generation_prompt=True, tools=row.get("tools"))
            taken.setdefault(tuple(ids), answer)
            if len(taken) == size:
                break
        answers = list(taken.values())
        rows = pack([len(answer) for answer in answers], seq_len)
        laid = [[answers[number] for number in numbers] for numbers in rows]
        batches = [lay_out(laid[at : at + 8], seq_len, tokenizer.pad_id or 0) for at in range(0, len(laid), 8)]
        longest = max(int(answer.learnt.sum()) for answer in answers)
        return cls([list(ids) for ids in taken], batches, tokenizer, 2 * longest + 16, compute_dtype)

    @torch.no_grad()
    def look(self, policy: Decoder, reference: Decoder) -> Figures:
        """The figures of `policy`; its training mode is left as it was."""
        mode = policy.training
        policy.eval()
        scored = np.sum([self._score(policy, reference, batch) for batch in self.chosen], axis=0)
        outputs = self._answer(policy)
        policy.train(mode)
        bigrams = Counter(pair for ids in outputs for pair in pairwise(ids))
        return Figures(
            chosen_logprob=float(scored[0] / scored[3]),
            kl=float(scored[1] / scored[3]),
            entropy=float(scored[2] / scored[3]),
            repetition=float(np.mean([repetition(ids) for ids in outputs])),
            distinct_2=len(bigrams) / max(1, bigrams.total()),
            length=float(np.mean([len(ids) for ids in outputs])),
        )

    def _score(self, policy: Decoder, reference: Decoder, batch: Batch) -> tuple[float, float, float, int]:
        learnt = batch.targets != IGNORE
        device = policy.head_weight.device
        batch, learnt = batch.to(device), learnt.to(device)

        def logprobs(model: Decoder) -> Tensor:
            hidden = model(
                batch.tokens, positions=batch.positions, segments=batch.segments, compute_dtype=self.compute_dtype
            )
            return model.logits(hidden[learnt].float()).log_softmax(dim=-1)

        ours, theirs = logprobs(policy), logprobs(reference)
        chosen = ours.gather(1, batch.targets[learnt][:, None]).sum()
        kl = (ours.exp() * (ours - theirs)).sum()
        entropy = -(ours.exp() * ours).sum()
        return float(chosen), float(kl), float(entropy), len(ours)

    def _answer(self, policy: Decoder) -> list[list[int]]:
        """Greedy answers to the prompts, as token ids."""
        longest = max(map(len, self.prompts)) + self.max_tokens
        slots = min(64, len(self.prompts))
        runner = open_runner(
            policy, weights="reference", slots=slots, max_tokens=longest, compute_dtype=self.compute_dtype
        )
        engine = Engine(runner, self.tokenizer, max_slots=slots, max_tokens=longest)
        requests = [Request(prompt_ids=ids, max_tokens=self.max_tokens) for ids in self.prompts]
        return [list(completion.token_ids) for completion in engine.generate(requests)]


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Part of a sequence's n-grams that occurred in it before."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class CollapseWatch:
    """A `Monitor` of the training loop. Of several processes the first looks, and all learn what it saw."""

    probe: Probe
    policy: Decoder
    reference: Decoder | None
    """Nobody but the first process needs it."""
    every: int
    steps: int
    observer: Listener
    thresholds: Thresholds = field(default_factory=Thresholds)
    history: list[dict[str, float]] = field(default_factory=list)
    reason: str = ""
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if self.reference:
            self.reference.eval()
        if not self.history:
            self._record(0, self._look(self.policy))
        self.good = self._weights()
        self.good_step = 0

    def after_step(self, model: Decoder, step: int) -> str:
        """Look when it is time to; on a breach put the last good weights back and give the reason."""
        if step % self.every and step != self.steps:
            return ""
        figures = self._look(model)
        self._record(step, figures)
        self.reason = figures.breach(self.start, self.thresholds)
        if not self.reason:
            self.good, self.good_step = self._weights(), step
            return ""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.good:
                    parameter.copy_(self.good[name])
        return f"{self.reason}; back to the weights of step {self.good_step}"

    @property
    def start(self) -> Figures:
        """The figures before the first step."""
        return Figures(**{name: value for name, value in self.history[0].items() if name != "step"})

    def report(self) -> dict[str, Any]:
        """What the watch saw, for the checkpoint's `liuyi.json`."""
        return {
            "thresholds": asdict(self.thresholds),
            "history": self.history,
            "reason": self.reason,
            "reverted_to": self.good_step if self.reason else None,
        }

    def table(self) -> Table:
        """Every look, for the effect report."""
        names = tuple(asdict(self.start))
        return Table(
            title="The collapse watch",
            columns=("step", *(name.replace("_", " ") for name in names)),
            rows=tuple((int(look["step"]), *(round(look[name], 4) for name in names)) for look in self.history),
            note=f"on {len(self.probe.prompts)} fixed prompts; log-probability, KL and entropy in nats a token",
        )

    def tensors(self) -> dict[str, Tensor]:
        return self.good

    def state(self) -> dict[str, Any]:
        return {"history": list(self.history), "reason": self.reason, "good_step": self.good_step}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.good = tensors
        self.history, self.reason, self.good_step = list(state["history"]), state["reason"], state["good_step"]

    def _look(self, model: Decoder) -> Figures:
        """The figures of the model; where it is cut up, it is put together first."""
        layout = self.world.layout
        whole = model if layout.shard == layout.tensor == 1 else gather_model(model, self.world)
        seen = [0.0] * len(fields(Figures))
        if self.world.leads:
            assert whole is not None
            assert self.reference is not None
            seen = list(asdict(self.probe.look(whole.to(self.world.device), self.reference)).values())
        return Figures(*self.world.sum(seen))

    def _record(self, step: int, figures: Figures) -> None:
        self.history.append({"step": step, **asdict(figures)})
        for name, value in asdict(figures).items():
            self.observer.metric(f"watch.{name}", value, step)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.policy.named_parameters() if p.requires_grad}
