"""Examples of good and bad documents, from corpora, from rows with a label, or from a random sample of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.words import split
from liuyi.data.attributes import read_groups
from liuyi.data.quality.features import MAX_CHARS
from liuyi.data.sources.location import SourceFile, find_files
from liuyi.data.sources.tables import UNREADABLE, TableRow, broken_off, read_table
from liuyi.data.text import mend_surrogates

FEWEST = 20
"""Examples of each kind without which nothing can be said."""
_GOOD = frozenset({"good", "high", "true", "yes", "1", "1.0", "keep"})
_BAD = frozenset({"bad", "low", "false", "no", "0", "0.0", "drop"})
_COLUMNS = ("id", "text", "source", "cluster")
_KEY_BYTES = 12
_ROW_FIELDS = ("text", "label", "cluster")
_LONGEST_ROW_BYTES = 16_000_000


@dataclass(frozen=True)
class Example:
    """One text, and what is kept together with it when examples are divided."""

    text: str
    group: str


@dataclass(frozen=True)
class Examples:
    """What to learn from."""

    good: list[Example]
    bad: list[Example]
    left_out: int
    """Texts that were there twice, or that hold no word."""
    contradictions: int = 0
    """Texts that were given as good and as bad; they are left out."""
    sampled: bool = False
    """Whether the bad ones are a random sample, good ones among them, rather than known to be bad."""

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


class Sample:
    """The examples with the smallest keys, which is a random sample in memory that does not grow with what it is of."""

    def __init__(self, most: int, left_out: Collection[bytes] = ()) -> None:
        """`left_out` are keys of examples that are not wanted."""
        self.kept: dict[bytes, Example] = {}
        self._most = most
        self._left_out = left_out

    def add(self, key: bytes, example: Example) -> None:
        """See an example; of those with equal keys the first counts."""
        if key in self._left_out:
            return
        self.kept.setdefault(key, example)
        if len(self.kept) >= 4 * self._most:
            self.kept = {key: self.kept[key] for key in sorted(self.kept)[: 2 * self._most]}

    def without(self, keys: Collection[bytes] = ()) -> list[Example]:
        """The examples but those of these keys, no more than the most."""
        return [self.kept[key] for key in sorted(self.kept) if key not in keys][: self._most]


class _Kind(Sample):
    """The same of one kind of a person's examples; of those that are not kept, the keys alone."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.seen: set[bytes] = set()

    def take(self, example: Example) -> bool:
        """Whether it was taken: it holds words, and others than those before."""
        key = _key(example)
        if key is None or key in self.seen:
            return False
        self.seen.add(key)
        self.add(key, example)
        return True


def _key(example: Example) -> bytes | None:
    """A hash of the words; None where there are none."""
    words = split(example.text)
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES] if words else None


def gather(
    good: Sequence[Artifact],
    bad: Sequence[Artifact],
    labelled: Path | None,
    background: Sequence[Artifact],
    *,
    most: int,
) -> Examples:
    """At most `most` examples of each kind, chosen by a hash of their words.

    With `background`, a random sample of it, as large as the good examples, stands for bad ones.
    Raises DataError for a label that is none, where bad ones are given beside a background, and where too few examples
    of a kind are left.
    """
    kinds = {True: _Kind(most), False: _Kind(most)}
    left_out = sum(not kinds[is_good].take(example) for is_good, example in _all(good, bad, labelled))
    if background:
        if kinds[False].seen:
            raise DataError(
                "bad examples are given, and a background to sample them from", hint="leave one of them out"
            )
        return _beside_sample(kinds[True], background, most, left_out)
    both = kinds[True].seen & kinds[False].seen
    made = Examples(kinds[True].without(both), kinds[False].without(both), left_out, contradictions=len(both))
    _demand(made)
    return made


def _beside_sample(good: _Kind, background: Sequence[Artifact], most: int, left_out: int) -> Examples:
    chosen = good.without()
    sample = Sample(min(most, len(chosen)), left_out=good.seen)
    for artifact in background:
        for example in _documents(artifact):
            if (key := _key(example)) is not None:
                sample.add(key, example)
    made = Examples(chosen, sample.without(), left_out, sampled=True)
    _demand(made)
    return made


def _demand(made: Examples) -> None:
    for name, kind in (("good", made.good), ("bad", made.bad)):
        if len(kind) < FEWEST:
            raise DataError(
                f"{len(kind)} {name} examples are too few to learn from",
                hint=f"give at least {FEWEST} of each kind; a few hundred are better"
                + ("" if name == "good" else ", or name a corpus as `background` to draw them from"),
            )


def _all(good: Sequence[Artifact], bad: Sequence[Artifact], labelled: Path | None) -> Iterator[tuple[bool, Example]]:
    for is_good, artifacts in ((True, good), (False, bad)):
        for artifact in artifacts:
            yield from ((is_good, example) for example in _documents(artifact))
    if labelled is not None:
        yield from _labelled(labelled)


def _documents(artifact: Artifact) -> Iterator[Example]:
    for table in read_groups(artifact.path, _COLUMNS):
        for row in table.to_pylist():
            yield Example((row["text"] or "")[:MAX_CHARS], row["cluster"] or row["source"] or row["id"])


def _labelled(path: Path) -> Iterator[tuple[bool, Example]]:
    """Rows of a JSON, JSON Lines, CSV, TSV or Parquet file with `text`, `label`, and `cluster` if they have one."""
    for file in find_files(path):
        for row in _rows(file):
            yield _labelled_row(row.row, f"{file.name}:{row.line}")


def _rows(file: SourceFile) -> Iterator[TableRow]:
    line = 0
    try:
        for row in read_table(file, _LONGEST_ROW_BYTES, lambda names: _ROW_FIELDS):
            line = row.line
            yield row
    except UNREADABLE as error:
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
    cluster = row.get("cluster")
    group = where if cluster in (None, "") else str(cluster)
    return label in _GOOD, Example(mend_surrogates(text[:MAX_CHARS]), mend_surrogates(group))
