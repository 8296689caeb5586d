"""Preferences from verified solutions: for one problem, a solution with the right result and one with a wrong one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from liuyi.data.corpus import Rows
from liuyi.data.instructions.convert import preference_entry
from liuyi.data.instructions.tables import PREFERENCES, preferences_schema
from liuyi.data.synthesis.generators.verified import Solved
from liuyi.data.synthesis.problems import plain
from liuyi.data.synthesis.rows import Made, lineage_fields

PROBLEMS = "problems.parquet"


def write_preferences(folder: Path, solved: Sequence[Solved], pairs: int) -> int:
    """Write at most `pairs` pairs of each problem, with the lineage of the chosen answer and the request of the
    rejected one; gives their number.
    """
    import pyarrow as pa

    lineage = [*lineage_fields(), ("rejected_request", pa.string())]
    schema = pa.schema([*preferences_schema(), *(pa.field(name, kind) for name, kind in lineage)])
    with Rows(folder / PREFERENCES, schema) as rows:
        for one in solved:
            for chosen, rejected in _pairs(one, pairs):
                entry = preference_entry(
                    {"prompt": chosen.instruction, "chosen": chosen.text, "rejected": rejected.text}
                )
                source = f"synthesis/{chosen.origin.generator}"
                columns = {**entry.columns, "source": source, "license": chosen.license, "chosen_by": "verifier"}
                columns |= {"cluster": chosen.cluster} if chosen.cluster else {}
                rows.add({**columns, **vars(chosen.origin), "rejected_request": rejected.origin.request})
    return rows.count


def write_problems(folder: Path, solved: Sequence[Solved]) -> None:
    """Write `problems.parquet`: each problem with its reference, its samples, and the share that was right."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "task", "problem", "reference", "entry", "license")]
    schema = pa.schema([*texts, ("samples", pa.int64()), ("pass_rate", pa.float64())])
    with Rows(folder / PROBLEMS, schema) as rows:
        for one in solved:
            problem = one.problem
            said = {"id": problem.id, "task": problem.task, "problem": problem.text, "reference": problem.reference}
            said |= {"entry": plain(problem.entry), "license": problem.license}
            rows.add({**said, "samples": len(one.solutions), "pass_rate": one.pass_rate})


def _pairs(solved: Solved, most: int) -> Iterator[tuple[Made, Made]]:
    """Right against wrong, each kept solution in turn, no wrong one twice."""
    right = [made for made in solved.solutions if not made.dropped]
    wrong = list({made.text: made for made in solved.wrong}.values())
    for number, rejected in enumerate(wrong[:most] if right else ()):
        yield right[number % len(right)], rejected
