"""What the searches for repeated text and for eval items cost, and whether a suffix array finds the same.

    python benchmarks/data/repeated.py [--mb 20] [--bytes 200] [--peer /path/to/pydivsufsort/bin/python]

The documents are the docstrings and readmes of the installed Python packages; the eval items are 10,000 sentences of 8
to 60 words that no document holds, and 100 that are copied from documents. CPU seconds are of one process, with
reading and writing; the start of an engine's processes is left out, as row groups are mapped in this one.

The peer runs in an environment of its own: python -m venv V; V/bin/pip install pydivsufsort pyarrow
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from liuyi.core.overlap import Overlaps
from liuyi.data.contamination.mark import find_in_group
from liuyi.data.corpus import DOCUMENTS, Document, write_documents
from liuyi.data.dedup.lines import Repeats, Unit, repeated_pieces
from liuyi.data.dedup.substrings import repeated_substrings
from liuyi.data.sources.distributions import chosen
from liuyi.data.sources.python_docs import read_distributions

_PEER = Path(__file__).parent / "peers" / "suffix_array.py"
_ITEMS, _COPIED = 10_000, 100


_done: dict[str, list[pa.Table]] = {}


def map_here(
    function: Callable[[pa.Table], pa.Table], source: Path, columns: Sequence[str], workdir: Path, **_: Any
) -> Iterator[pa.Table]:
    """Row groups mapped in this process, so that its CPU seconds are all there are; what is done is kept, as ever."""
    if str(workdir) not in _done:
        with pq.ParquetFile(source / DOCUMENTS) as file:
            groups = (file.read_row_group(number, columns=list(columns)) for number in range(file.num_row_groups))
            _done[str(workdir)] = [function(group) for group in groups]
    yield from _done[str(workdir)]


def measured(name: str, size: int, work: Callable[[], Any]) -> Any:
    begun = time.process_time()
    done = work()
    seconds = time.process_time() - begun
    print(f"{name}: {seconds:.2f} CPU s = {size / 1e6 / seconds:.1f} MB/s")
    return done


def byte_spans(text: str, spans: list[dict[str, Any]]) -> list[list[int]]:
    """Spans of characters as spans of bytes."""
    return [[len(text[: span["start"]].encode()), len(text[: span["end"]].encode())] for span in spans]


def whole_characters(text: str, spans: list[list[int]]) -> list[list[int]]:
    """Spans of bytes without the parts of characters at their ends."""
    data = text.encode()
    found = []
    for start, end in spans:
        while start < end and data[start] & 0xC0 == 0x80:
            start += 1
        while end > start and end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        if start < end:
            found.append([start, end])
    return found


def compare(
    folder: Path, python: str, length: int, texts: list[str], ours: list[list[dict[str, Any]]], size: int
) -> None:
    done = subprocess.run(
        [python, str(_PEER), str(folder / DOCUMENTS), str(length)], stdout=subprocess.PIPE, check=True
    )
    answer = json.loads(done.stdout)
    seconds, peak = answer["seconds"], answer["peak_bytes"]
    print(
        f"suffix array: {seconds:.2f} CPU s = {size / 1e6 / seconds:.1f} MB/s, {peak / size:.1f} bytes of memory a byte"
    )
    theirs = {int(document): spans for document, spans in answer["spans"].items()}
    same = sum(
        whole_characters(text, theirs.get(number, [])) == byte_spans(text, ours[number])
        for number, text in enumerate(texts)
    )
    print(f"the suffix array marks the same bytes in {same:,} of {len(texts):,} documents")


def items(documents: list[Document]) -> list[str]:
    rng = random.Random(3)
    words = [word for one in documents[:200] for word in one.text.split() if word.isalpha()]
    made = [" ".join(rng.choices(words, k=rng.randint(8, 60))) for _ in range(_ITEMS)]
    for document in rng.sample([one for one in documents if len(one.text.split()) > 100], _COPIED):
        found = document.text.split()
        start = rng.randrange(len(found) - 30)
        made.append(" ".join(found[start : start + 30]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20, help="megabytes of text")
    parser.add_argument("--bytes", type=int, default=200, help="length from which a substring counts as repeated")
    parser.add_argument("--peer", default="", help="the Python of an environment with pydivsufsort")
    asked = parser.parse_args()
    documents, _ = read_distributions(chosen(), max_bytes=int(asked.mb * 1e6), max_bytes_per_source=int(asked.mb * 2e5))
    texts = [one.text for one in documents]
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB")
    with (
        tempfile.TemporaryDirectory() as work,
        mock.patch("liuyi.data.dedup.lines.map_groups", map_here),
        mock.patch("liuyi.data.dedup.substrings.map_groups", map_here),
    ):
        folder = Path(work)
        write_documents(folder, documents)
        units: list[tuple[Unit, int]] = [("line", 10), ("paragraph", 3)]
        for unit, count in units:
            rule = Repeats(unit, count, 6, keep_first=True)
            spans = measured(f"{unit}s", size, partial(_all, repeated_pieces, folder, folder / unit, rule))
            print(f"  {_covered(spans) / sum(map(len, texts)):.2%} of the characters are in repeated {unit}s")
        spans = measured("substrings", size, partial(_all, repeated_substrings, folder, folder, asked.bytes))
        print(f"  {_covered(spans) / sum(map(len, texts)):.2%} of the characters are in repeated substrings")
        if asked.peer:
            rows = [row for part in spans for row in part.to_pylist()]
            compare(folder, asked.peer, asked.bytes, texts, rows, size)
        index = measured(f"index of {_ITEMS + _COPIED:,} items", size, lambda: Overlaps(items(documents)))
        tables = measured(
            "contamination", size, lambda: list(map_here(partial(find_in_group, index), folder, ["text"], folder))
        )
        matched = {match["item"] for table in tables for row in table["matches"].to_pylist() for match in row}
        copied = sum(item >= _ITEMS for item in matched)
        print(f"  {copied} of {_COPIED} copied items found, and {len(matched) - copied} others")


def _all(search: Callable[..., Iterator[pa.Array]], *given: Any) -> list[pa.Array]:
    return list(search(*given))


def _covered(spans: list[pa.Array]) -> int:
    return sum(span["end"] - span["start"] for part in spans for row in part.to_pylist() for span in row)


if __name__ == "__main__":
    main()
