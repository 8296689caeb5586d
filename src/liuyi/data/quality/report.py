"""What a trained classifier has to show: held-out figures, curves, telling words, and what should make one doubt it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from liuyi.core.effect import Bars, Block, Curves, Effect, Sample, Samples, Series, Table
from liuyi.core.words import blocks, fold, words_of
from liuyi.data.clean.batch import Batch
from liuyi.data.clean.language import languages
from liuyi.data.quality.classifier import Classifier
from liuyi.data.quality.examples import Examples
from liuyi.data.quality.features import MAX_CHARS, places
from liuyi.data.quality.measure import Figure, auc, calibration_error, rates, with_intervals
from liuyi.data.quality.train import can_divide

FEW = 200
"""With fewer examples of a kind, intervals are wide and a threshold is a guess."""
_FEW_GROUPS = 5
_TRIVIAL_AUC = 0.8
_TRIVIAL_LANGUAGE = 0.2
_LANGUAGE_CHARS = 2000
_TELLING = 15
_BINS = 20
_THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))
_SAMPLES = 3
_SAMPLE_CHARS = 500


@dataclass(frozen=True)
class Assessment:
    """How a classifier did on examples that it had not seen."""

    scores: NDArray[np.floating]
    """[examples] the held-out score of each."""
    figures: dict[str, Figure]
    """AUC, and precision and recall at 0.5."""
    calibration_error: float
    warnings: tuple[str, ...]
    unseen: str
    """`sources` where none was on both sides of a split, `examples` where one kind has a single source."""


def assess(examples: Examples, scores: NDArray[np.floating]) -> Assessment:
    """Measure held-out scores, and look for what else than quality may tell the classes apart."""
    good, groups = examples.labels, examples.groups
    apart = can_divide(good, groups)
    figures = with_intervals(scores, good, groups if apart else np.arange(len(good)))
    unseen = "sources" if apart else "examples"
    return Assessment(scores, figures, calibration_error(scores, good), tuple(_warnings(examples)), unseen)


def effect(examples: Examples, classifier: Classifier, rows: sparse.csr_matrix, found: Assessment) -> Effect:
    """The effect of training a classifier from rows of `features` of its examples."""
    good, scores, area = examples.labels, found.scores, found.figures["AUC"]
    summary = (
        f"Learnt from {len(examples.good):,} good and {len(examples.bad):,} "
        f"{'randomly sampled' if examples.sampled else 'bad'} documents. On {found.unseen} that it had not seen it "
        f"puts a good one above a bad one in {area.value:.1%} of pairs (95 % interval {area.low:.1%} to "
        f"{area.high:.1%})."
    )
    if found.warnings:
        summary += f" Doubts: {'; '.join(found.warnings)}."
    blocks: tuple[Block, ...] = (
        _figures(found),
        _thresholds(scores, good),
        _curves(scores, good),
        _histogram(scores, good),
        *_telling(examples.texts, classifier, rows),
        _mistakes("Good, scored lowest", examples, scores, good),
        _mistakes("Bad, scored highest", examples, -scores, ~good),
    )
    return Effect(stage="data", title="Learned quality", summary=summary, blocks=blocks)


def _warnings(examples: Examples) -> list[str]:
    good, groups = examples.labels, examples.groups
    found = [
        f"{len(kind)} {name} examples are few; {FEW} or more make the figures firm"
        for name, kind in (("good", examples.good), ("bad", examples.bad))
        if len(kind) < FEW
    ]
    for name, kind in (("good", good), ("bad", ~good)):
        sources = len(np.unique(groups[kind]))
        if sources < _FEW_GROUPS:
            found.append(
                f"all {name} examples come from {sources} source{'s' * (sources > 1)}, which may be what is learnt"
            )
    if examples.contradictions:
        found.append(f"{examples.contradictions} texts were given as good and as bad, and left out")
    length = auc(np.array([len(text) for text in examples.texts]), good)
    if max(length, 1 - length) > _TRIVIAL_AUC:
        longer = "longer" if length > 0.5 else "shorter"
        found.append(f"good examples are {longer}: length alone tells {max(length, 1 - length):.0%} of pairs")
    heads = Batch(pa.array([text[:_LANGUAGE_CHARS] for text in examples.texts]))
    apart, language = _language_difference(languages(heads)["lang"], good)
    if apart > _TRIVIAL_LANGUAGE:
        found.append(f"the classes differ in language, most in '{language}' ({apart:.0%} of the documents)")
    return found


def _language_difference(langs: Sequence[str], good: NDArray[np.bool_]) -> tuple[float, str]:
    """(total variation between the languages of the classes, the language that differs most)."""
    shares = []
    for kind in (good, ~good):
        counts = Counter(lang for lang, here in zip(langs, kind, strict=True) if here)
        shares.append({lang: count / kind.sum() for lang, count in counts.items()})
    gaps = {lang: abs(shares[0].get(lang, 0) - shares[1].get(lang, 0)) for lang in sorted(set(langs))}
    return sum(gaps.values()) / 2, max(gaps, key=lambda lang: gaps[lang])


def _figures(found: Assessment) -> Table:
    rows = [(name, one.value, one.low, one.high) for name, one in found.figures.items()]
    return Table(
        title=f"On {found.unseen} not seen",
        columns=("figure", "value", "low", "high"),
        rows=tuple(rows),
        note="Precision and recall are those of keeping what scores 0.5 or more, with as many good as bad documents. "
        f"A score is off by {found.calibration_error:.3f} on average from the share of good documents at it.",
    )


def _thresholds(scores: NDArray[np.floating], good: NDArray[np.bool_]) -> Table:
    rows = []
    for threshold in _THRESHOLDS:
        precision, recall = rates(scores, good, threshold)
        rows.append((threshold, precision, recall, float((scores[~good] >= threshold).mean())))
    return Table(
        title="What a threshold keeps",
        columns=("min_quality_score", "precision", "good kept", "bad kept"),
        rows=tuple(rows),
    )


def _curves(scores: NDArray[np.floating], good: NDArray[np.bool_]) -> Curves:
    ends = np.unique(np.quantile(scores, np.linspace(0, 1, 101)))
    points = sorted({(recall, precision) for precision, recall in (rates(scores, good, end) for end in ends)})
    series = Series(name="threshold from 1 to 0", x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
    return Curves(title="Precision and recall", x_label="recall", y_label="precision", series=(series,))


def _histogram(scores: NDArray[np.floating], good: NDArray[np.bool_]) -> Curves:
    edges = np.linspace(0, 1, _BINS + 1)
    middle = tuple(((edges[1:] + edges[:-1]) / 2).tolist())
    series = tuple(
        Series(name=name, x=middle, y=tuple((np.histogram(scores[kind], edges)[0] / kind.sum()).tolist()))
        for name, kind in (("good", good), ("bad", ~good))
    )
    return Curves(title="Scores", x_label="score", y_label="share of documents", series=series)


def _telling(texts: Sequence[str], classifier: Classifier, rows: sparse.csr_matrix) -> tuple[Bars, Bars]:
    """The words and pairs that move the most margin over all examples, each way."""
    moved = np.asarray(rows.mean(axis=0)).ravel() * classifier.weights * classifier.slope
    order = np.argsort(moved)
    chosen = {"good": order[::-1][:_TELLING], "bad": order[:_TELLING]}
    names = _names(texts, np.concatenate(list(chosen.values())))

    def bars(title: str, buckets: NDArray[np.intp], sign: int) -> Bars:
        shown = [(names[bucket], float(abs(moved[bucket]))) for bucket in buckets.tolist() if sign * moved[bucket] > 0]
        return Bars(title=title, bars=tuple(shown), note="how much each moves an example's log-odds, on average")

    return bars("Words that speak for good", chosen["good"], 1), bars("Words that speak for bad", chosen["bad"], -1)


def _names(texts: Sequence[str], wanted: NDArray[np.intp]) -> dict[int, str]:
    """The words that are most often behind each of the buckets."""
    counts: dict[int, Counter[str]] = {bucket: Counter() for bucket in wanted.tolist()}
    heads = [text[:MAX_CHARS] for text in texts]
    for here in blocks(heads):
        words = words_of(heads[here])
        single, pairs, first = places(words)
        folded = [fold(text) for text in heads[here]]
        for buckets, begins, length in ((single, np.arange(len(single)), 1), (pairs, first, 2)):
            for at in np.flatnonzero(np.isin(buckets, wanted)).tolist():
                word = int(begins[at])
                text = folded[int(np.searchsorted(words.offsets, word, side="right")) - 1]
                counts[int(buckets[at])][text[words.starts[word] : words.ends[word + length - 1]]] += 1
    return {bucket: " ".join(found.most_common(1)[0][0].split()) for bucket, found in counts.items() if found}


def _mistakes(title: str, examples: Examples, keys: NDArray[np.floating], kind: NDArray[np.bool_]) -> Samples:
    """The examples of one kind with the smallest keys."""
    every = (*examples.good, *examples.bad)
    rows = [row for row in np.argsort(keys, kind="stable").tolist() if kind[row]][:_SAMPLES]
    shown = (
        Sample(title=f"{abs(keys[row]):.2f}: {every[row].group}", text=every[row].text[:_SAMPLE_CHARS]) for row in rows
    )
    return Samples(title=title, samples=tuple(shown))
