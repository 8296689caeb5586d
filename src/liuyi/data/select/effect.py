"""What cleaning did, for a person to look at: funnel, tables by source, licence and language, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.effect import Bars, Effect, Sample, Samples, Table
from liuyi.data.select.decision import Decision, Numbered
from liuyi.data.select.edits import CUT, MASKED, Edits
from liuyi.data.select.rules import KEPT
from liuyi.data.select.run import Written

_LARGEST = 20
_SAMPLES_KEPT = 6
_SAMPLES_A_REASON = 2
_SAMPLE_CHARS = 500


def effect(decision: Decision, written: Written, edits: Edits) -> Effect:
    """The effect of stage data."""
    kept, size, why = decision.kept, decision.figures["bytes"], decision.reasons
    dropped = Counter({name: int(count) for name, count in zip(why.names, why.totals(~kept), strict=True) if count})
    most = ", ".join(f"{count:,} {reason}" for reason, count in _ranked(dropped)[:3]) or "nothing"
    held = kept & decision.held_out
    clusters = np.count_nonzero(decision.places["cluster"].totals(held))
    hidden = decision.figures[MASKED][kept].sum()
    summary = (
        f"{len(kept):,} documents ({_mb(size)} MB) became {kept.sum():,} ({_mb(size[kept])} MB); dropped most: {most}. "
        f"{clusters} clusters ({_mb(size[held])} MB) are held out whole"
        + (f"; {hidden:,} spans of personal data are masked." if edits.mask_pii else "; personal data is not masked.")
    )
    shown = written.samples
    blocks = (
        Bars(title="Documents dropped, by reason", bars=tuple(_ranked(dropped)), unit="documents"),
        _figures(decision, edits),
        _kept_by(decision, "source", "By source", decision.places["source"]),
        _kept_by(decision, "licence", "By licence", decision.places["license"]),
        _kept_by(decision, "language", "By language", decision.places["lang"]),
        Samples(title="Kept", samples=tuple(_samples(decision, shown, KEPT, _SAMPLES_KEPT))),
        Samples(
            title="Dropped",
            samples=tuple(
                sample
                for reason, _ in _ranked(dropped)
                for sample in _samples(decision, shown, reason, _SAMPLES_A_REASON)
            ),
        ),
    )
    return Effect(stage="data", title="Cleaning and selection", summary=summary, blocks=blocks)


def _figures(decision: Decision, edits: Edits) -> Table:
    kept, size, chars = decision.kept, decision.figures["bytes"], decision.figures["chars"]
    kinds, sources = decision.places["duplicate_kind"], decision.places["source"]

    def row(name: str, before: float, after: float) -> tuple[str, float, float]:
        return name, before, after

    def duplicates(kind: str) -> tuple[int, int]:
        found = kinds.numbers == kinds.number_of.get(kind, -1)
        return int(found.sum()), int((found & kept).sum())

    def spans(name: str, gone: bool) -> tuple[int, int]:
        return int(decision.figures[name].sum()), 0 if gone else int(decision.figures[name][kept].sum())

    rows = (
        row("documents", len(kept), int(kept.sum())),
        row("megabytes", _mb(size), _mb(size[kept])),
        row("bytes", int(size.sum()), int(size[kept].sum())),
        row("sources", len(sources.names), int(np.count_nonzero(sources.totals(kept)))),
        row("median characters", _median(chars), _median(chars[kept])),
        row("exact duplicates", *duplicates("exact")),
        row("near duplicates", *duplicates("near")),
        row("spans of repeated text", *spans(CUT, edits.cut_repeated)),
        row("spans of personal data", *spans(MASKED, edits.mask_pii)),
    )
    return Table(title="Before and after", columns=("figure", "before", "after"), rows=rows)


def _kept_by(decision: Decision, name: str, title: str, values: Numbered) -> Table:
    size, kept = decision.figures["bytes"], decision.kept
    weights = (np.ones_like(size), size, kept, size * kept, size * (kept & decision.held_out))
    sums = np.stack([values.totals(weight) for weight in weights], axis=1).tolist()
    ranked = sorted(zip(values.names, sums, strict=True), key=lambda pair: (-pair[1][1], pair[0]))
    shown: list[tuple[str | float | int, ...]] = [
        (value or "unknown", *_in_mb(row)) for value, row in ranked[:_LARGEST]
    ]
    rest = [row for _, row in ranked[_LARGEST:]]
    if rest:
        shown.append((f"{len(rest)} more", *_in_mb([sum(column) for column in zip(*rest, strict=True)])))
    return Table(title=title, columns=(name, "documents", "MB", "kept", "MB kept", "MB held out"), rows=tuple(shown))


def _in_mb(row: Sequence[float]) -> tuple[float, ...]:
    documents, size, kept, kept_size, held_size = row
    return documents, round(size / 1e6, 2), kept, round(kept_size / 1e6, 2), round(held_size / 1e6, 2)


def _samples(decision: Decision, shown: Mapping[int, Mapping[str, Any]], reason: str, count: int) -> list[Sample]:
    return [_sample(shown[row], reason) for row in decision.samples.get(reason, [])[:count]]


def _sample(row: Mapping[str, Any], reason: str) -> Sample:
    measured = row["measured"]
    note = f"{row['source']} · {row['license']} · {measured['lang']} · {measured['words']:,} words"
    if measured["duplicate_of"]:
        note += f" · {measured['duplicate_similarity']:.2f} like {measured['duplicate_of'][:12]}"
    return Sample(
        title=f"{reason}: {row['url']}" if reason else row["url"],
        text=row["text"][:_SAMPLE_CHARS],
        note=f"{note} · {row['id'][:12]}",
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _median(values: NDArray[np.int64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _mb(sizes: NDArray[np.int64]) -> float:
    return round(float(sizes.sum()) / 1e6, 2)
