"""The graph of artifacts: which execution gave each, from which others, and what was made of it.

graph = Graph(home)
graph.producer(digest)          # the execution that made it first
graph.ancestors({digest})       # everything it came from
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from liuyi.core.artifact import Manifest
from liuyi.core.errors import ArtifactError
from liuyi.core.home import Home
from liuyi.core.records import Execution


class Graph:
    """Executions of the ledger as edges between digests; where the ledger knows nothing, the manifests speak.

    A gate gives one of its inputs out again, so an artifact may be an output of work that took it as an input. Such
    work did not make it: the producer is the earliest execution that did not have it already.
    """

    def __init__(self, home: Home) -> None:
        self._store = home.store
        self._producers: dict[str, list[Execution]] = defaultdict(list)
        self._consumers: dict[str, list[Execution]] = defaultdict(list)
        for execution in home.ledger.executions():
            self._add(execution)
        self._ask_store: dict[str, Execution | None] = {}

    def producer(self, digest: str) -> Execution | None:
        """The execution that made the artifact; None where it came from elsewhere."""
        made = [execution for execution in self._producers.get(digest, ()) if not _passes_on(execution, digest)]
        if made:
            return made[0]
        if digest not in self._ask_store:
            self._ask_store[digest] = self._from_manifest(digest)
        return self._ask_store[digest]

    def passed_on_by(self, digest: str) -> list[Execution]:
        """The executions that took the artifact and gave it out again, as gates do."""
        return [execution for execution in self._producers.get(digest, ()) if _passes_on(execution, digest)]

    def consumers(self, digest: str) -> list[Execution]:
        """The executions that took the artifact, earliest first."""
        return list(self._consumers.get(digest, ()))

    def inputs(self, digest: str) -> tuple[tuple[str, str], ...]:
        """(port, digest) of what the artifact was made from."""
        execution = self.producer(digest)
        return execution.inputs if execution else ()

    def ancestors(self, digests: Iterable[str]) -> set[str]:
        """The artifacts themselves and everything they came from."""
        found: set[str] = set()
        ahead = list(digests)
        while ahead:
            digest = ahead.pop()
            if digest not in found:
                found.add(digest)
                ahead += [source for _, source in self.inputs(digest)]
        return found

    def history(self, digests: Iterable[str]) -> list[Execution]:
        """The executions that made these artifacts and all they came from, earliest first."""
        made = {execution.key: execution for digest in self.ancestors(digests) if (execution := self.producer(digest))}
        return sorted(made.values(), key=lambda execution: (execution.created, execution.key))

    def _add(self, execution: Execution) -> None:
        for digest in set(execution.outputs.values()):
            self._producers[digest].append(execution)
        for digest in {digest for _, digest in execution.inputs}:
            self._consumers[digest].append(execution)

    def _from_manifest(self, digest: str) -> Execution | None:
        if not self._store.has(digest):
            return None
        try:
            manifest = self._store.manifest(digest)
        except ArtifactError:
            return None
        return _as_execution(manifest) if manifest.step else None


def _passes_on(execution: Execution, digest: str) -> bool:
    return any(source == digest for _, source in execution.inputs)


def _as_execution(manifest: Manifest) -> Execution:
    return Execution(
        key=manifest.step_key,
        step=manifest.step,
        version=0,
        params=manifest.params,
        seed=0,
        device="",
        inputs=tuple((source.name, source.digest) for source in manifest.inputs if source.digest != manifest.digest),
        outputs={manifest.output: manifest.digest},
        seconds=0.0,
        run_id="",
        created=datetime.fromisoformat(manifest.created).timestamp() if manifest.created else 0.0,
    )
