"""Liuyi's filters over documents, as peers are asked: `python liuyi_filters.py DOCUMENTS.parquet LID.ftz OUT NAMES`.

`NAMES` are the filters, with commas between. All are measured on every document and written beside it. One process;
prints JSON. The model is the one that Liuyi ships with.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from liuyi.data.clean.filters import FILTERS, measure
from liuyi.data.clean.run import batches


def main() -> None:
    documents, _, out = map(Path, sys.argv[1:4])
    names = sys.argv[4].split(",")
    out.mkdir(parents=True, exist_ok=True)
    pa.set_cpu_count(1)
    filters = tuple(one for one in FILTERS if one.name in names)
    schema = measure(pa.array(["Warm up, so that nothing is loaded later."]), filters).schema
    wall, cpu = time.perf_counter(), time.process_time()
    with pq.ParquetFile(documents) as file, pq.ParquetWriter(out / "attributes.parquet", schema) as writer:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=["text"], use_threads=False)
            for batch in batches(group["text"].combine_chunks()):
                writer.write_table(measure(batch, filters))
    print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
