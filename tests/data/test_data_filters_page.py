"""The section "Filters" of `docs/data.md` names every attribute, and every default as it is."""

from __future__ import annotations

import re
from pathlib import Path

from liuyi.data.clean.filters import schema
from liuyi.data.select.published import PUBLISHED
from liuyi.data.select.thresholds import Thresholds

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
RANGES = {f"repeated_{size}grams" for size in range(6, 10)}
NO_FILTER = {"bytes", "fingerprint"}


def section() -> str:
    (found,) = re.findall(r"^## Filters\n(.*?)^## ", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return str(found)


def test_every_attribute_is_there() -> None:
    named = set(re.findall(r"`(\w+)`", section()))
    assert set(schema().names) - named <= RANGES | NO_FILTER
    assert set(PUBLISHED) <= set(re.findall(r"\w+", section()))


def test_defaults_are_those_of_the_code() -> None:
    fields = Thresholds.model_fields
    shown = dict(re.findall(r"`((?:min|max)_\w+)` ([\d.]+\d|\d)", section()))
    assert len(shown) >= 25
    for name, value in shown.items():
        assert fields[name].default == float(value), name
    every = {name for name in fields if name.startswith(("min_", "max_")) and fields[name].default is not None}
    elsewhere = {"min_similarity", "min_semantic_similarity"}
    assert every - elsewhere <= set(shown)
