"""What selection says of documents, rule by rule, and which attribute each threshold judges.

The rules are asked, not described a second time: each is run once on values that note what was read, so a rule that
is added is known here at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.core.errors import DataError, did_you_mean
from liuyi.data.select.edit import cut_ratio
from liuyi.data.select.edits import Edits
from liuyi.data.select.rules import KEPT, RULES, Attributes, Mask, Rule
from liuyi.data.select.thresholds import Thresholds

Combine = Callable[..., NDArray[Any]]
_COMBINED: dict[str, tuple[tuple[str, ...], Combine]] = {
    "max_top_ngram": (
        ("top_2gram", "top_3gram", "top_4gram", "han_ratio"),
        lambda limits, two, three, four, han: np.maximum(np.maximum(two, three) * (han < limits.min_han_ratio), four),
    ),
    "max_repeated_ngrams": (("repeated_10grams",), lambda limits, share: share),
    "max_zh_phrases": (
        ("zh_advertising", "zh_boilerplate", "zh_function_chars"),
        lambda limits, advertising, boilerplate, grammar: advertising + boilerplate - grammar,
    ),
}
"""What a threshold judges where neither its name nor its rule alone says it: attributes, and what is made of them."""


@dataclass(frozen=True)
class Reading:
    """What a rule read: attributes and thresholds, in the order in which it asked for them."""

    rule: Rule
    attributes: tuple[str, ...]
    thresholds: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """A rule that drops a document: the attributes that it read, and the thresholds."""

    reason: str
    values: Mapping[str, Any]
    thresholds: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A numeric threshold, and what it judges."""

    threshold: str
    limit: float
    attributes: tuple[str, ...]
    combine: Combine
    thresholds: Thresholds
    reasons: tuple[str, ...]
    """Of the rules that read the threshold."""

    def values(self, attributes: pa.Table) -> NDArray[np.float64]:
        """[documents] what is held against the limit."""
        columns = (attributes[name].to_numpy() for name in self.attributes)
        return np.asarray(self.combine(self.thresholds, *columns), np.float64)


@dataclass(frozen=True)
class Judgement:
    """What the rules say of a batch of documents."""

    given: Attributes
    rules: tuple[Rule, ...]
    """Those that apply, in order."""
    holds: NDArray[np.bool_]
    """[rules, documents] whether each rule drops each document."""

    @property
    def reasons(self) -> NDArray[np.object_]:
        """[documents] the first reason to drop each; empty where it is kept."""
        names = np.array([*(rule.reason for rule in self.rules), KEPT], object)
        first = np.where(self.holds.any(axis=0), self.holds.argmax(axis=0), len(self.rules))
        return np.asarray(names[first])

    def without(self, reasons: tuple[str, ...]) -> Mask:
        """[documents] whether a rule other than these drops the document."""
        others = [number for number, rule in enumerate(self.rules) if rule.reason not in reasons]
        return np.asarray(self.holds[others].any(axis=0))


class Judge:
    """The rules under given thresholds."""

    def __init__(self, thresholds: Thresholds, edits: Edits) -> None:
        self.thresholds = thresholds
        self.edits = edits

    def judge(self, attributes: pa.Table, licences: pa.ChunkedArray) -> Judgement:
        """Raises DataError where a rule or a threshold that is set asks for an attribute that the table lacks."""
        given = self._given(attributes, licences)
        rules = tuple(rule for rule in RULES if rule.applies(given, self.thresholds))
        try:
            holds = [np.asarray(rule.holds(given, self.thresholds), bool) for rule in rules]
        except KeyError as error:
            raise DataError(
                f"the corpus was measured by another version of Liuyi: {error.args[0]}",
                hint="run data.clean on it again",
            ) from error
        return Judgement(given, rules, np.array(holds).reshape(len(rules), attributes.num_rows))

    def dropped_at(self, measure: Measure, limit: float, judgement: Judgement) -> Mask:
        """[documents] what would be dropped if the measure's threshold were `limit` and all others stayed."""
        moved = self.thresholds.model_copy(update={measure.threshold: limit})
        dropped = judgement.without(measure.reasons)
        for rule in judgement.rules:
            if rule.reason in measure.reasons:
                dropped = dropped | rule.holds(judgement.given, moved)
        return np.asarray(dropped)

    def readings(self, attributes: pa.Table, licences: pa.ChunkedArray) -> tuple[Reading, ...]:
        """What each rule that applies reads."""
        given = self._given(attributes, licences)
        found = []
        for rule in RULES:
            if rule.applies(given, self.thresholds):
                asked, limits = _Noted(given), _Noted(self.thresholds)
                rule.holds(cast(Attributes, asked), cast(Thresholds, limits))
                found.append(Reading(rule, tuple(asked.names), tuple(limits.names)))
        return tuple(found)

    def evidence(self, attributes: pa.Table, licences: pa.ChunkedArray) -> list[Evidence]:
        """Why the one document of the table is dropped: each rule that holds, with all that it read."""
        given = self._given(attributes, licences)
        found = []
        for reading in self.readings(attributes, licences):
            if bool(np.asarray(reading.rule.holds(given, self.thresholds))[0]):
                values = {name: _value(given, name) for name in reading.attributes}
                limits = {name: getattr(self.thresholds, name) for name in reading.thresholds}
                found.append(Evidence(reading.rule.reason, values, limits))
        return found

    def measures(self, attributes: pa.Table, licences: pa.ChunkedArray) -> tuple[Measure, ...]:
        """Every numeric threshold that a rule reads."""
        readings = self.readings(attributes, licences)
        numeric = {field.name for field in attributes.schema if _is_numeric(field.type)}
        asked = dict.fromkeys(name for reading in readings for name in reading.thresholds)
        found = []
        for name in asked:
            limit = getattr(self.thresholds, name)
            judged = _judged_by(name, asked, readings, numeric)
            if judged and isinstance(limit, int | float) and not isinstance(limit, bool):
                reasons = tuple(reading.rule.reason for reading in readings if name in reading.thresholds)
                found.append(Measure(name, float(limit), *judged, self.thresholds, reasons))
        return tuple(found)

    def measure(self, threshold: str, attributes: pa.Table, licences: pa.ChunkedArray) -> Measure:
        """The measure of one threshold. Raises DataError with the nearest name where there is none."""
        known = {measure.threshold: measure for measure in self.measures(attributes, licences)}
        if threshold not in known:
            raise DataError(f"there is no threshold '{threshold}' to be near to", hint=did_you_mean(threshold, known))
        return known[threshold]

    def _given(self, attributes: pa.Table, licences: pa.ChunkedArray) -> Attributes:
        return Attributes(attributes, licences, cut_ratio(attributes) if self.edits.cut_repeated else 0.0)


def judge_of(params: Mapping[str, Any]) -> Judge:
    """The judge with the parameters of a selection; what they leave out is as by default."""
    thresholds, edits = (
        kind(**{name: params[name] for name in kind.model_fields if name in params}) for kind in (Thresholds, Edits)
    )
    return Judge(cast(Thresholds, thresholds), cast(Edits, edits))


def _judged_by(
    threshold: str, thresholds: Iterable[str], readings: tuple[Reading, ...], numeric: set[str]
) -> tuple[tuple[str, ...], Combine] | None:
    """The attribute of the threshold's name, else the one number that its rule reads and no other threshold names."""
    if threshold in _COMBINED:
        return _COMBINED[threshold]
    reading = [reading for reading in readings if threshold in reading.thresholds]
    own = _bare(threshold)
    others = {_bare(other) for other in thresholds}
    left = tuple(name for name in reading[0].attributes if name in numeric and name not in others)
    if any(own in each.attributes for each in reading):
        left = (own,)
    return (left, lambda limits, value: value) if len(left) == 1 else None


def _bare(threshold: str) -> str:
    return threshold.removeprefix("min_").removeprefix("max_")


def _value(given: Attributes, name: str) -> Any:
    """An attribute of the only document, which the table has or the rules derive."""
    if name in given:
        return given.column(name)[0].as_py()
    derived = getattr(given, name)[0]
    return derived.as_py() if isinstance(derived, pa.Scalar) else derived.item()


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


class _Noted:
    """Gives what another object gives, by item, attribute or `among`, and notes the names."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.names[name] = None
        return self._wrapped[name]

    def __contains__(self, name: str) -> bool:
        return name in self._wrapped

    def __len__(self) -> int:
        return len(self._wrapped)

    def among(self, name: str, values: tuple[str, ...]) -> Mask:
        self.names[name] = None
        return cast(Mask, self._wrapped.among(name, values))

    def column(self, name: str) -> Any:
        self.names[name] = None
        return self._wrapped.column(name)

    def __getattr__(self, name: str) -> Any:
        self.names[name] = None
        return getattr(self._wrapped, name)
