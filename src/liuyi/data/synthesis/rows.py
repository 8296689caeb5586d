"""Rows of synthetic data: what was made, where it comes from, and why it was dropped if it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.digest import canonical_json
from liuyi.core.effect import Sample
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS, DROPPED, Rows, document_id, document_schema
from liuyi.data.instructions.convert import chat_entry
from liuyi.data.instructions.messages import WrongRow
from liuyi.data.instructions.tables import CHATS, chats_schema
from liuyi.data.synthesis.report import Tally

if TYPE_CHECKING:
    import pyarrow as pa

_SAMPLES = 4


@dataclass(frozen=True)
class Origin:
    """Where a row comes from, as every row tells it in columns of these names."""

    generator: str
    model: str = ""
    """The model that wrote the answer: a checkpoint's digest, or as the endpoint names it."""
    template: str = ""
    """The template that asked for the instruction or the text, with its digest."""
    sources: tuple[str, ...] = ()
    """Ids of the documents, conversations or problems that it was made from."""
    seed: int = 0
    request: str = ""
    """The request whose answer it is; `answers.parquet` has it as it came."""
    asked_by: str = ""
    """The request whose answer the instruction is; empty where it comes from a source, or from the same request."""


@dataclass(frozen=True)
class Made:
    """An instruction with its answer, or a text; `dropped` is empty where it is kept."""

    origin: Origin
    instruction: str = ""
    text: str = ""
    """The answer to the instruction, or the text itself."""
    license: str = "unknown"
    cluster: str = ""
    """What it is held out with; rows made from one source share the source's. Empty: what it asks decides."""
    url: str = ""
    lang: str = ""
    dropped: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def drop(self, reason: str) -> Made:
        """The same, left out for a reason; its words before a colon are what is counted."""
        return replace(self, dropped=reason)


def lineage_fields() -> list[tuple[str, pa.DataType]]:
    """The columns of `Origin`."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("generator", "model", "template")]
    links = [(name, pa.string()) for name in ("request", "asked_by")]
    return [*texts, ("sources", pa.list_(pa.string())), ("seed", pa.int64()), *links]


def write_chats(folder: Path, made: Iterable[Made], tally: Tally, figures: Sequence[str] = ()) -> Written:
    """Write `chats.parquet` with the lineage of each row, and `dropped.parquet`; `figures` are columns of numbers."""
    import pyarrow as pa

    further = [*lineage_fields(), *((name, pa.float64()) for name in figures)]
    schema = pa.schema([*chats_schema(), *(pa.field(name, kind) for name, kind in further)])
    written = Written()
    with Rows(folder / CHATS, schema) as kept, Rows(folder / DROPPED, _dropped_schema()) as dropped:
        for one in made:
            columns, one = _conversation(one)
            if one.dropped or columns["id"] in written.ids:
                _drop(dropped, one if one.dropped else one.drop("a double"), tally)
                continue
            kept.add({**columns, **vars(one.origin), **{name: one.figures.get(name) for name in figures}})
            written.keep(one, columns["id"], f"{one.instruction}\n\n→ {one.text}")
    tally.kept += kept.count
    return written


def write_corpus(folder: Path, made: Iterable[Made], tally: Tally) -> Written:
    """Write `documents.parquet`, `attributes.parquet` with the lineage of each document, and `dropped.parquet`."""
    import pyarrow as pa

    lineage = pa.schema([("id", pa.string()), *lineage_fields()])
    written = Written()
    with (
        Rows(folder / DOCUMENTS, document_schema()) as documents,
        Rows(folder / ATTRIBUTES, lineage) as attributes,
        Rows(folder / DROPPED, _dropped_schema()) as dropped,
    ):
        for one in made:
            id = document_id(one.origin.generator, one.origin.request, one.text)
            if one.dropped:
                _drop(dropped, one, tally)
                continue
            source = f"synthesis/{one.origin.generator}"
            row = {"id": id, "text": one.text, "source": source, "url": one.url, "license": one.license}
            documents.add({**row, "lang": one.lang, "created": "", "cluster": one.cluster or id[:16]})
            attributes.add({"id": id, **vars(one.origin)})
            written.keep(one, id, one.text)
    tally.kept += documents.count
    return written


@dataclass
class Written:
    """What was kept, as far as the artifact's manifest and report want to know."""

    licences: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)

    def keep(self, one: Made, id: str, text: str) -> None:
        """Take note of a row."""
        self.licences.add(one.license)
        self.ids.add(id)
        if len(self.samples) < _SAMPLES:
            self.samples.append(Sample(title=id[:12], text=text[:1000], note=", ".join(one.origin.sources)[:200]))


@dataclass(frozen=True)
class Seed:
    """A conversation that rows are made from: its first question, and its answer where there is one."""

    id: str
    instruction: str
    answer: str
    license: str
    cluster: str


def read_seeds(paths: Iterable[Path]) -> list[Seed]:
    """The first turn of every conversation of some `chats.parquet`."""
    import json

    import pyarrow.parquet as pq

    seeds = []
    for path in paths:
        columns = ["id", "messages", "license", "cluster"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            messages = json.loads(row["messages"])
            asked = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
            if asked is None:
                continue
            answer = messages[asked + 1]["content"] if asked + 1 < len(messages) else ""
            seeds.append(Seed(row["id"], messages[asked]["content"], answer, row["license"], row["cluster"]))
    return seeds


@dataclass(frozen=True)
class Source:
    """A document that rows are made from."""

    id: str
    text: str
    url: str
    license: str
    lang: str
    cluster: str


def read_sources(folder: Path) -> Iterator[Source]:
    """The documents of a corpus as a stream."""
    from liuyi.data.attributes import read_groups

    names = ("id", "text", "url", "license", "lang", "cluster")
    for group in read_groups(folder, names):
        for row in group.to_pylist():
            yield Source(**{name: row[name] or "" for name in names})


def _conversation(one: Made) -> tuple[dict[str, Any], Made]:
    """The columns of a conversation; where it is none to learn from, the row is dropped for that."""
    messages = [{"role": "user", "content": one.instruction}, {"role": "assistant", "content": one.text}]
    try:
        entry = chat_entry({"messages": messages})
    except WrongRow as wrong:
        return {"id": ""}, one if one.dropped else one.drop(str(wrong))
    columns = {**entry.columns, "source": f"synthesis/{one.origin.generator}", "license": one.license}
    return columns | ({"cluster": one.cluster} if one.cluster else {}), one


def _dropped_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "reason", "instruction", "text")]
    return pa.schema([*texts, *lineage_fields()])


def _drop(rows: Rows, one: Made, tally: Tally) -> None:
    tally.dropped[one.dropped.partition(":")[0]] += 1
    id = document_id(one.origin.generator, one.origin.request, canonical_json([one.instruction, one.text]))
    said = {"id": id, "reason": one.dropped, "instruction": one.instruction, "text": one.text}
    rows.add(said | vars(one.origin))
