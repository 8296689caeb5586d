"""Decide over a cleaned corpus: what is kept, what is held out, what was dropped and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from liuyi.core.errors import ArtifactError
from liuyi.data.clean.pii import Span, mask
from liuyi.data.corpus import ATTRIBUTES, read_documents
from liuyi.data.select.rules import KEPT, Attributes, reasons
from liuyi.data.select.split import held_out_clusters
from liuyi.data.select.thresholds import Thresholds

_HEAD_CHARS = 600
_LIKELY = 0.3


@dataclass(frozen=True)
class Selection:
    """A decision over a corpus; arrays have one row a document, in the order of the corpus."""

    documents: pa.Table
    attributes: pa.Table
    bytes: NDArray[np.int64]
    """[documents] UTF-8 bytes of each text."""
    reasons: NDArray[np.object_]
    """[documents] why each was dropped; empty where it was kept."""
    held_out: NDArray[np.bool_]
    """[documents] whether its cluster is held out."""

    @property
    def languages(self) -> pa.ChunkedArray:
        """[documents] the language of each as detected; empty where that is little more than a guess."""
        return _languages(self.attributes)

    @property
    def kept(self) -> NDArray[np.bool_]:
        return np.asarray(self.reasons == KEPT)

    def train(self, *, masked: bool) -> pa.Table:
        """The documents to train on, personal data masked or not."""
        return self._rows(self.kept & ~self.held_out, masked)

    def heldout(self, *, masked: bool) -> pa.Table:
        """The documents of the clusters held out."""
        return self._rows(self.kept & self.held_out, masked)

    def dropped(self) -> pa.Table:
        """Each dropped document: id, reason, what it duplicates, the head of its text, and where it came from."""
        wanted = pa.array(~self.kept)
        table = self.documents.filter(wanted)
        columns = {
            "id": table["id"],
            "reason": pa.array(self.reasons[~self.kept].tolist(), pa.string()),
            "duplicate_of": self.attributes["duplicate_of"].filter(wanted),
            "text": pc.utf8_slice_codeunits(table["text"], 0, _HEAD_CHARS),
            **{name: table[name] for name in ("source", "url", "license", "cluster")},
        }
        return pa.table(columns)

    def _rows(self, wanted: NDArray[np.bool_], masked: bool) -> pa.Table:
        table, attributes = self.documents.filter(pa.array(wanted)), self.attributes.filter(pa.array(wanted))
        if masked:
            table = table.set_column(
                table.schema.get_field_index("text"), "text", _masked(table["text"], attributes["pii"])
            )
        lang = pc.if_else(pc.equal(table["lang"], ""), _languages(attributes), table["lang"])
        return table.set_column(table.schema.get_field_index("lang"), "lang", lang)


def select(folder: Path, thresholds: Thresholds, *, heldout_fraction: float) -> Selection:
    """Apply thresholds to a cleaned corpus and split off whole clusters.

    Raises ArtifactError where the corpus has no attributes, DataError where it cannot be split.
    """
    path = folder / ATTRIBUTES
    if not path.exists():
        raise ArtifactError(f"the corpus has no {ATTRIBUTES}", where=str(folder), hint="run data.clean on it first")
    documents, attributes = read_documents(folder), pq.read_table(path)
    if not attributes["id"].equals(documents["id"]):
        raise ArtifactError(
            f"{ATTRIBUTES} and the documents do not have the same ids in the same order", where=str(folder)
        )
    why = reasons(Attributes(attributes, documents["license"]), thresholds)
    sizes = pc.binary_length(documents["text"]).to_numpy().astype(np.int64)
    clusters = np.array(documents["cluster"].to_pylist(), dtype=object)
    kept_bytes: Counter[str] = Counter()
    for cluster, size in zip(clusters[why == KEPT], sizes[why == KEPT].tolist(), strict=True):
        kept_bytes[cluster] += size
    chosen = held_out_clusters(kept_bytes, heldout_fraction)
    held_out = np.fromiter((cluster in chosen for cluster in clusters), bool, len(clusters))
    return Selection(documents, attributes, sizes, why, held_out)


def _languages(attributes: pa.Table) -> pa.ChunkedArray:
    return pc.if_else(pc.greater_equal(attributes["lang_score"], _LIKELY), attributes["lang"], "")


def _masked(texts: pa.ChunkedArray, spans: pa.ChunkedArray) -> pa.Array:
    values = texts.to_pylist()
    for row in np.flatnonzero(pc.list_value_length(spans).to_numpy()):
        found = [Span(one["start"], one["end"], one["kind"]) for one in spans[int(row)].as_py()]
        values[row] = mask(values[row], found)
    return pa.array(values, pa.string())
