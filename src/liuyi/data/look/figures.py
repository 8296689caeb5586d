"""The figures of a sample: how each attribute is spread, what moves with its threshold, and who stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.core.svg import ticks
from liuyi.data.look.judge import Judge, Judgement, Measure
from liuyi.data.look.survey import Sample
from liuyi.data.select.thresholds import Thresholds

BINS = 48
LIMITS = 33
"""Places at which it is asked what a threshold there would keep."""
BESIDE = 2
"""Documents shown on each side of a threshold."""

_FACTORS = (0.5, 0.8, 1.25, 2.0)
_TAIL = 0.002
"""Part of the documents that may lie beyond the last bin."""
_SKEWED = 12
"""A largest value so many times the median is drawn on a logarithmic axis."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """Documents by the value of an attribute; what lies beyond the ends is counted in the first or last bin."""

    edges: Floats
    """[bins + 1]"""
    is_log: bool
    kept: Counts
    """[bins]"""
    dropped_for_it: Counts
    """[bins] Dropped by a rule of the threshold, or by none where there is no threshold."""
    dropped_otherwise: Counts
    """[bins]"""


@dataclass(frozen=True)
class Move:
    """What another limit would change, as shares of the documents and of the bytes."""

    limit: float
    documents: float
    bytes: float


@dataclass(frozen=True)
class Spread:
    """An attribute without a threshold."""

    name: str
    median: float
    histogram: Histogram


@dataclass(frozen=True)
class Threshold:
    """A threshold as the sample shows it. Shares are of the documents in the sample."""

    measure: Measure
    dropped: float
    """Dropped by its rules."""
    dropped_alone: float
    """Dropped by its rules and by no other."""
    histogram: Histogram
    limits: Floats
    """[limits] on the axis of the histogram."""
    kept_at: Floats
    """[limits] the share that would be kept."""
    moves: tuple[Move, ...]
    just_kept: tuple[int, ...]
    """Rows of the corpus, the nearest first."""
    just_dropped: tuple[int, ...]


def thresholds(judge: Judge, sample: Sample) -> list[Threshold]:
    """Every numeric threshold, those that drop the most first."""
    judgement = judge.judge(sample.attributes, sample.licences)
    measures = judge.measures(sample.attributes, sample.licences)
    found = [_threshold(judge, judgement, measure, sample) for measure in measures]
    return sorted(found, key=lambda one: (-one.dropped_alone, -one.dropped, one.measure.threshold))


def spreads(judge: Judge, sample: Sample) -> list[Spread]:
    """The numeric attributes that no threshold judges, as they come in the table."""
    judgement = judge.judge(sample.attributes, sample.licences)
    judged = {name for measure in judge.measures(sample.attributes, sample.licences) for name in measure.attributes}
    nobody = np.zeros(sample.attributes.num_rows, bool)
    found = []
    for field in sample.attributes.schema:
        if field.name not in judged and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            values = np.asarray(sample.attributes[field.name].to_numpy(), np.float64)
            known = np.isfinite(values)
            if known.any():
                drawn = _histogram(values, _edges(values[known]), judgement, nobody)
                found.append(Spread(field.name, float(np.median(values[known])), drawn))
    return found


def histogram(values: Floats) -> Histogram:
    """Plain counts of values, all of them kept."""
    edges, is_log = _edges(values)
    counts = np.bincount(_bins(values, edges), minlength=len(edges) - 1)
    nothing = np.zeros_like(counts)
    return Histogram(edges, is_log, counts, nothing, nothing)


def _threshold(judge: Judge, judgement: Judgement, measure: Measure, sample: Sample) -> Threshold:
    values = measure.values(sample.attributes)
    others = judgement.without(measure.reasons)
    for_it = judge.dropped_at(measure, measure.limit, judgement) & ~others
    by_rules = np.any([held for rule, held in _held(judgement) if rule in measure.reasons], axis=0)
    size = sample.attributes["bytes"].to_numpy()
    edges, is_log = _edges(np.append(values[np.isfinite(values)], measure.limit))
    limits = np.geomspace(edges[0], edges[-1], LIMITS) if is_log else np.linspace(edges[0], edges[-1], LIMITS)
    kept = ~(others | for_it)
    dropped_at = [judge.dropped_at(measure, float(limit), judgement) for limit in limits]
    judged = np.any(dropped_at, axis=0)
    return Threshold(
        measure,
        dropped=float(by_rules.mean()),
        dropped_alone=float(for_it.mean()),
        histogram=_histogram(values, (edges, is_log), judgement, by_rules),
        limits=limits,
        kept_at=np.array([1 - dropped.mean() for dropped in dropped_at]),
        moves=tuple(
            _move(limit, ~judge.dropped_at(measure, limit, judgement), kept, size)
            for limit in (measure.limit * factor for factor in _FACTORS)
            if limit != measure.limit and is_allowed(measure.threshold, limit)
        ),
        just_kept=_nearest(values, measure.limit, kept & judged, sample),
        just_dropped=_nearest(values, measure.limit, for_it, sample),
    )


def is_allowed(threshold: str, limit: float) -> bool:
    """Whether a threshold may be set so: within the bounds of its field."""
    bounds = Thresholds.model_fields[threshold].metadata
    return all(
        limit >= getattr(bound, "ge", -np.inf)
        and limit > getattr(bound, "gt", -np.inf)
        and limit <= getattr(bound, "le", np.inf)
        for bound in bounds
    )


def _held(judgement: Judgement) -> list[tuple[str, NDArray[np.bool_]]]:
    return [(rule.reason, judgement.holds[number]) for number, rule in enumerate(judgement.rules)]


def _move(limit: float, kept: NDArray[np.bool_], before: NDArray[np.bool_], size: NDArray[np.int64]) -> Move:
    documents = (int(kept.sum()) - int(before.sum())) / max(1, len(kept))
    return Move(limit, documents, float(size[kept].sum() - size[before].sum()) / max(1, int(size.sum())))


def _nearest(values: Floats, limit: float, chosen: NDArray[np.bool_], sample: Sample) -> tuple[int, ...]:
    places = np.flatnonzero(chosen & np.isfinite(values))
    order = np.argsort(np.abs(values[places] - limit), kind="stable")[:BESIDE]
    return tuple(sample.rows[places[order]].tolist())


def _histogram(
    values: Floats, axis: tuple[Floats, bool], judgement: Judgement, by_rules: NDArray[np.bool_]
) -> Histogram:
    edges, is_log = axis
    known = np.isfinite(values)
    dropped = judgement.holds.any(axis=0)
    counts = [
        np.bincount(_bins(values[known & part], edges), minlength=len(edges) - 1)
        for part in (~dropped, by_rules & dropped, dropped & ~by_rules)
    ]
    return Histogram(edges, is_log, *counts)


def _edges(values: Floats) -> tuple[Floats, bool]:
    """Bins over the bulk of the values, between round numbers; logarithmic where a few are far larger than most."""
    if not len(values):
        return np.linspace(0, 1, BINS + 1), False
    low, high = float(values.min()), float(np.quantile(values, 1 - _TAIL))
    median = float(np.median(values))
    if low >= 0 and median >= 1 and high > _SKEWED * median:
        return np.geomspace(max(1.0, low), max(high, 2.0), BINS + 1), True
    ends = ticks(min(low, 0.0) if low < 0.2 * high else low, high if high > low else low + 1, 8)
    return np.linspace(ends[0], ends[-1], BINS + 1), False


def _bins(values: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
