"""What a mixture will hold, before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from liuyi.core.effect import Block, Curves, Effect, Series, Table
from liuyi.core.errors import DataError, did_you_mean
from liuyi.data.mix.params import MixParams
from liuyi.train.mixture import Floats, Stretch, allot, natural_weights, ramp

MANY_EPOCHS = 4.0
"""Repeating text up to so often is nearly as good as new text (Muennighoff et al. 2023, "Scaling Data-Constrained
Language Models")."""
SPENT = 0.999


@dataclass(frozen=True)
class Plan:
    """Tokens of each source in each stretch of the mixture."""

    labels: tuple[str, ...]
    sizes: tuple[int, ...]
    """Tokens that there are of each source."""
    stretches: tuple[Stretch, ...]
    budget: int
    max_epochs: tuple[float, ...]
    tokens: Floats
    """`[stretches, sources]`"""

    @property
    def taken(self) -> Floats:
        """Tokens of each source in all."""
        return np.asarray(self.tokens.sum(axis=0))

    @property
    def asked(self) -> Floats:
        """The share of the budget that was asked for each source."""
        return np.asarray(sum(stretch.share * np.array(stretch.weights) for stretch in self.stretches))

    @property
    def epochs(self) -> Floats:
        """How often each source is gone through."""
        return np.asarray(self.taken / np.array(self.sizes))

    def table(self) -> Table:
        """One row a source."""
        got = self.taken / max(self.taken.sum(), 1.0)
        rows = [
            (label, size, f"{asked:.1%}", round(float(taken)), round(float(epochs), 2), f"{share:.1%}")
            for label, size, asked, taken, epochs, share in zip(
                self.labels, self.sizes, self.asked, self.taken, self.epochs, got, strict=True
            )
        ]
        return Table(
            title="Mixture",
            columns=("source", "tokens there", "asked", "tokens taken", "epochs", "got"),
            rows=tuple(rows),
        )

    def warnings(self) -> list[str]:
        """What somebody would want to know before training on it."""
        found = []
        for label, size, taken, epochs, asked, bound in zip(
            self.labels, self.sizes, self.taken, self.epochs, self.asked, self.max_epochs, strict=True
        ):
            if epochs >= bound * SPENT and asked * self.budget > taken * (1 + 1e-9):
                found.append(
                    f"{label}: asked for {asked * self.budget / size:.1f} passes, may be gone through {bound:g} times; "
                    "the rest is given to the others"
                )
            elif epochs > MANY_EPOCHS * (1 + 1e-9):
                found.append(f"{label}: gone through {epochs:.1f} times; after four, repeated text teaches little")
            elif not asked:
                found.append(f"{label}: has no weight and is left out")
        total = float(self.taken.sum())
        if total < self.budget * SPENT:
            found.append(f"{total:,.0f} tokens in place of {self.budget:,}: there is no more within `max_epochs`")
        return found

    def effect(self) -> Effect:
        """The plan as a report shows it."""
        blocks: list[Block] = [self.table()]
        if len(self.stretches) > 1:
            blocks.append(self._curriculum())
        total = float(self.taken.sum())
        said = [
            f"{total / 1e6:,.2f}M tokens of {int((self.taken > 0).sum())} sources.",
            *map(_sentence, self.warnings()),
        ]
        return Effect(stage="data", title="Mixture", summary=" ".join(said), blocks=tuple(blocks))

    def _curriculum(self) -> Curves:
        ends = np.cumsum([stretch.share for stretch in self.stretches])
        x = [edge for start, end in zip([0.0, *ends[:-1]], ends, strict=True) for edge in (float(start), float(end))]
        got = self.tokens / np.maximum(self.tokens.sum(axis=1, keepdims=True), 1.0)
        series = [
            Series(name=label, x=tuple(x), y=tuple(np.repeat(got[:, at], 2).tolist()))
            for at, label in enumerate(self.labels)
        ]
        return Curves(
            title="Curriculum", x_label="part of the budget", y_label="share of the tokens", series=tuple(series)
        )


def make_plan(params: MixParams, sizes: Mapping[str, int]) -> Plan:
    """Divide the budget among sources of so many tokens, by label.

    Raises DataError for labels that no source has.
    """
    labels = list(sizes)
    counts = [sizes[label] for label in labels]
    budget = params.token_budget or sum(counts)
    bounds = params.max_epochs
    if isinstance(bounds, dict):
        _demand_known(bounds, labels, "max_epochs")
        epochs = [bounds.get(label, float("inf")) for label in labels]
    else:
        epochs = [bounds] * len(labels)
    stretches = _stretches(params, labels, counts)
    return Plan(
        tuple(labels), tuple(counts), tuple(stretches), budget, tuple(epochs), allot(counts, stretches, budget, epochs)
    )


def labels_of(given: Sequence[str], count: int) -> list[str]:
    """The sources' labels: the given ones, or `source1` and so on. Raises DataError where they do not fit."""
    if not given:
        return [f"source{number}" for number in range(1, count + 1)]
    if len(given) != count or len(set(given)) != count:
        raise DataError(
            f"{count} sources have {len(set(given))} different labels",
            where="labels",
            hint="give one for each, in the order of the input",
        )
    return list(given)


def _stretches(params: MixParams, labels: Sequence[str], counts: Sequence[int]) -> list[Stretch]:
    if params.weights is not None:
        return [Stretch(1.0, _weights(params.weights, labels, "weights"))]
    if not params.phases:
        return [Stretch(1.0, natural_weights(counts, params.temperature))]
    found: list[Stretch] = []
    start = 0.0
    before: tuple[float, ...] = ()
    for number, phase in enumerate(params.phases, start=1):
        weights = _weights(phase.weights, labels, f"phase {number}")
        share = phase.until - start
        found += ramp(share, before, weights) if phase.ramp else [Stretch(share, weights)]
        start, before = phase.until, weights
    return found


def _weights(given: Mapping[str, float], labels: Sequence[str], where: str) -> tuple[float, ...]:
    _demand_known(given, labels, where)
    total = sum(given.values())
    return tuple(given.get(label, 0.0) / total for label in labels)


def _demand_known(given: Mapping[str, float], labels: Sequence[str], where: str) -> None:
    for label in given:
        if label not in labels:
            raise DataError(f"there is no source '{label}'", where=where, hint=did_you_mean(label, labels))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
