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

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from liuyi.infer.pace import Pace
from liuyi.infer.runner import Batch, Runner
from liuyi.infer.sequence import Sequence as Running

Choose = Callable[[Runner, Batch, Sequence[Running], int], list[int]]
"""Lets a runner read a batch, and chooses the token after each of its rows, which are of these sequences, all so many
tokens further than they are."""


class Drafter(Protocol):
    """Guesses what comes next."""

    def offers(self, sequence: Running) -> int:
        """How many tokens it could draft for a sequence, as far as is known without drafting them."""

    def draft(self, wanted: Sequence[tuple[Running, int]], choose: Choose) -> list[list[int]]:
        """At most so many tokens that may follow each sequence; none where there is nothing to go by."""

    def forget(self, sequence: Running) -> None:
        """The sequence has ended."""

    @property
    def token_s(self) -> float:
        """What drafting a token for every sequence takes, in seconds."""


@dataclass(slots=True)
class _Record:
    """How well drafts for a sequence went."""

    agreement: float
    """Part of drafted tokens that were right, each judged only if those before it were: a running mean."""
    judged: int = 0
    """How many of its tokens that comes from."""


class Speculator:
    """Decides how long drafts are, from how often they are right and what they cost.

    All drafts of a step together, for they share its time (compare arXiv 2406.14066): the longest of which a step gives
    most tokens in its time.
    """

    def __init__(self, drafter: Drafter, pace: Pace) -> None:
        self.drafted = 0
        self.accepted = 0
        self._drafter = drafter
        self._pace = pace
        self._records: dict[int, _Record] = {}
        self._steps = 0
        self._usual = _FIRST_AGREEMENT
        """The agreement that sequences end with: what is expected of new ones."""

    def draft(self, sequences: Sequence[Running], choose: Choose) -> dict[int, list[int]]:
        """Drafts for sequences that generate, by their ids."""
        open = {sequence.id: sequence for sequence in sequences if not sequence.is_closed}
        rooms = {id: self._room(sequence) for id, sequence in open.items()}
        lengths = self._lengths(rooms, len(sequences)) if any(rooms.values()) else {}
        wanted = [(open[id], length) for id, length in lengths.items()]
        if not wanted:
            return {}
        drafts = {}
        for (sequence, _), tokens in zip(wanted, self._drafter.draft(wanted, choose), strict=True):
            if sequence.matcher is not None:
                tokens = tokens[: sequence.matcher.agrees(tokens)]
            if tokens:
                drafts[sequence.id] = tokens
        return drafts

    def learn(self, sequence: Running, drafted: int, accepted: int) -> None:
        """So many drafted tokens were read, and the first `accepted` of them were right."""
        self.drafted += drafted
        self.accepted += accepted
        record = self._record(sequence.id)
        for at in range(min(accepted + 1, drafted)):
            record.judged += 1
            record.agreement += max(_GAIN, 1 / (1 + record.judged)) * ((at < accepted) - record.agreement)

    def forget(self, sequence: Running) -> None:
        """The sequence has ended."""
        record = self._records.pop(sequence.id, None)
        if record is not None and record.judged:
            self._usual += _GAIN * (record.agreement - self._usual)
        self._drafter.forget(sequence)

    def _room(self, sequence: Running) -> int:
        return max(0, min(self._drafter.offers(sequence), sequence.limit - len(sequence.tokens) - 1))

    def _lengths(self, rooms: Mapping[int, int], sequences: int) -> dict[int, int]:
        """The lengths of drafts of which so many sequences get most tokens in a time, those above zero.

        Each drafted token is right with the same probability, if those before it are. So the next best token is always
        the next one of some draft, and what is to be found is how many tokens there are in all, and of the longest.
        """
        step_s = self._pace.step_s(sequences)
        if step_s is None or self._pace.looks(sequences):
            return {}
        chances = [
            (self._record(id).agreement ** depth, depth, id)
            for id, room in rooms.items()
            for depth in range(1, room + 1)
        ]
        chances.sort(key=lambda chance: (-chance[0], chance[1]))
        most, cost = self._pace.verify_cost.most, self._pace.verify_cost
        took_s = step_s + np.array([cost.seconds(count) for count in range(min(most, len(chances)) + 1)])
        best: list[tuple[float, int, int]] = []
        best_rate = sequences / step_s
        for longest in range(1, max(rooms.values()) + 1):
            taken = [chance for chance in chances if chance[1] <= longest][:most]
            expected = sequences + np.cumsum([0.0, *(chance for chance, _, _ in taken)])
            rates = expected / (took_s[: len(expected)] + self._drafter.token_s * longest)
            count = int(rates.argmax())
            if rates[count] > best_rate:
                best, best_rate = taken[:count], rates[count]
        lengths = dict(Counter(id for _, _, id in best))
        self._steps += 1
        if self._steps % _TRY_AGAIN == 0:
            # What was hard to guess may have become easy. All in one step: the first token costs more than the next.
            lengths = {id: lengths.get(id, 1) for id, room in rooms.items() if room}
        return lengths

    def _record(self, id: int) -> _Record:
        return self._records.setdefault(id, _Record(self._usual))


_FIRST_AGREEMENT = 0.5
_GAIN = 0.1
_TRY_AGAIN = 16
