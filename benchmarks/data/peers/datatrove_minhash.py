"""datatrove's MinHash pipeline over documents: `PYTHON datatrove_minhash.py DOCUMENTS.parquet OUT`, one process.

All four stages as its documentation has them: signatures, buckets, clusters, filter; 5-grams, 14 buckets of 8 hashes.
Prints JSON: CPU seconds of each stage, and the ids of the documents that stay. Imports and the splitter of words are
loaded before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

_ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def main() -> None:
    import pyarrow.parquet as pq
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    documents, out = Path(sys.argv[1]), Path(sys.argv[2])
    table = pq.read_table(documents, columns=["id", "text"]).to_pylist()
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    load_word_tokenizer("eng").word_tokenize("Loaded before the clock starts.")
    kept: list[str] = []

    class Read(PipelineStep):
        def run(self, data=None, rank=0, world_size=1):
            yield from (Document(text=row["text"], id=row["id"]) for row in table)

    class Keep(PipelineStep):
        def run(self, data=None, rank=0, world_size=1):
            for document in data:
                kept.append(document.id)
                yield document

    folders = [str(out / name) for name in ("signatures", "buckets", "clusters")]
    stages = {
        "signatures": ([Read(), MinhashDedupSignature(folders[0], config, language="eng")], 1),
        "buckets": ([MinhashDedupBuckets(folders[0], folders[1], config=config)], config.num_buckets),
        "clusters": ([MinhashDedupCluster(folders[1], folders[2], config=config)], 1),
        "filter": ([Read(), MinhashDedupFilter(folders[2]), Keep()], 1),
    }
    seconds = {}
    for name, (pipeline, tasks) in stages.items():
        begun = time.process_time()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / "logs" / name)).run()
        seconds[name] = time.process_time() - begun
    json.dump({"seconds": seconds, "kept": kept}, _ANSWER)


if __name__ == "__main__":
    main()
