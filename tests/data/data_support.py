"""What tests of data share: a context that runs a step by itself, and small corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liuyi.core.artifact import Artifact, FileEntry, Manifest
from liuyi.core.digest import files_digest, sha256_file
from liuyi.core.step import Staging, get_step
from liuyi.data.corpus import Document, document_id, write_documents

WORDS = tuple(
    word
    for line in (
        "the reader opens a file and returns its lines in the order of the text with care for encodings and for errors",
        "that may happen when a disk is full or a name is wrong so that callers know what to do next and why it failed",
    )
    for word in line.split()
)


@dataclass
class Bench:
    """A `Context` without a spine: inputs are artifacts at hand, outputs stay in `folder`."""

    workdir: Path
    given: dict[str, list[Artifact]] = field(default_factory=dict)
    seed: int = 1
    run_id: str = "run"
    name: str = "step"
    made: dict[str, Artifact] = field(default_factory=dict)
    staged: dict[str, Staging] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    kinds: dict[str, Any] = field(default_factory=dict)

    def input(self, name: str) -> Artifact:
        (only,) = self.given[name]
        return only

    def inputs(self, name: str) -> list[Artifact]:
        return self.given.get(name, [])

    def has(self, name: str) -> bool:
        return name in self.given

    @contextmanager
    def output(self, name: str) -> Iterator[Staging]:
        folder = self.workdir / name
        folder.mkdir(parents=True)
        staging = self.staged[name] = Staging(folder, self.kinds[name])
        yield staging
        self.made[name] = artifact(folder, self.kinds[name], staging.licences)

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        assert 0 <= done <= total * 1.001

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None:
        self.logs.append(message)


def run_step(name: str, workdir: Path, given: dict[str, Any] | None = None, **params: Any) -> Bench:
    """Run a step by itself; its outputs are in `made`."""
    step = get_step(name)
    inputs = {port: [value] if isinstance(value, Artifact) else value for port, value in (given or {}).items()}
    workdir.mkdir(parents=True, exist_ok=True)
    bench = Bench(workdir, inputs, kinds={port: output.kind for port, output in step.outputs.items()})
    step.run(bench, step.params(**params))
    assert set(bench.made) == set(step.outputs)
    return bench


def artifact(folder: Path, kind: Any, licences: Sequence[str] | set[str] = ()) -> Artifact:
    """A folder as an artifact with its true digest."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = tuple(
        FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256_file(path)) for name, path in files.items()
    )
    digest = files_digest({entry.path: entry.sha256 for entry in entries})
    return Artifact(Manifest(kind=kind, digest=digest, files=entries, licences=tuple(sorted(licences))), folder)


def document(text: str, cluster: str = "pkg", path: str = "a.txt", license: str = "MIT", lang: str = "") -> Document:
    """A document of one's own making."""
    return Document(document_id(cluster, path, text), text, cluster, path, license, lang, "", cluster)


def corpus(folder: Path, documents: Sequence[Document]) -> Artifact:
    """A corpus artifact."""
    folder.mkdir(parents=True)
    write_documents(folder, documents)
    return artifact(folder, "corpus", {one.license for one in documents})


def prose(number: int, words: int = 80) -> str:
    """English sentences, different for each number."""
    import random

    rng = random.Random(number)
    sentences = []
    while words > 0:
        size = rng.randint(8, 14)
        sentences.append(" ".join(rng.choices(WORDS, k=size - 1)).capitalize() + f" case{rng.randrange(10**6)}.")
        words -= size
    return "\n".join(sentences) + "\n"


def map_in_turn(
    function: Any,
    source: Path,
    columns: Sequence[str],
    workdir: Path,
    *,
    workers: int | None = None,
    on_progress: Any = None,
) -> Iterator[Any]:
    """What `map_groups` gives, without an engine, which takes seconds to start: for tests of what it is given."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(source / "documents.parquet") as file:
        for number in range(file.num_row_groups):
            yield function(file.read_row_group(number, columns=list(columns)))
