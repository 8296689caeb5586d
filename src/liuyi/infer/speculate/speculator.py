"""Speculation: tokens that probably come next are read together with the last one, and kept where they are right.

    engine = Engine(model, tokenizer, drafter=PromptLookup())
    engine = Engine(model, tokenizer, drafter=DraftModel(runner))

A step over k more tokens costs little more than one over a single token where memory is the bound. What the model says
after each of them is sampled as usual; as long as that is what was drafted, the next is sampled too. Sampling is a
function of seed, position and logits, so the output is what it would be without, at any temperature, with grammars,
penalties and stop strings; drafts only decide how many steps it takes (compare arXiv 2211.17192, where output has the
same distribution only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from liuyi.infer.pace import Pace
from liuyi.infer.sequence import Sequence as Running

Sample = Callable[[Sequence[Running], Sequence[int], Tensor], list[int]]
"""A token for each row of logits, of these sequences, so many tokens further than they are."""


class Drafter(Protocol):
    """Guesses what comes next."""

    most: int
    """Tokens of a draft, at most."""

    def draft(self, wanted: Sequence[tuple[Running, int]], sample: Sample) -> list[list[int]]:
        """At most so many tokens that may follow each sequence; none where there is nothing to go by."""

    def forget(self, sequence: Running) -> None:
        """The sequence has ended."""

    @property
    def token_s(self) -> float:
        """What drafting a token for every sequence takes, in seconds."""


@dataclass(slots=True)
class _Record:
    """How well drafts for a sequence went."""

    agreement: float = 0.7
    """Part of drafted tokens that were right, each judged only if those before it were: a running mean."""
    silent: int = 0
    """Steps since the last draft."""


class Speculator:
    """Decides how long drafts are, from how often they are right and what they cost."""

    def __init__(self, drafter: Drafter, pace: Pace) -> None:
        self.drafted = 0
        self.accepted = 0
        self._drafter = drafter
        self._pace = pace
        self._records: dict[int, _Record] = {}

    def draft(self, sequences: Sequence[Running], sample: Sample) -> dict[int, list[int]]:
        """Drafts for sequences that generate, by their ids."""
        cost = self._cost(len(sequences))
        if cost is None:
            return {}
        wanted = []
        for sequence in sequences:
            room = sequence.limit - len(sequence.tokens) - 1
            length = min(room, self._length(self._records.setdefault(sequence.id, _Record()), cost))
            if length > 0 and not sequence.is_closed:
                wanted.append((sequence, length))
        if not wanted:
            return {}
        drafts = {}
        for (sequence, _), tokens in zip(wanted, self._drafter.draft(wanted, sample), strict=True):
            if sequence.matcher is not None:
                tokens = tokens[: sequence.matcher.agrees(tokens)]
            if tokens:
                drafts[sequence.id] = tokens
        return drafts

    def learn(self, sequence: Running, drafted: int, accepted: int) -> None:
        """So many drafted tokens were read, and the first `accepted` of them were right."""
        self.drafted += drafted
        self.accepted += accepted
        record = self._records.setdefault(sequence.id, _Record())
        record.silent = 0
        for at in range(min(accepted + 1, drafted)):
            record.agreement += _GAIN * ((at < accepted) - record.agreement)

    def forget(self, sequence: Running) -> None:
        """The sequence has ended."""
        self._records.pop(sequence.id, None)
        self._drafter.forget(sequence)

    def _cost(self, sequences: int) -> float | None:
        """What a drafted token for each sequence adds to a step, in steps; None while that is to be seen."""
        step_s = self._pace.step_s(sequences)
        if step_s is None or self._pace.looks(sequences):
            return None
        verified_s = sequences * (self._pace.token_s or _FIRST_COST * step_s)
        return (verified_s + self._drafter.token_s) / step_s

    def _length(self, record: _Record, cost: float) -> int:
        """The length that gives most tokens in a time, if each drafted token is right with the same probability."""
        best, best_rate, expected, chance = 0, 1.0, 1.0, 1.0
        for length in range(1, self._drafter.most + 1):
            chance *= record.agreement
            expected += chance
            rate = expected / (1 + cost * length)
            if rate > best_rate:
                best, best_rate = length, rate
        if not best:
            record.silent += 1
            # Now and then it is tried all the same: what was hard to guess may have become easy.
            return 1 if record.silent % _TRY_AGAIN == 0 else 0
        return best


_GAIN = 0.1
_FIRST_COST = 0.1
_TRY_AGAIN = 16
