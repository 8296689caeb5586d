"""What selection says of documents: each threshold with its attribute, what moves with it, and the evidence."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.clean import filters
from liuyi.data.look.judge import Judge, judge_of
from liuyi.data.select.edits import Edits
from liuyi.data.select.rules import KEPT, RULES, Attributes, reasons
from liuyi.data.select.thresholds import Thresholds

DOCUMENTS = 400
TYPES = {"contaminated_by": pa.list_(pa.string()), "bad_words": pa.int64()}
SET = {"min_perplexity": 1.5, "max_perplexity": 14.0, "max_bad_words": 60}
LICENCES = pa.chunked_array([["MIT", "GPL-3.0-only"] * (DOCUMENTS // 2)])


@cache
def table(seed: int) -> pa.Table:
    """Attributes drawn at random, those that only some corpora have among them."""
    rng = np.random.default_rng(seed)
    fields = [field for field in filters.schema() if field.name != "id"]
    needed = {rule.needs for rule in RULES} | set(TYPES)
    fields += [pa.field(name, TYPES.get(name, pa.float32())) for name in sorted(needed - {"", *filters.schema().names})]
    columns = {field.name: drawn(field, rng) for field in fields}
    kinds = rng.choice(["", "", "", "exact", "near", "semantic"], DOCUMENTS)
    similar = np.where(kinds == "", 0, np.where(kinds == "exact", 1, rng.uniform(0.6, 1, DOCUMENTS)))
    columns |= {"duplicate_kind": pa.array(kinds.tolist()), "duplicate_similarity": pa.array(similar, pa.float32())}
    return pa.table(columns)


def drawn(field: pa.Field, rng: np.random.Generator) -> pa.Array:
    kind = field.type
    if field.name == "lang":
        return pa.array(rng.choice(["en", "zh", "fr"], DOCUMENTS).tolist())
    if pa.types.is_boolean(kind):
        return pa.array(rng.random(DOCUMENTS) < 0.1)
    if pa.types.is_integer(kind):
        return pa.array(rng.integers(0, 90, DOCUMENTS), kind)
    if pa.types.is_floating(kind):
        high = 16 if field.name in ("mean_word_chars", "perplexity") else 1
        return pa.array(rng.uniform(0, high, DOCUMENTS), kind)
    return pa.array([[] for _ in range(DOCUMENTS)] if pa.types.is_list(kind) else [""] * DOCUMENTS, kind)


def thresholds(**changed: Any) -> Thresholds:
    """The defaults, with every threshold set that is left out by default."""
    unset = {name: SET.get(name, 0.5) for name, field in Thresholds.model_fields.items() if field.default is None}
    return Thresholds(**{**unset, **changed})


def by_rules(seed: int, judged: Thresholds) -> np.ndarray[Any, Any]:
    return reasons(Attributes(table(seed), LICENCES), judged)


def test_every_numeric_threshold_is_known_with_what_it_judges() -> None:
    given_ = thresholds()
    numeric = {name for name, value in given_ if isinstance(value, int | float) and not isinstance(value, bool)}
    measures = {one.threshold: one for one in Judge(given_, Edits()).measures(table(0), LICENCES)}
    assert set(measures) == numeric
    assert measures["max_code_lines"].attributes == ("code_lines",)
    assert measures["min_language_score"].attributes == ("lang_score",)
    assert measures["min_similarity"].attributes == ("duplicate_similarity",)
    assert measures["max_symbol_ratio"].reasons == ("symbols",)


@given(seed=st.integers(0, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_moves_with_a_threshold_is_what_the_rules_would_drop(seed: int, data: st.DataObject) -> None:
    judge = Judge(thresholds(licenses=("MIT",)), Edits())
    judgement = judge.judge(table(seed), LICENCES)
    assert judgement.reasons.tolist() == by_rules(seed, judge.thresholds).tolist()
    measure = data.draw(st.sampled_from(judge.measures(table(seed), LICENCES)))
    values = measure.values(table(seed))
    limit = float(data.draw(st.sampled_from(values.tolist())))
    moved = judge.dropped_at(measure, limit, judgement)
    expected = by_rules(seed, judge.thresholds.model_copy(update={measure.threshold: limit})) != KEPT
    assert moved.tolist() == expected.tolist()


@pytest.mark.parametrize("threshold", [m.threshold for m in Judge(thresholds(), Edits()).measures(table(0), LICENCES)])
def test_a_document_changes_sides_at_its_value_and_nowhere_else(threshold: str) -> None:
    """The values of a measure are what the rules compare: a limit just above and just below a value differ there."""
    judge = Judge(thresholds(), Edits())
    attributes = table(1)
    measure = judge.measure(threshold, attributes, LICENCES)
    values = measure.values(attributes)
    rules = [rule for rule in RULES if rule.reason in measure.reasons]
    sides = []
    for limit in np.quantile(values, [0.1, 0.55, 0.8]):
        moved = judge.thresholds.model_copy(update={threshold: float(limit)})
        sides.append((limit, np.array([rule.holds(Attributes(attributes, LICENCES), moved) for rule in rules])))
    for (low, before), (high, after) in pairwise(sides):
        changed = (before != after).any(axis=0)
        assert changed.any()
        assert ((values[changed] >= low - 1e-6) & (values[changed] <= high + 1e-6)).all()


def test_the_evidence_is_every_rule_that_holds_with_what_it_read() -> None:
    judge = judge_of({"licenses": ["MIT"], "min_words": 30, "cut_repeated": False, "heldout_fraction": 0.1})
    assert judge.thresholds.min_words == 30
    assert not judge.edits.cut_repeated
    expected = by_rules(2, judge.thresholds)
    for row in range(0, DOCUMENTS, 7):
        one, licence = table(2).slice(row, 1), LICENCES.slice(row, 1)
        found = judge.evidence(one, licence)
        assert (found[0].reason if found else KEPT) == expected[row]
        for evidence in found:
            (rule,) = (rule for rule in RULES if rule.reason == evidence.reason)
            assert rule.holds(Attributes(one, licence), judge.thresholds).tolist() == [True]
            for name, value in evidence.values.items():
                if name in one.column_names:
                    assert value == one[name][0].as_py()
            assert all(value == getattr(judge.thresholds, name) for name, value in evidence.thresholds.items())


def test_attributes_of_another_version_are_told() -> None:
    with pytest.raises(DataError, match=r"measured by another version.*code_lines"):
        Judge(Thresholds(), Edits()).judge(table(0).drop_columns(["code_lines"]), LICENCES)
