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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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

    def guess(self, sequence: Running) -> int | None:
        """The token that it would draft first, where it knows that at once; None if it would have to work."""

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

    def judge(self, right: bool) -> None:
        self.judged += 1
        self.agreement += max(_GAIN, 1 / (1 + self.judged)) * (right - self.agreement)


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
        self._guesses: dict[int, tuple[int, int]] = {}
        """Of sequences that nothing was drafted for, where a token was expected, and which."""
        self._steps, self._patience = 0, _TRY_AGAIN
        self._tried: dict[int, bool] = {}
        """Sequences that were tried last, and whether the token was right."""
        self._usual = _FIRST_AGREEMENT
        """The agreement that sequences end with: what is expected of new ones."""

    def draft(self, sequences: Sequence[Running], choose: Choose) -> dict[int, list[int]]:
        """Drafts for sequences that generate, by their ids."""
        open = {sequence.id: sequence for sequence in sequences if not sequence.is_closed}
        self._judge_guesses(open)
        rooms = {id: room for id, sequence in open.items() if (room := self._room(sequence))}
        step_s = self._pace.step_s(len(sequences))
        ready = bool(rooms) and step_s is not None and not self._pace.looks(len(sequences))
        lengths = self._lengths(rooms, len(sequences), step_s) if ready and step_s else {}
        guesses = {id: self._drafter.guess(open[id]) for id in rooms if id not in lengths}
        if ready and self._tries_again(bool(lengths)):
            # What was hard to guess may have become easy. All in one step: the first token costs more than the next.
            self._tried = {id: False for id, guess in guesses.items() if guess is None}
            lengths |= dict.fromkeys(self._tried, 1)
        wanted = [(open[id], length) for id, length in lengths.items()]
        drafts = {}
        for (sequence, _), tokens in zip(wanted, self._drafter.draft(wanted, choose) if wanted else [], strict=True):
            if sequence.matcher is not None:
                tokens = tokens[: sequence.matcher.agrees(tokens)]
            if tokens:
                drafts[sequence.id] = tokens
        self._guesses = {id: (len(open[id].tokens), guess) for id, guess in guesses.items() if guess is not None}
        return drafts

    def learn(self, sequence: Running, drafted: int, accepted: int) -> None:
        """So many drafted tokens were read, and the first `accepted` of them were right."""
        self.drafted += drafted
        self.accepted += accepted
        if sequence.id in self._tried:
            self._tried[sequence.id] = accepted > 0
        record = self._record(sequence.id)
        for at in range(min(accepted + 1, drafted)):
            record.judge(at < accepted)

    def forget(self, sequence: Running) -> None:
        """The sequence has ended."""
        record = self._records.pop(sequence.id, None)
        if record is not None and record.judged:
            self._usual += _GAIN * (record.agreement - self._usual)
        self._drafter.forget(sequence)

    def _judge_guesses(self, open: Mapping[int, Running]) -> None:
        """Learn from tokens that were expected but not drafted, which costs nothing."""
        for id, (position, token) in self._guesses.items():
            if id in open and position < len(open[id].tokens):
                self._record(id).judge(open[id].tokens[position] == token)
        self._guesses = {}

    def _tries_again(self, drafts: bool) -> bool:
        """Whether all are to be tried in this step, whatever they promise: ever more rarely while drafts do not pay."""
        self._steps += 1
        if drafts or 2 * sum(self._tried.values()) > len(self._tried):
            self._patience = _TRY_AGAIN
        elif self._tried:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._tried = {}
        if self._steps < self._patience:
            return False
        self._steps = 0
        return True

    def _room(self, sequence: Running) -> int:
        return max(0, min(self._drafter.offers(sequence), sequence.limit - len(sequence.tokens) - 1))

    def _lengths(self, rooms: Mapping[int, int], sequences: int, step_s: float) -> dict[int, int]:
        """The lengths of drafts of which so many sequences get most tokens in a time, those above zero, where a step
        without drafts takes so many seconds.

        Each drafted token is right with the same probability, if those before it are. So the next best token is always
        the next one of some draft, and what is to be found is how many tokens there are in all, and of the longest.
        """
        most_right = max(self._record(id).agreement for id in rooms)
        if most_right * step_s <= sequences * self._pace.verify_cost.least_token_s:
            return {}  # as is usual where guesses are wrong: all that follows takes 1 % of a step
        ids, depths = np.array(list(rooms)), np.arange(1, max(rooms.values()) + 1)
        agreements = np.array([self._record(id).agreement for id in rooms])
        at, of = np.nonzero(depths[:, None] <= np.array(list(rooms.values())))
        depths = depths[at]
        chances: NDArray[np.float64] = agreements[of] ** depths
        order = np.argsort(-chances, kind="stable")
        chances, depths, of = chances[order], depths[order], of[order]
        most, cost = self._pace.verify_cost.most, self._pace.verify_cost
        took_s = step_s + cost.seconds(np.arange(min(most, len(chances)) + 1))

        def rates(chances: NDArray[np.float64], longest: int) -> NDArray[np.float64]:
            """Of none, one, two, … of these drafted tokens."""
            expected = sequences + np.concatenate([[0.0], chances.cumsum()])
            return expected / (took_s[: len(expected)] + self._drafter.token_s * longest)

        best, best_rate = of[:0], sequences / step_s
        for longest in range(1, max(rooms.values()) + 1):
            taken = np.flatnonzero(depths <= longest)[:most]
            found = rates(chances[taken], longest)
            count = int(found.argmax())
            if found[count] > best_rate:
                best, best_rate = of[taken[:count]], found[count]
        counted = np.bincount(best, minlength=len(ids))
        return {int(id): int(count) for id, count in zip(ids, counted, strict=True) if count}

    def _record(self, id: int) -> _Record:
        return self._records.setdefault(id, _Record(self._usual))


_FIRST_AGREEMENT = 0.5
_GAIN = 0.1
_TRY_AGAIN, _MOST_PATIENCE = 16, 256
"""Steps after which all are tried anew, at first and at most."""
