"""Did a model see this text? Its lineage leads to the texts that it was trained on, and they are searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from liuyi.core.artifact import Manifest
from liuyi.core.errors import ArtifactError, DataError
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.overlap import NGRAM, Overlaps
from liuyi.core.rows import find_row
from liuyi.evaluate.contamination import TEXTS, batches, training_texts

_NOT_LEARNED_FROM = ("tokenizer", "evalset", "evaluation", "verdict", "report")
"""A tokenizer learns a vocabulary from texts; what is trained with it has not seen them for that. A model may stand in
for its tokenizer, so an input of that name is not followed either."""


@dataclass(frozen=True)
class TrainingText:
    """An artifact whose texts were learned from."""

    manifest: Manifest
    tokens: Manifest | None = None
    """The last tokens between it and the model: they may be of some of the documents only."""


@dataclass(frozen=True)
class Seen:
    """Where a text was found."""

    item: int
    """Which of the texts that were asked for."""
    words: str
    kind: str
    """Of the artifact: corpus, chats or preferences."""
    artifact: str
    """Its digest."""
    row: str
    """The id of the document, conversation or preference."""
    start: int
    """Where the words start in the document, or in the message, in characters."""
    end: int
    values: dict[str, Any]
    """What the artifact says of the row, such as its source and licence."""


def trained_on(home: Home, digest: str) -> list[TrainingText]:
    """The texts that an artifact was learned from; a corpus, chats or preferences are such texts themselves.

    Raises DataError where nothing is known, ArtifactError where what was learned from is no longer in the store.
    """
    graph, found, seen = Graph(home), dict[str, TrainingText](), set[str]()
    ahead: list[tuple[str, Manifest | None]] = [(digest, None)]
    while ahead:
        here, tokens = ahead.pop()
        if here in seen:
            continue
        seen.add(here)
        if not home.store.has(here):
            raise ArtifactError(f"{here[:12]}, which it was made from, is no longer in the store", where=digest[:12])
        manifest = home.store.manifest(here)
        if manifest.kind in TEXTS:
            found[here] = TrainingText(manifest, tokens)
        elif manifest.kind not in _NOT_LEARNED_FROM or here == digest:
            between = tokens or (manifest if manifest.kind == "tokens" else None)
            ahead += [(source, between) for port, source in graph.inputs(here) if port != "tokenizer"]
    if not found:
        raise DataError(
            f"it is not known what {digest[:12]} was trained on",
            hint="give a model that was trained here, or a corpus, tokens, chats or preferences",
        )
    return list(found.values())


def look_up(home: Home, sources: Sequence[TrainingText], items: Sequence[str], *, ngram: int = NGRAM) -> Iterator[Seen]:
    """Every place where `items` occur in the texts (what occurring means, `liuyi.core.overlap` says)."""
    index = Overlaps(items, ngram)
    for source in sources:
        manifest = source.manifest
        folder = home.store.open(manifest.digest).path
        for batch in batches(training_texts(manifest.kind, folder)):
            for match in index.find([text for _, text in batch]):
                row = batch[match.text][0]
                if source.tokens and find_row(home.store, source.tokens, row) is None:
                    continue
                values = find_row(home.store, manifest, row) or {}
                yield Seen(match.item, match.words, manifest.kind, manifest.digest, row, match.start, match.end, values)
