"""Decide over a cleaned corpus and write what was decided: what is kept, what is held out, what was dropped and why.

Two passes over the row groups of the corpus: `decide` reads attributes and keeps a few numbers a document, `write`
reads the texts. Neither holds more than a row group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.attributes import read_beside
from liuyi.data.corpus import DOCUMENTS, DROPPED, Groups, document_schema
from liuyi.data.select.decision import Decision, Numbered, Samples
from liuyi.data.select.edit import cut_ratio, edited, span_counts
from liuyi.data.select.edits import CUT, MASKED, Edits
from liuyi.data.select.rules import KEPT, Attributes, reasons
from liuyi.data.select.split import held_out_clusters
from liuyi.data.select.thresholds import Thresholds

_HEAD_CHARS = 600
_LIKELY = 0.3
_SAMPLES = 6
"""Documents of each reason that can be shown."""
_PLACES = ("source", "license", "cluster")
_FIGURES = ("bytes", "chars", MASKED, CUT)


@dataclass(frozen=True)
class Written:
    """What was written."""

    documents: Mapping[str, int]
    """How many, by name: `train`, `heldout`, `dropped`."""
    samples: Mapping[int, Mapping[str, Any]]
    """The documents that can be shown, by their numbers; what was measured is in `measured`."""


def decide(folder: Path, thresholds: Thresholds, edits: Edits, *, heldout_fraction: float) -> Decision:
    """Apply thresholds to a cleaned corpus and choose the clusters to hold out; texts are not read.

    Raises ArtifactError where the corpus has no attributes, DataError where one that a threshold asks for is missing
    or the corpus cannot be split.
    """
    why, samples = Numbered(KEPT), Samples(_SAMPLES)
    places = {name: Numbered() for name in (*_PLACES, "lang", "duplicate_kind")}
    figures: dict[str, list[NDArray[np.int64]]] = {name: [np.zeros(0, np.int64)] for name in _FIGURES}
    for documents, attributes in read_beside(folder, _PLACES):
        cut = cut_ratio(attributes) if edits.cut_repeated else 0.0
        given = why.add(reasons(Attributes(attributes, documents["license"], cut), thresholds))
        samples.add(given, documents["id"].to_pylist())
        for name in places:
            column = _languages(attributes) if name == "lang" else (documents if name in _PLACES else attributes)[name]
            places[name].add(column.to_pylist())
        for name in _FIGURES:
            figures[name].append(_figure(attributes, name))
    whole = {name: np.concatenate(parts) for name, parts in figures.items()}
    held_out = _held_out(places["cluster"], whole["bytes"], why.numbers == 0, heldout_fraction)
    return Decision(why, held_out, whole, places, samples.rows(why))


def _figure(attributes: pa.Table, name: str) -> NDArray[np.int64]:
    if name not in attributes.column_names:
        return np.zeros(attributes.num_rows, np.int64)
    return span_counts(attributes[name]) if name in (MASKED, CUT) else np.asarray(attributes[name].to_numpy(), np.int64)


def _held_out(
    clusters: Numbered, sizes: NDArray[np.int64], kept: NDArray[np.bool_], fraction: float
) -> NDArray[np.bool_]:
    documents, size = clusters.totals(kept), clusters.totals(sizes * kept)
    kept_bytes = {name: int(size[number]) for name, number in clusters.number_of.items() if documents[number]}
    chosen = [clusters.number_of[name] for name in held_out_clusters(kept_bytes, fraction)]
    return np.isin(clusters.numbers, chosen)


def write(
    folder: Path,
    decision: Decision,
    edits: Edits,
    train: Path,
    heldout: Path,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Written:
    """Write both corpora, kept texts edited, and beside the one to train on what was dropped.

    What is written of dropped documents, and of samples, is as it came but for personal data: where kept texts have a
    placeholder, so have these.
    """
    shown = frozenset(row for rows in decision.samples.values() for row in rows)
    samples: dict[int, Mapping[str, Any]] = {}
    start = 0
    schema = document_schema()
    is_kept = decision.kept
    masking = edits.model_copy(update={"cut_repeated": False, "simplify_chinese": False})
    with (
        Groups(train / DOCUMENTS, schema) as training,
        Groups(heldout / DOCUMENTS, schema) as held,
        Groups(train / DROPPED, _dropped_schema()) as dropped,
    ):
        for documents, attributes in read_beside(folder, schema.names):
            here = slice(start, start + documents.num_rows)
            kept, held_out = is_kept[here], decision.held_out[here]
            for out, rows in ((training, kept & ~held_out), (held, kept & held_out)):
                out.add(_kept(documents, attributes, rows, edits).select(schema.names).cast(schema))
            dropped.add(_dropped(documents, attributes, decision.reasons, here, masking))
            for row in shown.intersection(range(here.start, here.stop)):
                samples[row] = _sample(documents.slice(row - start, 1), attributes.slice(row - start, 1), masking)
            start = here.stop
            on_progress(start)
    counts = {"train": training.count, "heldout": held.count, "dropped": dropped.count}
    return Written(counts, samples)


def _sample(document: pa.Table, attributes: pa.Table, masking: Edits) -> dict[str, Any]:
    (text,) = edited(document["text"], attributes, masking).to_pylist()
    (values,), (measured,) = document.to_pylist(), attributes.to_pylist()
    return {**values, "text": text, "measured": measured}


def _kept(documents: pa.Table, attributes: pa.Table, rows: NDArray[np.bool_], edits: Edits) -> pa.Table:
    chosen = pa.array(rows)
    documents, attributes = documents.filter(chosen), attributes.filter(chosen)
    lang = pc.if_else(pc.equal(documents["lang"], ""), _languages(attributes), documents["lang"])
    for name, column in (("text", edited(documents["text"], attributes, edits)), ("lang", lang)):
        documents = documents.set_column(documents.schema.get_field_index(name), name, column)
    return documents


def _dropped(documents: pa.Table, attributes: pa.Table, why: Numbered, here: slice, masking: Edits) -> pa.Table:
    """Each dropped document: id, reason, what it duplicates, the head of its text, and where it came from."""
    numbers = why.numbers[here]
    chosen = pa.array(numbers != 0)
    documents, attributes = documents.filter(chosen), attributes.filter(chosen)
    columns = {
        **{name: documents[name] for name in _dropped_schema().names if name in documents.column_names},
        "reason": pa.array([why.names[number] for number in numbers[numbers != 0]], pa.string()),
        "duplicate_of": attributes["duplicate_of"],
        "text": pc.utf8_slice_codeunits(edited(documents["text"], attributes, masking), 0, _HEAD_CHARS),
    }
    return pa.table([columns[name] for name in _dropped_schema().names], schema=_dropped_schema())


def _dropped_schema() -> pa.Schema:
    names = ("id", "reason", "duplicate_of", "text", "source", "url", "license", "cluster")
    return pa.schema([(name, pa.string()) for name in names])


def _languages(attributes: pa.Table) -> pa.ChunkedArray:
    """The language of each document as detected; empty where that is little more than a guess."""
    return pc.if_else(pc.greater_equal(attributes["lang_score"], _LIKELY), attributes["lang"], "")
