"""Preferences from verified solutions: for one problem, a solution with the right result and one with a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.data.corpus import Rows
from liuyi.data.instructions.convert import preference_entry
from liuyi.data.instructions.tables import PREFERENCES, preferences_schema
from liuyi.data.synthesis.generators.verified import Solved
from liuyi.data.synthesis.problems import plain
from liuyi.data.synthesis.rows import Made, lineage_fields

if TYPE_CHECKING:
    import pyarrow as pa

PROBLEMS = "problems.parquet"


def write_pairs(folder: Path, solved: Iterable[Solved], pairs: int) -> Iterator[Solved]:
    """Write what passes: at most `pairs` preferences of each problem to `preferences.parquet`, and to
    `problems.parquet` each problem with its reference, its samples, and the share that was right, null without any.

    A preference has the lineage of its chosen answer, and the request of the rejected one.
    """
    with (
        Rows(folder / PREFERENCES, _pairs_schema()) as preferences,
        Rows(folder / PROBLEMS, _problems_schema()) as rows,
    ):
        for one in solved:
            for chosen, rejected in _pairs(one, pairs):
                preferences.add(_preference(chosen, rejected))
            problem = one.problem
            said = {"id": problem.id, "task": problem.task, "problem": problem.text, "reference": problem.reference}
            said |= {"entry": plain(problem.entry), "license": problem.license}
            samples = sum(bool(made.origin.request) for made in one.solutions)
            rows.add({**said, "samples": samples, "pass_rate": one.pass_rate if samples else None})
            yield one


def _pairs_schema() -> pa.Schema:
    import pyarrow as pa

    lineage = [*lineage_fields(), ("rejected_request", pa.string())]
    return pa.schema([*preferences_schema(), *(pa.field(name, kind) for name, kind in lineage)])


def _problems_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "task", "problem", "reference", "entry", "license")]
    return pa.schema([*texts, ("samples", pa.int64()), ("pass_rate", pa.float64())])


def _preference(chosen: Made, rejected: Made) -> dict[str, Any]:
    entry = preference_entry({"prompt": chosen.instruction, "chosen": chosen.text, "rejected": rejected.text})
    source = f"synthesis/{chosen.origin.generator}"
    columns = {**entry.columns, "source": source, "license": chosen.license, "chosen_by": "verifier"}
    columns |= {"cluster": chosen.cluster} if chosen.cluster else {}
    return {**columns, **vars(chosen.origin), "rejected_request": rejected.origin.request}


def _pairs(solved: Solved, most: int) -> Iterator[tuple[Made, Made]]:
    """Right against wrong, each kept solution in turn, no wrong one twice."""
    right = [made for made in solved.solutions if not made.dropped]
    wrong = list({made.text: made for made in solved.wrong}.values())
    for number, rejected in enumerate(wrong[:most] if right else ()):
        yield right[number % len(right)], rejected
