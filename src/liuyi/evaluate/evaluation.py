"""The `evaluation` artifact: one row per item with its scores, and what each score means.

    items.parquet     item, cluster, lang, kind, prompt, reference, output, then one float column a score
    evaluation.json   {name, label, subject, evalset, runner,
                       metrics: {column: {title, kind, unit, better, per, mean, low, …}}}

Whatever writes this much (an eval set answered by a model, bits of documents, the answers of an application) can be
compared, gated and reported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from liuyi.core.errors import DataError, did_you_mean
from liuyi.evaluate.stats import Interval, estimate
from liuyi.evaluate.stats.clusters import Floats
from liuyi.evaluate.stats.compare import Scores

ITEMS = "items.parquet"
SUMMARY = "evaluation.json"


@dataclass(frozen=True)
class Metric:
    """What one column of scores means."""

    title: str
    kind: Scores = "binary"
    """Right/wrong per item; a number per item; or a sum per item, to be divided by the sum of the column `per`."""
    unit: str = "%"
    better: Literal["higher", "lower"] = "higher"
    per: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one subject on one eval set, in the order of the items."""

    metrics: Mapping[str, Metric]
    columns: Mapping[str, Sequence[Any]]
    name: str = ""
    """The eval set's name."""
    label: str = ""
    """What was evaluated, for people, such as `SFT`."""
    subject: str = ""
    """Digest of what was evaluated."""
    evalset: str = ""
    """Digest of the eval set."""
    runner: str = ""
    """How the subject was computed, such as `torch fp32`, where that was by the engine."""
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for needed in ("item", "cluster"):
            if needed not in self.columns:
                raise DataError(f"an evaluation needs the column '{needed}'", where=self.where)
        ids = self.columns["item"]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise DataError(f"item '{twice}' occurs twice", where=self.where)

    @classmethod
    def load(cls, folder: Path, where: str = "") -> Evaluation:
        """Read an evaluation's folder; `where` names it in errors. Raises DataError where it is not complete."""
        import pyarrow.parquet as pq

        where = where or str(folder)
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{SUMMARY} cannot be read: {error}", where=where) from error
        table = pq.read_table(folder / ITEMS)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        return cls(
            metrics={name: _metric(name, said, columns) for name, said in summary.get("metrics", {}).items()},
            columns=columns,
            where=where,
            **{key: summary.get(key) or "" for key in ("name", "label", "subject", "evalset", "runner")},
        )

    def save(self, folder: Path, *, seed: int = 0) -> dict[str, Interval]:
        """Write both files; gives each metric's figure with its interval over clusters."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: list(values) for name, values in self.columns.items()}), folder / ITEMS)
        figures = {name: self.figure(name, seed=seed) for name in self.metrics}
        summary = {
            "name": self.name,
            "label": self.label,
            "subject": self.subject,
            "evalset": self.evalset,
            "runner": self.runner,
            "metrics": {
                name: {**metric.__dict__, **{key: _finite(value) for key, value in figures[name].__dict__.items()}}
                for name, metric in self.metrics.items()
            },
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        return figures

    def figure(self, metric: str, *, seed: int = 0) -> Interval:
        """The metric over all items, with an interval that counts clusters."""
        said = self.metric(metric)
        weights = self.scores(said.per) if said.per else None
        return estimate(
            self.scores(metric), clusters=self.columns["cluster"], weights=weights, kind=said.kind, seed=seed
        )

    def metric(self, name: str) -> Metric:
        """What a metric means. Raises DataError with the nearest known name if there is none."""
        if name not in self.metrics:
            raise DataError(f"there is no metric '{name}'", where=self.where, hint=did_you_mean(name, self.metrics))
        return self.metrics[name]

    def scores(self, column: str) -> Floats:
        """A numeric column, float64 [items]. Raises DataError if there is none or values are missing."""
        if column not in self.columns:
            numeric = [name for name, values in self.columns.items() if values and isinstance(values[0], int | float)]
            raise DataError(f"there is no column '{column}'", where=self.where, hint=did_you_mean(column, numeric))
        values = self.columns[column]
        missing = sum(value is None for value in values)
        if missing:
            raise DataError(f"{missing} items have no '{column}'", where=self.where)
        return np.asarray(values, dtype=np.float64)

    def texts(self, column: str) -> list[str]:
        """A column of text, empty strings where there is none."""
        values = self.columns.get(column)
        return ["" if value is None else str(value) for value in values] if values else [""] * len(self)

    def select(self, rows: Sequence[int]) -> Evaluation:
        """The same evaluation of these rows, in this order."""
        return replace(self, columns={name: [values[row] for row in rows] for name, values in self.columns.items()})

    def __len__(self) -> int:
        return len(self.columns["item"])


def pair(before: Evaluation, after: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both evaluations in the item order of the first.

    Raises DataError if they are of different eval sets or do not hold the same items in the same clusters.
    """
    if before.evalset and after.evalset and before.evalset != after.evalset:
        raise DataError(
            f"{before.where} and {after.where} are of different eval sets",
            hint=f"{before.evalset[:12]} and {after.evalset[:12]}: evaluate both on the same one",
        )
    rows = {item: row for row, item in enumerate(after.columns["item"])}
    absent = [item for item in before.columns["item"] if item not in rows]
    if absent or len(rows) != len(before):
        extra = set(rows) - set(before.columns["item"])
        raise DataError(
            f"{len(absent)} items of {before.where} are not in {after.where}, and {len(extra)} the other way round",
            hint=f"such as '{next(iter(absent or sorted(extra, key=str)))}'",
        )
    aligned = after.select([rows[item] for item in before.columns["item"]])
    if list(map(str, aligned.columns["cluster"])) != list(map(str, before.columns["cluster"])):
        raise DataError(f"{before.where} and {after.where} put the same items into different clusters")
    return before, aligned


def rows_where(evaluation: Evaluation, column: str, value: str) -> list[int]:
    """The rows whose text in `column` is `value`."""
    return [row for row, text in enumerate(evaluation.texts(column)) if text == value]


def distinct(values: Iterable[str]) -> list[str]:
    """The values that are not empty, sorted, each once."""
    return sorted({value for value in values if value})


def _metric(name: str, said: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> Metric:
    """What `evaluation.json` says of a metric; the kind follows from the values where it is not said."""
    values = columns.get(name, ())
    per = str(said.get("per") or "")
    guessed: Scores = "ratio" if per else "binary" if values and all(value in (0, 1) for value in values) else "real"
    kind: Scores = said.get("kind") or guessed
    return Metric(
        title=said.get("title") or name.replace("_", " "),
        kind=kind,
        unit=said.get("unit", "%" if kind == "binary" else ""),
        better=said.get("better") or "higher",
        per=per,
    )


def _finite(value: float | int) -> float | int | None:
    return value if np.isfinite(value) else None
