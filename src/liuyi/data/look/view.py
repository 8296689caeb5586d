"""A corpus to look at: its documents in batches, with their attributes and what selection says of them.

What selection gave holds no attributes. It is looked at through the corpus that it was made from, by the thresholds
that it was made with; so what was dropped is there, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.refs import resolve_artifact
from liuyi.data.attributes import read_beside, read_groups
from liuyi.data.corpus import ATTRIBUTES
from liuyi.data.look.judge import Judge, Judgement, judge_of
from liuyi.data.select.rules import KEPT

SELECT = "data.select"


@dataclass(frozen=True)
class Batch:
    """Documents `start` and on; without a judge there is no judgement, and `id` alone is an attribute."""

    start: int
    documents: pa.Table
    attributes: pa.Table
    judgement: Judgement | None

    @cached_property
    def reasons(self) -> NDArray[np.object_]:
        """[documents] why each is dropped; empty where it is kept, or where nobody judges."""
        return self.judgement.reasons if self.judgement else np.full(self.documents.num_rows, KEPT, object)


@dataclass(frozen=True)
class View:
    """A corpus, who judges it, and which clusters of what is kept are meant."""

    corpus: Artifact
    judge: Judge | None
    judged_by: str
    """Where the thresholds are from, for people; empty where nothing was measured."""
    clusters: frozenset[str] | None = None
    """Kept documents of other clusters are left out: they went to the other side of the split."""

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """The documents with these columns, one row group after another, `id`, `license` and `cluster` among them."""
        wanted = list(dict.fromkeys(["id", "license", "cluster", *columns]))
        start = 0
        if self.judge is None:
            for documents in read_groups(self.corpus.path, wanted):
                yield Batch(start, documents, documents.select(["id"]), None)
                start += documents.num_rows
            return
        for documents, attributes in read_beside(self.corpus.path, wanted):
            yield Batch(start, documents, attributes, self.judge.judge(attributes, documents["license"]))
            start += documents.num_rows

    def is_meant(self, batch: Batch) -> NDArray[np.bool_]:
        """[documents] whether each is dropped, or kept on the side of the split that is looked at."""
        if self.clusters is None:
            return np.ones(batch.documents.num_rows, bool)
        inside = [cluster in self.clusters for cluster in batch.documents["cluster"].to_pylist()]
        return np.asarray((batch.reasons != KEPT) | np.array(inside, bool))


def view_of(home: Home, artifact: Artifact, judged_as: str = "") -> View:
    """The view of a corpus artifact.

    `judged_as` names an output of a selection whose thresholds count; without it those of the latest selection from
    this corpus, else the defaults.
    Raises DataError where the artifact is no corpus, or nothing was measured that could be judged.
    """
    if artifact.kind != "corpus":
        raise DataError(f"{artifact.kind} {artifact.digest[:12]} holds no documents", hint="give a corpus")
    graph = Graph(home)
    made = graph.producer(artifact.digest)
    if made is not None and made.step == SELECT:
        source = home.store.open(dict(made.inputs)["corpus"])
        clusters = frozenset(
            name for group in read_groups(artifact.path, ["cluster"]) for name in group["cluster"].unique().to_pylist()
        )
        judge, judged_by = _judge(home, graph, source, judged_as or artifact.digest)
        return View(source, judge, judged_by, clusters)
    if not artifact.file(ATTRIBUTES).exists():
        if judged_as:
            raise DataError("the corpus has no attributes to judge", hint="run data.clean on it first")
        return View(artifact, None, "")
    return View(artifact, *_judge(home, graph, artifact, judged_as))


def _judge(home: Home, graph: Graph, corpus: Artifact, judged_as: str) -> tuple[Judge, str]:
    if judged_as:
        made = graph.producer(resolve_artifact(home, judged_as))
        if made is None or made.step != SELECT:
            raise DataError(f"'{judged_as}' was not made by {SELECT}", hint="name an output of a selection")
        return judge_of(made.params), f"the thresholds of {SELECT}{_in_run(made.run_id)}"
    selections = [each for each in graph.consumers(corpus.digest) if each.step == SELECT]
    if selections:
        latest = selections[-1]
        return judge_of(latest.params), f"the thresholds of the latest {SELECT}{_in_run(latest.run_id)}"
    return judge_of({}), "the default thresholds"


def _in_run(run_id: str) -> str:
    return f" (run {run_id})" if run_id else ""
