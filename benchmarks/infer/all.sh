#!/usr/bin/env bash
# All bars in one run, then the table for docs/benchmarks.md: benchmarks/infer/all.sh PEERS RESULTS.jsonl
#
# A quarter of an hour on two cores. A job that fails costs its rows alone; the exit code tells.
set -uo pipefail
peers=$(realpath "$1") results=$(realpath "$2") python=${LIUYI_PYTHON:-python} failed=0
cd "$(dirname "$0")"

measure() {
    echo "$(date +%T) $*" >&2
    "$python" "$1.py" "$peers" --json "$results" "${@:2}" || failed=1
}

for format in int8 bf16; do
    measure decode --format $format --repeats 3
    measure prefill --format $format --repeats 2
    measure streams --format $format --repeats 1
done
measure streams --format int8 --repeats 1 --temperature 0.7 --top-p 0.9
measure prefill --format int8 --kv bf16 --repeats 2
measure prefix --repeats 1
measure arrival --repeats 2 --peer
measure start --repeats 3
"$python" table.py "$results"
exit $failed
