"""Work over a corpus in parts, one a row group: on all cores or a cluster, in bounded memory, and never done twice.

    def count(group: pa.Table) -> pa.Table:
        return pa.table({"letters": pc.utf8_length(group["text"])})

    for table in map_groups(count, corpus, ["text"], ctx.workdir):
        ...

What a part gives is a file in `workdir` as soon as it is there, so a step that is killed goes on with the parts that
are missing. A worker that dies is replaced. Neither the engine nor the number of workers changes the result.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import LiuyiError, StepError
from liuyi.data.corpus import DOCUMENTS
from liuyi.data.engine import chosen_engine, cores, engine

if TYPE_CHECKING:
    import pyarrow as pa

GroupFunction = Callable[["pa.Table"], "pa.Table"]
"""From some columns of a row group to columns of one's own: a function of a module, or a `partial` of one."""

_WORKERS_LOST_IN_A_ROW = 3


def map_groups(
    function: GroupFunction,
    source: Path,
    columns: Sequence[str],
    workdir: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Iterator[pa.Table]:
    """`function` of each row group of the documents of a corpus, in order.

    All parts are done before the first table is given; each is read when it is its turn. They stay in `workdir`, which
    is of this function and this corpus alone. `on_progress` is told how many documents are done. Raises StepError where
    a part fails, once the others are done, or where workers are lost without end.
    """
    import pyarrow.parquet as pq

    parts = Parts(source / DOCUMENTS, workdir)
    parts.finish(function, columns, workers, on_progress)
    for number in range(len(parts)):
        yield pq.read_table(parts.path(number), use_threads=False)


class _WorkerLost(StepError):
    """A worker was killed, or ended without a word."""


class Parts:
    """The parts of one piece of work over a file of documents, and which of them are done."""

    def __init__(self, documents: Path, workdir: Path) -> None:
        import pyarrow.parquet as pq

        about = pq.read_metadata(documents)
        self._documents = documents
        self._folder = workdir / "parts"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, number: int) -> Path:
        """Where the table of a part is kept."""
        return self._folder / f"{number:08}.parquet"

    def finish(
        self, function: GroupFunction, columns: Sequence[str], workers: int | None, on_progress: Callable[[int], None]
    ) -> None:
        """Do what is missing, again where a worker was lost, as long as that brings it forward."""
        missing = [number for number in range(len(self)) if not self._is_done(number)]
        done = sum(self._rows) - sum(self._rows[number] for number in missing)
        lost = 0
        while missing:
            errors: dict[int, str] = {}
            try:
                for number, table, error in _run(function, self._documents, list(columns), missing, workers):
                    if error:
                        errors[number] = error
                        continue
                    self._keep(number, table)
                    done += self._rows[number]
                    lost = 0
                    on_progress(done)
                if not all(number in errors or self.path(number).exists() for number in missing):
                    raise _WorkerLost("the data engine gave less than it was asked for", where=str(self._documents))
            except _WorkerLost:
                lost += 1
                if lost == _WORKERS_LOST_IN_A_ROW:
                    raise
            if errors:
                first = min(errors)
                raise StepError(f"row group {first} of the documents: {errors[first]}", where=str(self._documents))
            missing = [number for number in missing if not self.path(number).exists()]

    def _keep(self, number: int, table: bytes) -> None:
        path = self.path(number)
        waiting = path.with_suffix(".waiting")
        waiting.write_bytes(table)
        waiting.replace(path)

    def _is_done(self, number: int) -> bool:
        """Whether the part is there, and whole: after a power cut, a file may have its name but not its bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(number)
        try:
            return path.exists() and bool(pq.read_metadata(path).num_rows == self._rows[number])
        except (OSError, pa.ArrowInvalid):
            path.unlink()
            return False


def _run(
    function: GroupFunction, documents: Path, columns: list[str], parts: Sequence[int], workers: int | None
) -> Iterator[tuple[int, bytes, str]]:
    """The tables of some parts as Parquet, as they come; in the place of a table, what went wrong."""
    daft = engine()
    work = _work_udf(daft, function, documents, columns, min(workers or cores(), len(parts)))
    frame = daft.from_pydict({"part": list(parts)})
    if chosen_engine() == "ray":  # which gives whole partitions to workers; the native runner gives rows
        frame = frame.into_partitions(len(parts))
    batches = frame.select(work(daft.col("part"))).to_arrow_iter()
    try:
        for batch in batches:
            yield from zip(*(batch[name].to_pylist() for name in ("part", "table", "error")), strict=True)
    except Exception as error:  # the engine has many kinds for a worker that is gone
        reason = str(error).partition(", stdout: ")[0]
        raise _WorkerLost(f"workers of the data engine are lost: {reason}", where=str(documents)) from error


def _work_udf(
    daft: ModuleType, function: GroupFunction, documents: Path, columns: list[str], workers: int
) -> Callable[[Any], Any]:
    kind = daft.DataType.struct(
        {"part": daft.DataType.int64(), "table": daft.DataType.binary(), "error": daft.DataType.string()}
    )

    @daft.cls(use_process=True, max_concurrency=workers)
    class Work:
        @daft.method.batch(return_dtype=kind, unnest=True, batch_size=1)  # type: ignore[untyped-decorator]
        def do(self, part: Any) -> pa.Array:
            import pyarrow as pa

            from liuyi.data.parts import table_of

            numbers = part.to_pylist()
            tables, errors = zip(*(table_of(function, documents, columns, number) for number in numbers), strict=True)
            columns_made = [pa.array(numbers), pa.array(tables, pa.binary()), pa.array(errors, pa.string())]
            return pa.StructArray.from_arrays(columns_made, ["part", "table", "error"])

    do: Callable[[Any], Any] = Work().do
    return do


def table_of(function: GroupFunction, documents: Path, columns: list[str], number: int) -> tuple[bytes, str]:
    """What a worker does: read a row group and apply the function; gives the table as Parquet, or what went wrong."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(documents) as file:
            group = file.read_row_group(number, columns=columns, use_threads=False)
        made = io.BytesIO()
        pq.write_table(function(group), made, compression="zstd")
    except Exception as error:
        traceback.print_exc()
        return b"", str(error) if isinstance(error, LiuyiError) else f"{type(error).__name__}: {error}"
    return made.getvalue(), ""
