"""datatrove's filters over documents: `PYTHON datatrove_filters.py DOCUMENTS.parquet LID.ftz OUT`, one process.

The order is FineWeb's: language, Gopher repetition and quality, C4, FineWeb's own; a document that one drops does not
reach the next. Prints JSON; splitters of words and sentences are loaded before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

_ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from datatrove.executor import LocalPipelineExecutor  # noqa: E402
from datatrove.pipeline.filters import (  # noqa: E402
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.readers import ParquetReader  # noqa: E402
from datatrove.pipeline.writers import JsonlWriter  # noqa: E402
from datatrove.utils.text import split_into_sentences, split_into_words  # noqa: E402


def main() -> None:
    documents, model, out = map(Path, sys.argv[1:4])
    language = LanguageFilter("en", language_threshold=0.5)
    language.model.MODEL_URL = str(model)  # no download: the small model that all are measured with
    split_into_sentences("One. Two.", "eng"), split_into_words("one two", "eng")
    pipeline = [
        ParquetReader(str(documents.parent), glob_pattern=documents.name),
        language,
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
        JsonlWriter(str(out / "kept"), compression=None),
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    stats = LocalPipelineExecutor(pipeline, logging_dir=str(out / "logs")).run()
    answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    answer["kept"] = stats.stats[-1].stats["total"].total
    print(json.dumps(answer), file=_ANSWER, flush=True)


if __name__ == "__main__":
    main()
