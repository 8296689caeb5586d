"""Examples of good and bad documents, from corpora, from rows with a label, or from a random sample of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.words import split
from liuyi.data.attributes import read_groups
from liuyi.data.quality.features import MAX_CHARS
from liuyi.data.sources.location import find_files
from liuyi.data.sources.stream import BROKEN
from liuyi.data.sources.tables import broken_off, read_table

FEWEST = 20
"""Examples of each kind without which nothing can be said."""
_GOOD = frozenset({"good", "high", "true", "yes", "1", "keep"})
_BAD = frozenset({"bad", "low", "false", "no", "0", "drop"})
_COLUMNS = ("id", "text", "source", "cluster")
_ROW_FIELDS = ("text", "label", "cluster")
_LONGEST_ROW_BYTES = 16_000_000


@dataclass(frozen=True)
class Example:
    """One text, and what is kept together with it when examples are divided."""

    text: str
    group: str


@dataclass
class Examples:
    """What to learn from."""

    good: list[Example] = field(default_factory=list)
    bad: list[Example] = field(default_factory=list)
    sampled: bool = False
    """Whether the bad ones are a random sample, good ones among them, rather than known to be bad."""
    left_out: int = 0
    """Texts that were there twice, or that hold no word."""
    contradictions: int = 0
    """Texts that were given as good and as bad; they are left out."""
    unused: int = 0
    """Examples beyond the most of their kind."""

    @property
    def texts(self) -> list[str]:
        return [example.text for example in (*self.good, *self.bad)]

    @property
    def labels(self) -> NDArray[np.bool_]:
        return np.arange(len(self.good) + len(self.bad)) < len(self.good)

    @property
    def groups(self) -> NDArray[np.int64]:
        names = [example.group for example in (*self.good, *self.bad)]
        return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1]


def gather(
    good: Sequence[Artifact],
    bad: Sequence[Artifact],
    labelled: Path | None,
    background: Sequence[Artifact],
    *,
    most: int,
) -> Examples:
    """All examples, the same for the same inputs: at most `most` of each kind, chosen by a hash of their texts.

    Where nothing bad is given, a random sample of `background`, as large as the good examples, stands for it.
    Raises DataError for a label that is none, where both are given, and where too few examples of a kind are left.
    """
    kinds: dict[bool, dict[bytes, Example]] = {True: {}, False: {}}
    made = Examples()
    for is_good, example in _all(good, bad, labelled):
        _keep(kinds[is_good], example, made)
    for key in kinds[True].keys() & kinds[False].keys():
        del kinds[True][key], kinds[False][key]
        made.contradictions += 1
    if background:
        if kinds[False]:
            raise DataError(
                "bad examples are given, and a background to sample them from", hint="leave one of them out"
            )
        made.sampled = True
        wanted = min(most, len(kinds[True]))
        kinds[False] = _sample(background, wanted, kinds[True])
    for name, kind in (("good", kinds[True]), ("bad", kinds[False])):
        if len(kind) < FEWEST:
            raise DataError(
                f"{len(kind)} {name} examples are too few to learn from",
                hint=f"give at least {FEWEST} of each kind; a few hundred are better"
                + ("" if name == "good" else ", or name a corpus as `background` to draw them from"),
            )
        made.unused += max(0, len(kind) - most)
    made.good, made.bad = ([kind[key] for key in sorted(kind)[:most]] for kind in (kinds[True], kinds[False]))
    return made


def _all(good: Sequence[Artifact], bad: Sequence[Artifact], labelled: Path | None) -> Iterator[tuple[bool, Example]]:
    for is_good, artifacts in ((True, good), (False, bad)):
        for artifact in artifacts:
            yield from ((is_good, example) for example in _documents(artifact))
    if labelled is not None:
        yield from _labelled(labelled)


def _documents(artifact: Artifact) -> Iterator[Example]:
    for table in read_groups(artifact.path, _COLUMNS):
        for row in table.to_pylist():
            yield Example(row["text"], row["cluster"] or row["source"] or row["id"])


def _labelled(path: Path) -> Iterator[tuple[bool, Example]]:
    """Rows of a JSON, JSON Lines, CSV, TSV or Parquet file with `text`, `label`, and `cluster` if they have one."""
    for file in find_files(path):
        line = 0
        try:
            for row in read_table(file, _LONGEST_ROW_BYTES, lambda names: _ROW_FIELDS):
                line = row.line
                yield _labelled_row(row.row, f"{file.name}:{line}")
        except BROKEN as error:
            raise DataError(broken_off(file.name, line, error).reason, where=f"{file.name}:{line + 1}") from error


def _labelled_row(row: dict[str, Any] | str, where: str) -> tuple[bool, Example]:
    if isinstance(row, str):
        raise DataError(row, where=where)
    text, label = row.get("text"), str(row.get("label", "")).strip().lower()
    if not isinstance(text, str):
        raise DataError("the row has no `text`", where=where)
    if label not in _GOOD | _BAD:
        raise DataError(
            f"the label '{row.get('label', '')}' is neither good nor bad",
            where=where,
            hint=f"good: {', '.join(sorted(_GOOD))}; bad: {', '.join(sorted(_BAD))}",
        )
    return label in _GOOD, Example(text, str(row.get("cluster") or where))


def _keep(kind: dict[bytes, Example], example: Example, made: Examples) -> None:
    words = split(example.text[:MAX_CHARS])
    key = _key(words)
    if not words or key in kind:
        made.left_out += 1
    else:
        kind[key] = example


def _key(words: Sequence[str]) -> bytes:
    """A hash of the words: the order in which examples are taken, the same for texts that differ in nothing else."""
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()


def _sample(background: Sequence[Artifact], wanted: int, exclude: Collection[bytes]) -> dict[bytes, Example]:
    """The documents with the smallest hashes of their words: a random sample that no order changes."""

    def candidates() -> Iterator[tuple[bytes, Example]]:
        for artifact in background:
            for example in _documents(artifact):
                words = split(example.text[:MAX_CHARS])
                if words and (key := _key(words)) not in exclude:
                    yield key, example

    smallest: dict[bytes, Example] = {}
    for key, example in candidates():
        smallest[key] = example
        if len(smallest) >= 2 * wanted:
            smallest = {key: smallest[key] for key in sorted(smallest)[:wanted]}
    return {key: smallest[key] for key in sorted(smallest)[:wanted]}
