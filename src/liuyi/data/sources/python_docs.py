"""Documentation of the Python packages on this machine: docstrings, readmes and text files, nothing imported.

Which files are read is planned before any is parsed: a quick scan says about how much documentation each file
holds, every distribution gets a fair share of `max_mb`, and inside a distribution files are taken in the order of
a hash of their path. So the result does not depend on the number of workers, and no distribution drowns the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from liuyi.core.errors import DataError
from liuyi.data.corpus import Document, Rejected, document_id
from liuyi.data.pool import map_ordered
from liuyi.data.shares import fair_shares
from liuyi.data.sources.distributions import Distribution, SourceFile
from liuyi.data.sources.docstrings import Unreadable, documented_bytes, literal_texts, module_text
from liuyi.data.text import decode, mend

_LARGEST_FILE_BYTES = 8_000_000
_WITHOUT_INDENTATION = 0.88
"""What is left of documented bytes once docstrings lose their indentation: measured over scipy, torch and sympy."""
_LITERAL_TEXTS = frozenset({"pydoc_data/topics.py"})
_FILES_PER_TASK = 48
_SCAN_PER_TASK = 256


@dataclass(frozen=True)
class _Task:
    distribution: Distribution
    """Without its files."""
    files: tuple[SourceFile, ...]


def read_distributions(
    distributions: Sequence[Distribution],
    *,
    max_bytes: int,
    max_bytes_per_source: int,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Document], list[Rejected]]:
    """The documents of `distributions`, and the files among those chosen that could not be read.

    At most `max_bytes` of text together and `max_bytes_per_source` from one distribution, in the order
    (distribution, path). The bounds are met to within one document a
    distribution. `on_progress` hears (bytes of files read, bytes of files in all).
    """
    sizes = _scan(distributions, workers)
    shares = fair_shares([sum(size) for size in sizes], max_bytes, max_bytes_per_source)
    tasks = list(_plan(distributions, sizes, shares))
    total = sum(file.bytes for task in tasks for file in task.files) or 1
    documents: list[Document] = []
    rejected: list[Rejected] = []
    done = 0
    for task, (found, failed) in zip(tasks, map_ordered(_read_task, tasks, workers), strict=True):
        documents += found
        rejected += failed
        done += sum(file.bytes for file in task.files)
        on_progress(done, total)
    documents = list(_within(documents, max_bytes, max_bytes_per_source))
    return sorted(documents, key=lambda one: (one.source, one.url)), sorted(rejected, key=lambda one: one.file)


def _scan(distributions: Sequence[Distribution], workers: int | None) -> list[list[int]]:
    locations = [(file.location, file.is_python, file.bytes) for each in distributions for file in each.files]
    pieces = [locations[start : start + _SCAN_PER_TASK] for start in range(0, len(locations), _SCAN_PER_TASK)]
    flat = iter([size for piece in map_ordered(_scan_files, pieces, workers) for size in piece])
    return [[next(flat) for _ in each.files] for each in distributions]


def _scan_files(files: list[tuple[str, bool, int]]) -> list[int]:
    return [_documentation_bytes(*file) for file in files]


def _documentation_bytes(location: str, is_python: bool, size: int) -> int:
    if not is_python or size > _LARGEST_FILE_BYTES:
        return size
    try:
        return int(documented_bytes(Path(location).read_bytes()) * _WITHOUT_INDENTATION)
    except OSError:
        return 1  # planned, so that reading it says what is wrong


def _plan(
    distributions: Sequence[Distribution], sizes: Sequence[Sequence[int]], shares: Sequence[int]
) -> Iterator[_Task]:
    for distribution, size_of, share in zip(distributions, sizes, shares, strict=True):
        bare = Distribution(distribution.name, distribution.version, distribution.licence, distribution.readme, ())
        chosen: list[SourceFile] = []
        taken = 0
        for file, size in sorted(zip(distribution.files, size_of, strict=True), key=lambda pair: _hash(pair[0].path)):
            if size and taken < share:
                chosen.append(file)
                taken += size
        pieces = [chosen[start : start + _FILES_PER_TASK] for start in range(0, len(chosen), _FILES_PER_TASK)]
        for number, piece in enumerate(pieces or [[]]):
            yield _Task(bare if number == 0 else _without_readme(bare), tuple(piece))


def _without_readme(distribution: Distribution) -> Distribution:
    return Distribution(distribution.name, distribution.version, distribution.licence, "", ())


def _read_task(task: _Task) -> tuple[list[Document], list[Rejected]]:
    documents: list[Document] = []
    rejected: list[Rejected] = []
    if task.distribution.readme.strip():
        documents.append(_document(task.distribution, "README", task.distribution.readme))
    for file in task.files:
        try:
            documents += [_document(task.distribution, path, text) for path, text in _texts(file) if text.strip()]
        except (Unreadable, DataError, OSError) as error:
            rejected.append(Rejected(f"{task.distribution.name}/{file.path}", 0, _reason(error)))
    return documents, rejected


def _texts(file: SourceFile) -> Iterable[tuple[str, str]]:
    if file.bytes > _LARGEST_FILE_BYTES:
        raise DataError(f"larger than {_LARGEST_FILE_BYTES // 1_000_000} MB")
    data = Path(file.location).read_bytes()
    if not file.is_python:
        return [(file.path, decode(data))]
    if file.path in _LITERAL_TEXTS:
        return [(f"{file.path}#{key}", text) for key, text in literal_texts(data)]
    return [(file.path, module_text(data, _module_name(file.path)))]


def _document(distribution: Distribution, path: str, text: str) -> Document:
    text = mend(text).strip() + "\n"
    return Document(
        id=document_id(distribution.name, path, text),
        text=text,
        source=distribution.name,
        url=distribution.url(path),
        license=distribution.licence,
        cluster=distribution.name,
    )


def _within(documents: Iterable[Document], max_bytes: int, max_bytes_per_source: int) -> Iterator[Document]:
    """The scan only estimates: cut what goes beyond the bounds, the largest sources first to give way."""
    by_source: dict[str, list[tuple[int, Document]]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append((len(document.text.encode()), document))
    wanted = [sum(size for size, _ in rows) for rows in by_source.values()]
    for rows, share in zip(by_source.values(), fair_shares(wanted, max_bytes, max_bytes_per_source), strict=True):
        taken = 0
        for size, document in sorted(rows, key=lambda row: _hash(row[1].url.partition("#")[2])):
            if taken < share:
                yield document
                taken += size


def _module_name(path: str) -> str:
    return path.rpartition(".")[0].replace("/", ".").removesuffix(".__init__")


def _hash(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
