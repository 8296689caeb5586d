"""Duplicates over a whole corpus, and for each the document that stays in its place.

Documents are taken by preference: one stays unless it is similar to one that stays already. So whatever is dropped is
as similar as the threshold to a document that is kept, and no chain of small changes leads from one to the other.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from liuyi.core.cores import cores
from liuyi.data.attributes import read_groups
from liuyi.data.dedup.candidates import candidate_groups
from liuyi.data.dedup.minhash import Signatures
from liuyi.data.dedup.ragged import changes
from liuyi.data.dedup.verify import settle

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Fingerprints = NDArray[np.uint64]
"""[documents, 2]"""

_LENGTHS_TOLD_APART = 5.0
"""Lengths are about equal within steps of e^(1/5), some 20 %."""


def duplicate_schema() -> pa.Schema:
    """The attributes that say what a document duplicates."""
    import pyarrow as pa

    return pa.schema(
        [("duplicate_of", pa.string()), ("duplicate_kind", pa.string()), ("duplicate_similarity", pa.float32())]
    )


@dataclass(frozen=True)
class Duplicates:
    """For each document the number of the one that stays in its place."""

    representative: Ints
    """[documents] own number where the document itself stays."""
    similarity: NDArray[np.float32]
    """[documents] similarity to the representative; 1 where it is the same document or an exact duplicate."""
    kind: NDArray[np.object_]
    """[documents] `exact`, `near` or `semantic`; empty where the document stays."""

    def attributes(self, folder: Path) -> Iterator[pa.Table]:
        """The columns of `duplicate_schema`, by row groups of the corpus."""
        import pyarrow as pa

        gone = self.representative != np.arange(len(self.representative))
        named = dict.fromkeys(self.representative[gone].tolist(), "")
        start = 0
        for group in read_groups(folder, ["id"]):
            for number in range(start, start + group.num_rows):
                if number in named:
                    named[number] = group["id"][number - start].as_py()
            start += group.num_rows
        start = 0
        for group in read_groups(folder, ["id"]):
            part = slice(start, start + group.num_rows)
            names = [
                named[kept] if own else "" for kept, own in zip(self.representative[part], gone[part], strict=True)
            ]
            yield pa.table([names, self.kind[part].tolist(), self.similarity[part]], schema=duplicate_schema())
            start += group.num_rows


def by_preference(chars: Ints, url_chars: Ints, ids: Sequence[str] | NDArray[np.uint64]) -> Ints:
    """Document numbers, those first that stay: longer ones, of about equally long ones the shorter address, then id.

    A vendored copy is a few characters longer than its original, and has the longer address.
    """
    length = np.round(_LENGTHS_TOLD_APART * np.log(np.maximum(chars, 1)))
    return np.lexsort((np.asarray(ids), url_chars, -length))


def find_duplicates(
    folder: Path,
    fingerprints: Fingerprints,
    signatures: Signatures,
    chars: Ints,
    *,
    threshold: float,
    workdir: Path,
    workers: int | None = None,
) -> Duplicates:
    """The exact and near duplicates of a corpus; near ones have a Jaccard similarity of at least `threshold`.

    `fingerprints`, `signatures` (which may be a file in memory) and `chars` have one row a document, in their order.
    What does not fit in memory goes to a folder inside `workdir`. The result depends neither on the number of workers
    nor on the order of the documents.
    """
    order = by_preference(chars, *_addresses(folder))
    representative = _exact(fingerprints, order)
    similarity = np.ones(len(order), np.float32)
    kind = np.full(len(order), "", object)
    kind[representative != np.arange(len(order))] = "exact"
    unique = order[representative[order] == order]
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        groups = candidate_groups(signatures, unique, threshold, Path(scratch))
        settled = settle(folder, groups, signatures, threshold, Path(scratch), workers or cores())
        for members, kept, similar in settled:
            representative[members], similarity[members] = kept, similar
            kind[members] = "near"
    # An exact duplicate of a document that goes is as similar to what stays as that document is.
    first = representative[representative]
    passed_on = first != representative
    similarity[passed_on] = similarity[representative[passed_on]]
    kind[passed_on] = "near"
    return Duplicates(first, similarity, kind)


def _addresses(folder: Path) -> tuple[Ints, NDArray[np.uint64]]:
    """The length of each document's address, and a number for its id."""
    import pyarrow.compute as pc

    lengths, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for group in read_groups(folder, ["id", "url"]):
        lengths.append(pc.utf8_length(pc.fill_null(group["url"], "")).to_numpy().astype(np.int64))
        ids.append(np.array([_number(id) for id in group["id"].to_pylist()], np.uint64))
    return np.concatenate(lengths), np.concatenate(ids)


def _number(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big")


def _exact(fingerprints: Fingerprints, order: Ints) -> Ints:
    """[documents] the first of the documents with the same fingerprint."""
    ordered = fingerprints[order]
    by_value = np.lexsort((ordered[:, 1], ordered[:, 0]))
    begins = changes(*ordered[by_value].T)
    first = np.empty(len(order), np.int64)
    first[order[by_value]] = np.repeat(order[by_value[begins]], np.diff(np.append(begins, len(order))))
    return first
