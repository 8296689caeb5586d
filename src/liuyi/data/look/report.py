"""What the data page says: one section a corpus, one for each stream of tokens, from artifacts or a whole run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Block, Effect
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.data.corpus import ATTRIBUTES
from liuyi.data.look import figures
from liuyi.data.look.duplicates import Group, largest_groups
from liuyi.data.look.find import Seen, see
from liuyi.data.look.survey import Survey, survey
from liuyi.data.look.view import SELECT, View, view_of
from liuyi.data.select.thresholds import Thresholds
from liuyi.data.tokens import Tokens

LISTED = 20
"""Sources, licences and languages that are named; the others are summed up."""


@dataclass(frozen=True)
class ThresholdSection:
    """A threshold with the texts of the documents beside it."""

    figures: figures.Threshold
    description: str
    just_kept: tuple[Seen, ...]
    just_dropped: tuple[Seen, ...]


@dataclass(frozen=True)
class CorpusSection:
    """A corpus: what is kept and dropped, and by which thresholds."""

    artifact: Artifact
    view: View
    survey: Survey
    sampled: int
    """Documents that the thresholds and attributes were looked at on."""
    thresholds: tuple[ThresholdSection, ...]
    spreads: tuple[figures.Spread, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Phase:
    """A phase of a mixture: its part of the tokens, and of each source the share that was asked for and that came."""

    part: float
    shares: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class TokensSection:
    """A stream of tokens: how much there is, of what, and how long documents are."""

    artifact: Artifact
    tokens: int
    documents: int
    bytes: int
    vocab_size: int
    lengths: figures.Histogram
    """Documents by their tokens."""
    by_source: tuple[tuple[str, str, int, int], ...]
    """(source, licence, documents, tokens), the most tokens first."""
    phases: tuple[Phase, ...]
    """Empty for tokens that are no mixture."""


@dataclass(frozen=True)
class EffectSection:
    """Tables and bars that a step left: a tokenizer's figures, a mixture's shares."""

    artifact: Artifact
    title: str
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """All sections of a page."""

    title: str
    corpora: tuple[CorpusSection, ...]
    tokens: tuple[TokensSection, ...]
    effects: tuple[EffectSection, ...]


def build_report(home: Home, artifacts: Sequence[Artifact], title: str) -> Report:
    """The page about these artifacts; those that are not about data are passed over.

    Of several corpora those that selection made are looked at, with what they were made from; without any, the last
    one that was measured. Raises DataError where there is nothing to look at.
    """
    corpora = [artifact for artifact in artifacts if artifact.kind == "corpus"]
    others = [artifact for artifact in artifacts if artifact.kind in ("tokens", "tokenizer")]
    if not corpora and not others:
        raise DataError(f"{title} holds no data to report on", hint="corpora, tokens and tokenizers are")
    return Report(
        title,
        tuple(corpus_section(home, artifact) for artifact in _chosen(corpora)),
        tuple(tokens_section(artifact) for artifact in others if artifact.kind == "tokens"),
        tuple(section for artifact in others if (section := _effect_section(artifact)) is not None),
    )


def corpus_section(home: Home, artifact: Artifact) -> CorpusSection:
    """Everything about a corpus: one pass over its attributes, and texts only of the documents that are shown."""
    view = view_of(home, artifact)
    found = survey(view)
    groups = tuple(largest_groups(view, found.duplicates)) if found.duplicates else ()
    if view.judge is None or found.sample is None or not found.sample.attributes.num_rows:
        return CorpusSection(artifact, view, found, 0, (), (), groups)
    thresholds = figures.thresholds(view.judge, found.sample)
    rows = {row for one in thresholds for row in (*one.just_kept, *one.just_dropped)}
    seen = {one.row: one for one in see(view, rows)}
    sections = [
        ThresholdSection(
            one,
            Thresholds.model_fields[one.measure.threshold].description or "",
            tuple(seen[row] for row in one.just_kept),
            tuple(seen[row] for row in one.just_dropped),
        )
        for one in thresholds
    ]
    return CorpusSection(
        artifact,
        view,
        found,
        found.sample.attributes.num_rows,
        tuple(sections),
        tuple(figures.spreads(view.judge, found.sample)),
        groups,
    )


def tokens_section(artifact: Artifact) -> TokensSection:
    """What a stream of tokens holds, from its table of documents."""
    tokens = Tokens(artifact.path)
    counted = tokens.documents.group_by(["source", "license"]).aggregate([("tokens", "sum"), ("tokens", "count")])
    by_source = sorted(
        (
            (row["source"] or "unknown", row["license"] or "unknown", row["tokens_count"], row["tokens_sum"])
            for row in counted.to_pylist()
        ),
        key=lambda row: (-row[3], row),
    )
    lengths = np.asarray(tokens.documents["tokens"].to_numpy(), np.float64)
    about = tokens.about
    return TokensSection(
        artifact,
        about.tokens,
        about.documents,
        about.bytes,
        about.vocab_size,
        figures.histogram(lengths),
        tuple(by_source),
        _phases(artifact, tokens),
    )


def _phases(artifact: Artifact, tokens: Tokens) -> tuple[Phase, ...]:
    from liuyi.train.data import MIXTURE

    path = artifact.file(MIXTURE)
    if not path.exists():
        return ()
    asked = json.loads(path.read_text(encoding="utf-8"))["phases"]
    ends = [*(phase["start"] for phase in asked[1:]), len(tokens)]
    parts = np.array(tokens.documents["part"].to_pylist(), object)
    counts = tokens.documents["tokens"].to_numpy()
    found = []
    for phase, end in zip(asked, ends, strict=True):
        here = (tokens.offsets >= phase["start"]) & (tokens.offsets < end)
        size = max(1, int(counts[here].sum()))
        weights = phase["weights"]
        shares = tuple(
            (label, weight / (sum(weights.values()) or 1), int(counts[here & (parts == label)].sum()) / size)
            for label, weight in weights.items()
        )
        found.append(Phase(size / max(1, len(tokens)), shares))
    return tuple(found)


def _chosen(corpora: Sequence[Artifact]) -> Iterable[Artifact]:
    if len(corpora) < 2:
        return corpora
    selected = [one for one in corpora if one.manifest.step == SELECT and one.manifest.output == "train"]
    measured = [one for one in corpora if one.file(ATTRIBUTES).exists()]
    return selected or measured[-1:] or corpora[-1:]


def _effect_section(artifact: Artifact) -> EffectSection | None:
    effect = Effect.load(artifact.path)
    blocks = tuple(block for block in effect.blocks if block.kind in ("table", "bars")) if effect else ()
    return EffectSection(artifact, effect.title, effect.summary, blocks) if effect and blocks else None
