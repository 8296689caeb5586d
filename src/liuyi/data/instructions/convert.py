"""From files to rows that can be learnt from, in one pass: whatever is wrong with a row is written down beside them.

What is kept in memory is a digest of each row, to tell doubles, and the size of each cluster; the rows themselves go
to disk in bounded groups.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.digest import canonical_json
from liuyi.data.corpus import REJECTED, Rejected, Rows, rejected_schema
from liuyi.data.instructions.formats import to_chat, to_preference
from liuyi.data.instructions.messages import Message, WrongRow
from liuyi.data.sources.location import SourceFile
from liuyi.data.sources.tables import UNREADABLE, broken_off, read_table

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_ROW_BYTES = 64_000_000
_REASONS_SHOWN = 8
_FILES_SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """One good row as the artifact keeps it, but for its source and licence."""

    format: str
    columns: Mapping[str, str | None]
    opposite: str = ""
    """The id of the row that would say the contrary: the same answers the other way round."""
    can_be_held_out: bool = True
    """Otherwise its whole cluster is learnt from."""


@dataclass
class Converted:
    """What became of the rows of some files. The good ones lie in `path`, as the artifact keeps them."""

    path: Path
    clusters: Counter[str] = field(default_factory=Counter)
    """How many rows there are of each cluster that may be held out."""
    rows: int = 0
    rejected: int = 0
    formats: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows by format in each file."""
    reasons: Counter[str] = field(default_factory=Counter)
    first_rejected: Rejected | None = None

    def summary(self) -> str:
        """Lines for people: what each file holds, and why rows were rejected, the most frequent reason first."""
        lines = []
        for name, formats in list(self.formats.items())[:_FILES_SHOWN]:
            said = ", ".join(f"{count:,} rows of {format}" for format, count in formats.most_common())
            lines.append(f"{name}: {said or 'nothing to learn from'}")
        if len(self.formats) > _FILES_SHOWN:
            lines.append(f"… and {len(self.formats) - _FILES_SHOWN} more files")
        if self.rejected:
            lines.append(f"{self.rejected:,} rows rejected; {REJECTED} has each with its line")
            lines += [f"  {count:,} × {reason}" for reason, count in self.reasons.most_common(_REASONS_SHOWN)]
        return "\n".join(lines)


def chat_entry(row: Mapping[str, Any]) -> Entry:
    """A conversation as `chats.parquet` keeps it. Raises WrongRow."""
    chat = to_chat(row)
    asked = canonical_json([message["content"] for message in chat.messages if message["role"] != "assistant"])
    calls = bool(chat.tools) or any(message.get("tool_calls") for message in chat.messages)
    columns = {
        "id": _digest(canonical_json([chat.messages, chat.tools] if chat.tools else chat.messages)),
        "messages": _json(chat.messages),
        "tools": _json(chat.tools) if chat.tools else "",
        "cluster": _digest(asked)[:16],
    }
    return Entry(chat.format, columns, can_be_held_out=not calls)


def preference_entry(row: Mapping[str, Any]) -> Entry:
    """A preference or a labelled answer as `preferences.parquet` keeps it. Raises WrongRow."""
    found = to_preference(row)
    ids = [
        _digest(canonical_json([found.prompt, found.tools, *answers]))
        for answers in ((found.chosen, found.rejected), (found.rejected, found.chosen))
    ]
    columns = {
        "id": ids[0],
        "prompt": _json(found.prompt),
        "chosen": found.chosen,
        "rejected": found.rejected,
        "tools": _json(found.tools) if found.tools else "",
        "cluster": _digest(canonical_json(found.prompt))[:16],
        "chosen_by": "file",
    }
    return Entry(found.format, columns, ids[1])


def convert(
    files: Sequence[SourceFile],
    source: str,
    license: str,
    entry: Callable[[Mapping[str, Any]], Entry],
    schema: pa.Schema,
    folder: Path,
    on_file: Callable[[int], None] = lambda done: None,
) -> Converted:
    """Read `files` row by row; good rows go to a table in `folder`, the others to `rejected.parquet` there."""
    result = Converted(folder / "rows.parquet")
    seen: dict[bytes, str] = {}
    never_held_out: set[str] = set()
    with Rows(result.path, schema) as rows, Rows(folder / REJECTED, rejected_schema()) as rejected:
        for number, file in enumerate(files, 1):
            formats = result.formats.setdefault(file.name, Counter())
            for found in _entries(file, entry, seen):
                if isinstance(found, Rejected):
                    rejected.add(vars(found))
                    result.reasons[found.reason.partition(":")[0].partition(" (row ")[0]] += 1
                    result.first_rejected = result.first_rejected or found
                    continue
                rows.add({**found.columns, "source": source, "license": license})
                formats[found.format] += 1
                cluster = str(found.columns["cluster"])
                result.clusters[cluster] += 1
                if not found.can_be_held_out:
                    never_held_out.add(cluster)
            on_file(number)
    for cluster in never_held_out:
        del result.clusters[cluster]
    result.rows, result.rejected = rows.count, rejected.count
    return result


def _entries(
    file: SourceFile, entry: Callable[[Mapping[str, Any]], Entry], seen: dict[bytes, str]
) -> Iterator[Entry | Rejected]:
    line = 0
    try:
        for found in read_table(file, LONGEST_ROW_BYTES):
            line = found.line
            if isinstance(found.row, str):
                yield found.rejected(file.name, found.row)
                continue
            try:
                made = entry(found.row)
            except WrongRow as error:
                yield found.rejected(file.name, str(error))
                continue
            except RecursionError:
                yield found.rejected(file.name, "nested too deeply")
                continue
            id, opposite = (bytes.fromhex(one)[:16] for one in (str(made.columns["id"]), made.opposite))
            if id in seen:
                yield found.rejected(file.name, f"a double: the same as {seen[id]}")
            elif opposite in seen:
                yield found.rejected(file.name, f"a contradiction: the opposite of {seen[opposite]}")
            else:
                seen[id] = (
                    f"{file.name} line {found.line}"
                    if found.line == found.number
                    else (f"{file.name} row {found.number}")
                )
                yield made
    except UNREADABLE as error:
        yield broken_off(file.name, line, error)


def _json(value: Sequence[Message]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
