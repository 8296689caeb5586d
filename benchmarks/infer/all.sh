#!/usr/bin/env bash
# All bars in one run, then the table for docs/benchmarks.md: benchmarks/infer/all.sh PEERS RESULTS.jsonl
set -euo pipefail
cd "$(dirname "$0")"
python=${LIUYI_PYTHON:-python}
for job in decode prefill streams; do
    for format in int8 bf16; do "$python" "$job.py" "$1" --format "$format" --json "$2"; done
done
for job in prefix arrival start; do "$python" "$job.py" "$1" --json "$2"; done
"$python" table.py "$2"
