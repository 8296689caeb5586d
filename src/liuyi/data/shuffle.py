"""Documents in an order shuffled by a hash of their ids, in bounded memory: a bucket sort through files.

The order is that of the SHA-256 of the ids and depends on nothing else. Documents are dealt to buckets by the first
bits of their hash, and each bucket is sorted by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from liuyi.data.attributes import read_groups
from liuyi.data.corpus import DOCUMENTS

BUCKET_BYTES = 1 << 26
_MOST_BUCKETS = 512
"""Files that are open at once; a corpus above 32 GB gets larger buckets."""
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


class Shuffled:
    """The documents of a corpus in the order of their ids' hashes, as tables of about `bucket_bytes`.

    Texts are `large_string`, of which a table may hold more than 2 GB. The buckets lie in `scratch` and take about
    half the disk that the texts take in memory; each is deleted once it was read.
    """

    def __init__(
        self, corpus: Path, columns: Sequence[str], scratch: Path, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """Deal the documents to their buckets. `id` and `text` are among `columns`."""
        self.documents = 0
        self.bytes = 0
        """UTF-8 bytes of the texts."""
        metadata = pq.read_metadata(corpus / DOCUMENTS)
        size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        buckets = min(_MOST_BUCKETS, max(1, -(-size // bucket_bytes)))
        self._paths = [scratch / f"{number}.arrow" for number in range(buckets)]
        with ExitStack() as stack:
            writers: list[pa.ipc.RecordBatchStreamWriter] = []
            for table in _read(corpus, columns, bucket_bytes):
                writers = writers or [
                    stack.enter_context(pa.ipc.new_stream(str(path), table.schema, options=_COMPRESSED))
                    for path in self._paths
                ]
                self._deal(table, writers)

    def __iter__(self) -> Iterator[pa.Table]:
        for path in self._paths if self.documents else ():
            with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all()
            path.unlink()
            keys = _hashes(table)
            if keys:
                yield table.take(sorted(range(len(keys)), key=keys.__getitem__))

    def _deal(self, table: pa.Table, writers: Sequence[pa.ipc.RecordBatchStreamWriter]) -> None:
        self.documents += table.num_rows
        self.bytes += pc.sum(pc.binary_length(table["text"])).as_py()
        buckets = np.asarray([int.from_bytes(key[:4]) * len(writers) >> 32 for key in _hashes(table)])
        for number in np.unique(buckets).tolist():
            writers[number].write_table(table.filter(pa.array(buckets == number)))


def _read(corpus: Path, columns: Sequence[str], size_bytes: int) -> Iterator[pa.Table]:
    """The documents in tables of about `size_bytes`, so that what goes to a bucket is worth a write."""
    held: list[pa.Table] = []
    for group in filter(len, read_groups(corpus, columns)):
        text = group.schema.get_field_index("text")
        held.append(group.set_column(text, "text", group["text"].cast(pa.large_string())))
        if sum(one.nbytes for one in held) >= size_bytes:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _hashes(table: pa.Table) -> list[bytes]:
    return [hashlib.sha256(id.encode()).digest() for id in table["id"].to_pylist()]
