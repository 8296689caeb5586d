"""Scorers: from one output and its reference to figures, found by name.

    score = get_scorer("json_exact")
    score(output, reference, {"schema": schema})   # {"exact": 1.0, "valid_json": 1.0, "intent": 1.0, "slot_f1": 1.0}

A scorer says what each of its figures means, so that comparisons and reports need not guess. The first metric is
the one that decides unless another is named. Plugins add theirs with `@scorer`, in a module of steps.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from liuyi.core.errors import DataError, LiuyiError, did_you_mean
from liuyi.evaluate.evaluation import Metric

Item = Mapping[str, Any]
"""A row of the eval set's `items.parquet`, and its JSON Schema under `schema` (None if it has none)."""
Score = Callable[[str, str, Item], dict[str, float]]


@dataclass(frozen=True)
class Scorer:
    """A registered scorer; every call gives all of its metrics."""

    name: str
    metrics: dict[str, Metric]
    score: Score

    def __call__(self, output: str, reference: str, item: Item) -> dict[str, float]:
        return self.score(output, reference, item)


_scorers: dict[str, Scorer] = {}
_validators: dict[int, tuple[Mapping[str, Any], Any]] = {}
_KEPT_VALIDATORS = 16


def scorer(name: str, **metrics: Metric) -> Callable[[Score], Score]:
    """Register a function as the scorer `name` with these metrics, the deciding one first."""

    def register(score: Score) -> Score:
        known = _scorers.get(name)
        if known and known.score.__code__ != score.__code__:
            raise LiuyiError(f"two scorers are named '{name}'", where=score.__module__)
        _scorers[name] = Scorer(name, metrics, score)
        return score

    return register


def get_scorer(name: str) -> Scorer:
    """The scorer of that name. Raises DataError with the nearest known name if there is none."""
    if name not in _scorers:
        raise DataError(f"there is no scorer '{name}'", hint=did_you_mean(name, _scorers))
    return _scorers[name]


def plain(text: str) -> str:
    """Text as people compare it: Unicode NFKC (full width is half width), surrounding and repeated spaces gone."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


@scorer("exact", exact=Metric("exact match"))
def exact(output: str, reference: str, item: Item) -> dict[str, float]:
    """The output is the reference, apart from spacing and full width."""
    return {"exact": float(plain(output) == plain(reference))}


@scorer("contains", contains=Metric("contains the reference"))
def contains(output: str, reference: str, item: Item) -> dict[str, float]:
    """The reference occurs in the output, apart from case, spacing and full width. An empty reference never does."""
    wanted = plain(reference).casefold()
    return {"contains": float(bool(wanted) and wanted in plain(output).casefold())}


@scorer("overlap", overlap=Metric("character overlap (F1)", kind="real"))
def overlap(output: str, reference: str, item: Item) -> dict[str, float]:
    """F1 of character bigrams, for free text where one wording is as good as another; equal for any script."""
    return {"overlap": _f1(_bigrams(plain(output).casefold()), _bigrams(plain(reference).casefold()))}


@scorer(
    "json_exact",
    exact=Metric("exact match"),
    valid_json=Metric("valid JSON"),
    valid_schema=Metric("follows the schema"),
    intent=Metric("intent right"),
    slot_f1=Metric("slots (F1)", kind="real"),
)
def json_exact(output: str, reference: str, item: Item) -> dict[str, float]:
    """A JSON answer against a JSON reference of the form `{"intent": …, "slots": {…}}`, or of any other form.

    `exact` is equality of the parsed values: spacing and the order of keys do not count, `1` equals `1.0`, `true` is
    not `1`. What is not JSON, or nested too deeply to be compared, is wrong in everything. `intent` compares that
    field, `slot_f1` the slots' names with their values; for answers without these fields they compare the whole and
    its fields.
    Raises DataError if the reference is not JSON.
    """
    wanted, is_json = parse_json(reference)
    if not is_json:
        raise DataError(f"the reference is not JSON: {reference[:80]!r}", where=str(item.get("id", "")))
    _comparable(wanted)  # Or a reference that is nested too deeply would be told as the answer's fault.
    found, is_json = parse_json(output)
    with suppress(RecursionError):
        if is_json:
            return _compared(found, wanted, item.get("schema"))
    return {"exact": 0.0, "valid_json": 0.0, "valid_schema": 0.0, "intent": 0.0, "slot_f1": 0.0}


def _compared(found: Any, wanted: Any, schema: Mapping[str, Any] | None) -> dict[str, float]:
    return {
        "exact": float(_comparable(found) == _comparable(wanted)),
        "valid_json": 1.0,
        "valid_schema": float(schema is None or follows_schema(found, schema)),
        "intent": float(_comparable(_field(found, "intent")) == _comparable(_field(wanted, "intent"))),
        "slot_f1": _f1(_slots(found), _slots(wanted)),
    }


def parse_json(text: str) -> tuple[Any, bool]:
    """The value of strict JSON text (RFC 8259: no NaN, no repeated keys) and whether it is such."""
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_unrepeated), True
    except (ValueError, RecursionError):
        return None, False


def follows_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a parsed value follows a JSON Schema (draft 2020-12). Raises DataError if that is no schema."""
    return bool(_validator(schema).is_valid(value))


def _validator(schema: Mapping[str, Any]) -> Any:
    """The validator of a schema; those of the last schemas are kept, each with its schema so that ids stay true."""
    if id(schema) in _validators:
        return _validators[id(schema)][1]
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise DataError(f"this is not a JSON Schema: {error.message}", where="schema.json") from error
    while len(_validators) >= _KEPT_VALIDATORS:
        del _validators[next(iter(_validators))]
    _validators[id(schema)] = (schema, Draft202012Validator(schema))
    return _validators[id(schema)][1]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is repeated")
    return fields


def _comparable(value: Any) -> Any:
    """A hashable form that is equal for equal JSON values: numbers by value, booleans apart from numbers."""
    if isinstance(value, dict):
        return "object", frozenset((key, _comparable(field)) for key, field in value.items())
    if isinstance(value, list):
        return "array", tuple(_comparable(field) for field in value)
    return ("number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__), value


def _field(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, dict) and name in value else value


def _slots(value: Any) -> dict[Any, int]:
    fields = _field(value, "slots")
    if not isinstance(fields, dict):
        return {_comparable(fields): 1}
    return {(name, _comparable(field)): 1 for name, field in fields.items()}


def _bigrams(text: str) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for start in range(max(1, len(text) - 1)) if text else ():
        piece = text[start : start + 2]
        counts[piece] = counts.get(piece, 0) + 1
    return counts


def _f1(found: dict[Any, int], wanted: dict[Any, int]) -> float:
    """Harmonic mean of precision and recall of two bags; 1 where both are empty."""
    shared = sum(min(count, wanted.get(piece, 0)) for piece, count in found.items())
    total = sum(found.values()) + sum(wanted.values())
    return 2 * shared / total if total else 1.0


def item_score(scorer: Scorer, output: str, reference: str, item: Item) -> dict[str, float]:
    """All metrics of one item; raises DataError if the scorer fails, leaves one out or gives what is not a number."""
    try:
        scores = scorer(output, reference, item)
    except LiuyiError:
        raise
    except Exception as error:
        where = str(item.get("id", ""))
        raise DataError(f"scorer '{scorer.name}' failed: {type(error).__name__}: {error}", where=where) from error
    for name in scorer.metrics:
        if not math.isfinite(scores.get(name, math.nan)):
            raise DataError(f"scorer '{scorer.name}' gave no '{name}'", where=str(item.get("id", "")))
    return {name: float(scores[name]) for name in scorer.metrics}
