"""Lineage, both ways: what a thing came from, down to files and licences, and what came of it.

    found = trace(home, "last/dpo.checkpoint")
    found.subject, found.up, found.down
    found.as_json()

A document counts as seen by a model only where the table of the tokens that the model was trained on lists it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from liuyi.core.artifact import Manifest
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.records import Answer, Execution
from liuyi.core.refs import Row, resolve
from liuyi.core.rows import find_dropped, find_row, holds_rows, origins

Direction = Literal["up", "down", "both"]

_SAME_ROWS = (("corpus", "tokens"), ("chats",), ("preferences",), ("evalset",))
"""Kinds whose rows keep their ids from one artifact to the next: one that does not list a row does not hold it."""


@dataclass(frozen=True)
class Node:
    """One thing in a lineage: an artifact, a row, where rows come from, or an answer."""

    kind: str
    title: str
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    again: bool = False
    """It stands, with its children, further above already."""

    def as_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {"kind": self.kind, "title": self.title}
        if self.digest:
            said["digest"] = self.digest
        said |= {name: value for name, value in self.facts.items() if value not in ("", None, [], {})}
        if self.again:
            said["again"] = True
        if self.children:
            said["children"] = [child.as_json() for child in self.children]
        return said


@dataclass(frozen=True)
class Trace:
    """A thing, what it came from, and what came of it."""

    subject: Node
    up: tuple[Node, ...]
    down: tuple[Node, ...]
    licences: tuple[str, ...]
    """The licences of the thing itself and of everything that it came from."""

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject.as_json(),
            "licences": list(self.licences),
            "up": [node.as_json() for node in self.up],
            "down": [node.as_json() for node in self.down],
        }


def trace(home: Home, ref: str, direction: Direction = "both") -> Trace:
    """The lineage of what `ref` names (see `refs`). Raises LiuyiError if it names nothing."""
    tracer = _Tracer(home)
    found = resolve(home, ref)
    up, down = direction != "down", direction != "up"
    if isinstance(found, Answer):
        return tracer.answer(found, up)
    if isinstance(found, Row):
        return tracer.row(found, up, down)
    return tracer.artifact(found, up, down)


class _Tracer:
    def __init__(self, home: Home) -> None:
        self._store, self._ledger = home.store, home.ledger
        self._graph = Graph(home)
        self._kinds = home.ledger.artifacts()
        self._manifests: dict[str, Manifest | None] = {}

    def artifact(self, digest: str, up: bool, down: bool) -> Trace:
        sources = self._sources(digest) if self._graph.inputs(digest) else ()
        subject = self._node(digest, children=sources)
        above = self._above(digest, set()) if up else ()
        below = self._below(digest, set(), None) if down else ()
        return Trace(subject, above, below, self._licences([digest]))

    def answer(self, answer: Answer, up: bool) -> Trace:
        facts = {"served": _time(answer.created), "request": answer.request_digest, **answer.detail}
        subject = Node("answer", answer.id, facts=facts)
        seen: set[str] = set()
        ports = [("app", answer.app_digest), ("model", answer.model_digest)]
        given = [(port, digest) for port, digest in ports if digest]
        above = [self._up(digest, port, seen) for port, digest in given] if up else []
        return Trace(subject, tuple(above), (), self._licences(digest for _, digest in given))

    def row(self, row: Row, up: bool, down: bool) -> Trace:
        subject = Node(row.name, row.id, facts=row.values)
        first = self._first(row.holders or row.dropped_from)
        origin = self._origin(row, first)
        above: list[Node] = []
        if up:
            seen: set[str] = set()
            above = origin + [self._up(manifest.digest, "", seen) for manifest in first]
        below: list[Node] = []
        if down:
            seen = set()
            for manifest in first:
                if manifest in row.holders:
                    held = self._below(manifest.digest, seen, row)
                    below.append(self._node(manifest.digest, children=held, holds=True))
                else:
                    below.append(self._left_out(manifest, row.id))
        return Trace(subject, tuple(above), tuple(below), tuple(node.facts.get("license", "") for node in origin))

    def _first(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Those of the artifacts that came from none of the others."""
        digests = {manifest.digest for manifest in manifests}
        return [
            manifest
            for manifest in manifests
            if not (self._graph.ancestors([manifest.digest]) - {manifest.digest}) & digests
        ]

    def _origin(self, row: Row, first: Iterable[Manifest]) -> list[Node]:
        """Where a row says that it came from; where it does not, the same row in what its artifact was made from."""
        values = row.values
        if not {"source", "license"} & set(values):
            values = self._same_row_above(row, first) or {}
        if not values:
            return []
        facts = {name: values[name] for name in ("url", "source", "license", "cluster", "lang") if values.get(name)}
        title = str(values.get("url") or values.get("source") or "unknown source")
        return [Node("source", title, facts=facts)]

    def _same_row_above(self, row: Row, first: Iterable[Manifest]) -> dict[str, Any] | None:
        for manifest in first:
            for digest in sorted(self._graph.ancestors([manifest.digest]) - {manifest.digest}):
                above = self._manifest(digest)
                found = find_row(self._store, above, row.id) if above else None
                if found and {"source", "license"} & set(found):
                    return found
        return None

    def _licences(self, digests: Iterable[str]) -> tuple[str, ...]:
        manifests = [self._manifest(digest) for digest in self._graph.ancestors(digests)]
        return tuple(sorted({licence for manifest in manifests if manifest for licence in manifest.licences}))

    def _above(self, digest: str, seen: set[str]) -> tuple[Node, ...]:
        """What an artifact was made from; at the end of the way, the sources of its rows."""
        inputs = self._graph.inputs(digest)
        if inputs:
            return tuple(self._up(source, port, seen) for port, source in inputs)
        return self._sources(digest)

    def _up(self, digest: str, port: str, seen: set[str]) -> Node:
        again = digest in seen
        seen.add(digest)
        return self._node(digest, port=port, children=() if again else self._above(digest, seen), again=again)

    def _sources(self, digest: str) -> tuple[Node, ...]:
        manifest = self._manifest(digest)
        counts = origins(self._store, manifest) if manifest else None
        if counts is None:
            return ()
        sources = [{"source": source, "license": licence, "rows": rows} for source, licence, rows in counts.by_source]
        facts = {"row": counts.row, "rows": counts.rows, "sources": sources, "licences": dict(counts.by_licence)}
        return (Node("sources", f"{counts.rows} × {counts.row}", facts=facts),)

    def _below(self, digest: str, seen: set[str], row: Row | None) -> tuple[Node, ...]:
        """What was made of an artifact; with `row`, as far as the row went along."""
        nodes = []
        for execution in self._graph.consumers(digest):
            taken = {source: port for port, source in reversed(execution.inputs)}
            for output in dict.fromkeys(execution.outputs.values()):
                if output == digest:
                    nodes.append(self._node(output, execution, port=taken[digest], passed_on=True, again=True))
                elif output not in taken:
                    nodes += self._down(output, execution, taken[digest], seen, row)
        answers = self._ledger.answers_of(digest) if row is None else []
        nodes += [Node("answer", answer.id, facts={"served": _time(answer.created)}) for answer in answers]
        return tuple(nodes)

    def _down(self, digest: str, execution: Execution, port: str, seen: set[str], row: Row | None) -> list[Node]:
        manifest = self._manifest(digest)
        holds = None
        if row and manifest and holds_rows(manifest):
            holds = find_row(self._store, manifest, row.id) is not None or None
            if holds is None and _keeps_ids(row, manifest.kind):
                return [self._left_out(manifest, row.id)] if find_dropped(self._store, manifest, row.id) else []
        again = digest in seen
        seen.add(digest)
        # A tokenizer learns a vocabulary from documents; what is trained with it has not seen them for that.
        ends = row is not None and manifest is not None and manifest.kind == "tokenizer"
        children = () if again or ends else self._below(digest, seen, row)
        return [self._node(digest, execution, port=port, children=children, again=again, holds=holds)]

    def _left_out(self, manifest: Manifest, id: str) -> Node:
        values = find_dropped(self._store, manifest, id) or {}
        reason = str(values.get("reason") or "without a reason")
        return self._node(manifest.digest, holds=False, reason=reason)

    def _node(
        self,
        digest: str,
        execution: Execution | None = None,
        *,
        port: str = "",
        children: tuple[Node, ...] = (),
        again: bool = False,
        **facts: Any,
    ) -> Node:
        manifest = self._manifest(digest)
        execution = execution or self._graph.producer(digest)
        kind = manifest.kind if manifest else self._kinds.get(digest, "artifact")
        said: dict[str, Any] = {"port": port}
        if execution:
            said |= {"step": execution.step, "run": execution.run_id, "made": _time(execution.created)}
            said["params"] = execution.params
        if manifest:
            said["licences"] = list(manifest.licences)
            said["bytes"] = manifest.size_bytes
        else:
            said["removed" if digest in self._kinds else "outside"] = True
        said["passed_on_by"] = sorted({gate.step for gate in self._graph.passed_on_by(digest)})
        return Node(kind, f"{kind} {digest[:12]}", digest, said | facts, children, again)

    def _manifest(self, digest: str) -> Manifest | None:
        if digest not in self._manifests:
            self._manifests[digest] = self._store.manifest(digest) if self._store.has(digest) else None
        return self._manifests[digest]


def _keeps_ids(row: Row, kind: str) -> bool:
    """Whether an artifact of that kind that came of the row's artifacts would list the row if it held it."""
    holders = {manifest.kind for manifest in (*row.holders, *row.dropped_from)}
    return any(kind in kinds and holders & set(kinds) for kinds in _SAME_ROWS)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
