"""data-juicer's filters over documents: `PYTHON datajuicer_filters.py DOCUMENTS.parquet LID.ftz OUT`, one process.

Its operators that measure what Gopher, C4 and FineWeb ask for: language, lengths of texts and lines, repetition of
words and characters, special and alphanumeric characters. All are measured on every document, as its `dj-analyze` does.
The operators are called on batches, without the data set around them. Prints JSON; what is loaded once is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

_ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

_NAMES = (
    "language_id_score_filter",
    "text_length_filter",
    "words_num_filter",
    "average_line_length_filter",
    "maximum_line_length_filter",
    "alphanumeric_filter",
    "special_characters_filter",
    "character_repetition_filter",
    "word_repetition_filter",
)
_ROWS_PER_BATCH = 1000


def main() -> None:
    documents, model, out = map(Path, sys.argv[1:4])
    (out / "models").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, out / "models" / "lid.176.bin")
    os.environ["DATA_JUICER_MODELS_CACHE"] = str(out / "models")

    import pyarrow.parquet as pq
    from data_juicer.ops import load_ops

    settings = {"language_id_score_filter": {"lang": "en", "min_score": 0.5}}
    ops = load_ops([{name: settings.get(name, {})} for name in _NAMES])
    _measure(ops, ["Warm up, so that nothing is loaded later."])
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in pq.ParquetFile(documents).iter_batches(_ROWS_PER_BATCH, columns=["text"]):
        _measure(ops, batch["text"].to_pylist())
    answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps(answer), file=_ANSWER, flush=True)


def _measure(ops: list, texts: list[str]) -> None:
    from data_juicer.utils.constant import Fields

    samples = {ops[0].text_key: texts, Fields.stats: [{} for _ in texts]}
    for op in ops:
        samples = op.compute_stats_batched(samples)


if __name__ == "__main__":
    main()
