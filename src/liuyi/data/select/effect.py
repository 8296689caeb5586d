"""What cleaning did, for a person to look at: funnel, tables by source, licence and language, and samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.core.effect import Bars, Effect, Sample, Samples, Table
from liuyi.data.select.rules import KEPT
from liuyi.data.select.run import Selection

_LARGEST = 20
_SAMPLES_KEPT = 6
_SAMPLES_A_REASON = 2
_SAMPLE_CHARS = 500


def effect(selection: Selection, *, masked: bool) -> Effect:
    """The effect of stage data."""
    kept, size = selection.kept, selection.bytes
    dropped = Counter(selection.reasons[~kept].tolist())
    most = ", ".join(f"{count:,} {reason}" for reason, count in _ranked(dropped)[:3]) or "nothing"
    held = kept & selection.held_out
    clusters = len(set(selection.documents["cluster"].filter(pa.array(held)).to_pylist()))
    hidden = _spans(selection)[kept].sum()
    summary = (
        f"{len(kept):,} documents ({_mb(size)} MB) became {kept.sum():,} ({_mb(size[kept])} MB); dropped most: {most}. "
        f"{clusters} clusters ({_mb(size[held])} MB) are held out whole"
        + (f"; {hidden:,} spans of personal data are masked." if masked else "; personal data is not masked.")
    )
    blocks = (
        Bars(title="Documents dropped, by reason", bars=tuple(_ranked(dropped)), unit="documents"),
        _figures(selection, masked=masked),
        _kept_by(selection, "source", "By source", selection.documents["source"].to_pylist()),
        _kept_by(selection, "licence", "By licence", selection.documents["license"].to_pylist()),
        _kept_by(selection, "language", "By language", selection.languages.to_pylist()),
        Samples(title="Kept", samples=tuple(_samples(selection, KEPT, _SAMPLES_KEPT))),
        Samples(
            title="Dropped",
            samples=tuple(
                sample for reason, _ in _ranked(dropped) for sample in _samples(selection, reason, _SAMPLES_A_REASON)
            ),
        ),
    )
    return Effect(stage="data", title="Cleaning and selection", summary=summary, blocks=blocks)


def _figures(selection: Selection, *, masked: bool) -> Table:
    kept, size, attributes = selection.kept, selection.bytes, selection.attributes
    duplicate = attributes["duplicate_kind"].to_numpy(zero_copy_only=False)
    source = np.array(selection.documents["source"].to_pylist(), dtype=object)
    spans = _spans(selection)
    chars = attributes["chars"].to_numpy()

    def row(name: str, before: float, after: float) -> tuple[str, float, float]:
        return name, before, after

    rows = (
        row("documents", len(kept), int(kept.sum())),
        row("megabytes", _mb(size), _mb(size[kept])),
        row("bytes", int(size.sum()), int(size[kept].sum())),
        row("sources", len(set(source)), len(set(source[kept]))),
        row("median characters", _median(chars), _median(chars[kept])),
        row("exact duplicates", int((duplicate == "exact").sum()), int((duplicate[kept] == "exact").sum())),
        row("near duplicates", int((duplicate == "near").sum()), int((duplicate[kept] == "near").sum())),
        row("spans of personal data", int(spans.sum()), 0 if masked else int(spans[kept].sum())),
    )
    return Table(title="Before and after", columns=("figure", "before", "after"), rows=rows)


def _kept_by(selection: Selection, name: str, title: str, values: Sequence[str]) -> Table:
    rows: dict[str, list[float]] = {}
    for value, size, kept, held in zip(
        values, selection.bytes.tolist(), selection.kept.tolist(), selection.held_out.tolist(), strict=True
    ):
        row = rows.setdefault(value or "unknown", [0, 0, 0, 0, 0])
        row[0] += 1
        row[1] += size
        row[2] += kept
        row[3] += size * kept
        row[4] += size * (kept and held)
    ranked = sorted(rows.items(), key=lambda pair: (-pair[1][1], pair[0]))
    shown: list[tuple[str | float | int, ...]] = [(value, *_in_mb(row)) for value, row in ranked[:_LARGEST]]
    rest = [row for _, row in ranked[_LARGEST:]]
    if rest:
        shown.append((f"{len(rest)} more", *_in_mb([sum(column) for column in zip(*rest, strict=True)])))
    return Table(title=title, columns=(name, "documents", "MB", "kept", "MB kept", "MB held out"), rows=tuple(shown))


def _in_mb(row: Sequence[float]) -> tuple[float, ...]:
    documents, size, kept, kept_size, held_size = row
    return documents, round(size / 1e6, 2), kept, round(kept_size / 1e6, 2), round(held_size / 1e6, 2)


def _samples(selection: Selection, reason: str, count: int) -> list[Sample]:
    rows = np.flatnonzero(selection.reasons == reason).tolist()
    ids = selection.documents["id"]
    rows.sort(key=lambda row: hashlib.sha256(ids[row].as_py().encode()).digest())
    return [_sample(selection, row) for row in rows[:count]]


def _sample(selection: Selection, row: int) -> Sample:
    document = selection.documents.slice(row, 1).to_pylist()[0]
    attributes = selection.attributes.slice(row, 1).to_pylist()[0]
    reason = selection.reasons[row]
    note = f"{document['source']} · {document['license']} · {attributes['lang']} · {attributes['words']:,} words"
    if attributes["duplicate_of"]:
        note += f" · {attributes['duplicate_similarity']:.2f} like {attributes['duplicate_of'][:12]}"
    return Sample(
        title=f"{reason}: {document['url']}" if reason else document["url"],
        text=document["text"][:_SAMPLE_CHARS],
        note=f"{note} · {document['id'][:12]}",
    )


def _spans(selection: Selection) -> NDArray[np.int64]:
    return np.asarray(pc.list_value_length(selection.attributes["pii"]).to_numpy(), np.int64)


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _median(values: NDArray[np.int64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _mb(sizes: NDArray[np.int64]) -> float:
    return round(float(sizes.sum()) / 1e6, 2)
