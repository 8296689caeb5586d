"""The largest groups of duplicates of a corpus, and how their documents differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from liuyi.data.attributes import read_groups
from liuyi.data.corpus import ATTRIBUTES
from liuyi.data.look.find import Seen, see
from liuyi.data.look.view import View

GROUPS = 8
MEMBERS = 2
"""Members shown of each group, beside the document that stays."""
COMPARED_CHARS = 4000

_CONTEXT_CHARS = 120
_MOST_PAIRS = 2_000_000
"""Of equal words; with more, as in tables and runs of one character, comparing takes minutes and frequent words are
left out of account."""
_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|\s+|[^\w\s]")

Change = Literal["same", "removed", "added"]


@dataclass(frozen=True)
class Member:
    """A document that duplicates another, and how its text differs from it."""

    seen: Seen
    difference: tuple[tuple[Change, str], ...]
    """Runs of text, from what stays to this one; long runs that are the same are cut in the middle."""


@dataclass(frozen=True)
class Group:
    """A document that stays, and some of those that it stands for."""

    stays: Seen
    size: int
    """All that it stands for."""
    members: tuple[Member, ...]


def largest_groups(view: View, counts: Counter[str]) -> list[Group]:
    """The largest groups of duplicates; `counts` says how many documents each one stands for."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:GROUPS]
    wanted = pa.array([id for id, _ in ranked], pa.string())
    stays: dict[str, int] = {}
    members: dict[str, list[int]] = {id: [] for id, _ in ranked}
    start = 0
    for table in read_groups(view.corpus.path, ["id", "duplicate_of"], ATTRIBUTES):
        for row in np.flatnonzero(pc.is_in(table["id"], wanted).to_numpy()).tolist():
            stays[table["id"][row].as_py()] = start + row
        for row in np.flatnonzero(pc.is_in(table["duplicate_of"], wanted).to_numpy()).tolist():
            found = members[table["duplicate_of"][row].as_py()]
            if len(found) < MEMBERS:
                found.append(start + row)
        start += table.num_rows
    rows = [*stays.values(), *(row for each in members.values() for row in each)]
    seen = {one.row: one for one in see(view, rows)}
    return [
        Group(
            seen[stays[id]],
            size,
            tuple(
                Member(seen[row], difference(seen[stays[id]].masked_text, seen[row].masked_text)) for row in members[id]
            ),
        )
        for id, size in ranked
        if id in stays
    ]


def difference(before: str, after: str) -> tuple[tuple[Change, str], ...]:
    """What was removed and added, word by word, in the first characters of two texts."""
    old, new = (_WORDS.findall(text[:COMPARED_CHARS]) for text in (before, after))
    runs: list[tuple[Change, str]] = []
    counts, others = Counter(old), Counter(new)
    many = sum(count * others[word] for word, count in counts.items()) > _MOST_PAIRS
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=many).get_opcodes():
        if tag == "equal":
            runs.append(("same", _shortened("".join(old[a:b]))))
            continue
        runs += [(kind, "".join(part)) for kind, part in _sides(old[a:b], new[c:d]) if part]
    return tuple(runs)


def _sides(removed: Sequence[str], added: Sequence[str]) -> tuple[tuple[Change, Sequence[str]], ...]:
    return ("removed", removed), ("added", added)


def _shortened(text: str) -> str:
    if len(text) <= 2 * _CONTEXT_CHARS:
        return text
    return f"{text[:_CONTEXT_CHARS]} … {text[-_CONTEXT_CHARS:]}"
