"""Mark the documents that share words with items of eval sets, and say which words, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.overlap import Overlaps
from liuyi.data.attributes import read_groups, with_columns
from liuyi.data.contamination.items import Items
from liuyi.data.corpus import Rows
from liuyi.data.parts import map_groups

if TYPE_CHECKING:
    import pyarrow as pa

CONTAMINATION = "contamination.parquet"
CONTAMINATED_BY = "contaminated_by"


def contamination_schema() -> pa.Schema:
    """The columns of `contamination.parquet`: one row a run of words that a document and an item share."""
    import pyarrow as pa

    names = [(name, pa.string()) for name in ("document", "item", "evalset", "words")]
    return pa.schema([*names, ("start", pa.int64()), ("end", pa.int64())])


@dataclass(frozen=True)
class Marked:
    """What was found."""

    documents: int
    """Documents that share words with an item."""
    items: int
    """Items that share words with a document."""


def mark(
    source: Path,
    out: Path,
    items: Items,
    workdir: Path,
    *,
    ngram: int,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Marked:
    """Write the corpus `source` to `out` with the attribute `contaminated_by`, and `contamination.parquet` beside it.

    An item that several eval sets have is named once. The result depends neither on the engine nor on the number of
    workers.
    """
    import pyarrow as pa

    index = Overlaps(items.prompts, ngram)
    found = map_groups(
        partial(find_in_group, index), source, ["text"], workdir, workers=workers, on_progress=on_progress
    )
    schema = pa.schema([(CONTAMINATED_BY, pa.list_(pa.string()))])
    documents: set[str] = set()
    hit: set[int] = set()

    def columns(rows: Rows) -> Iterator[pa.Table]:
        for group, table in zip(read_groups(source, ["id"]), found, strict=True):
            named = []
            for id, matches in zip(group["id"].to_pylist(), table["matches"].to_pylist(), strict=True):
                numbers = [match.pop("item") for match in matches]
                for item, match in zip(numbers, matches, strict=True):
                    rows.add({"document": id, "item": items.ids[item], "evalset": items.evalsets[item], **match})
                hit.update(numbers)
                documents.update([id] if numbers else [])
                named.append(list(dict.fromkeys(items.ids[item] for item in numbers)))
            yield pa.table([named], schema=schema)

    with Rows(out / CONTAMINATION, contamination_schema()) as rows:
        with_columns(source, out, schema, columns(rows))
    return Marked(len(documents), len(hit))


def find_in_group(index: Overlaps, group: pa.Table) -> pa.Table:
    """For each document of a row group, what it shares with the items of the index."""
    import pyarrow as pa

    matches: list[list[dict[str, int | str]]] = [[] for _ in range(group.num_rows)]
    for found in index.find([text or "" for text in group["text"].to_pylist()]):
        matches[found.text].append({"item": found.item, "words": found.words, "start": found.start, "end": found.end})
    kind = pa.struct([("item", pa.int64()), ("words", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
    return pa.table({"matches": pa.array(matches, pa.list_(kind))})
