"""The verifier: how good one answer is, measured against the right one, without a model of rewards.

An exact answer is worth 1. A wrong one earns a part for being JSON, for following the schema, for the right intent and
for right slots, and always less than `PARTIAL`: nothing short of exact can beat exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liuyi.evaluate.scorers import get_scorer

PARTIAL = 0.8
_WEIGHTS = {"valid_json": 0.05, "valid_schema": 0.10, "intent": 0.30, "slot_f1": 0.35}


@dataclass(frozen=True)
class Reward:
    """One answer's worth, 0 … 1, and what it is made of."""

    total: float
    exact: bool
    components: Mapping[str, float]
    """`exact`, `valid_json`, `valid_schema`, `intent` and `slot_f1`, each 0 … 1."""


def verify(output: str, reference: str, schema: Mapping[str, Any] | None = None) -> Reward:
    """Judge `output` against the JSON `reference`, and against a JSON Schema if there is one.

    Raises DataError if the reference is not JSON.
    """
    components = get_scorer("json_exact")(output, reference, {"schema": schema})
    if components["exact"] == 1.0:
        return Reward(1.0, True, components)
    partial = sum(weight * components[name] for name, weight in _WEIGHTS.items())
    return Reward(min(partial, PARTIAL), False, components)
