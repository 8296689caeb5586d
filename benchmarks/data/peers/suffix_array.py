"""Repeated substrings by a suffix array: `PYTHON suffix_array.py DOCUMENTS.parquet BYTES`, with pydivsufsort.

Windows of so many bytes are grouped by the suffix array and its longest common prefixes; one is repeated if the first
of its group stands at least its own length before it, or in an earlier document. Prints JSON: CPU seconds, the peak of
memory, and by document the spans of bytes that repeated windows cover.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import pyarrow.parquet as pq
from pydivsufsort import divsufsort, kasai


def main() -> None:
    length = int(sys.argv[2])
    texts = [text.encode() for text in pq.read_table(sys.argv[1], columns=["text"])["text"].to_pylist()]
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun = time.process_time()
    data = np.array(bytearray(b"\xff".join([*texts, b""])), np.uint8)
    borders = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])])
    order = divsufsort(data)
    common = np.asarray(kasai(data, order))
    owner = np.searchsorted(borders, order, "right") - 1
    whole = order + length <= borders[owner + 1] - 1
    new = np.ones(len(order), bool)
    new[1:] = common[: len(order) - 1] < length
    first = np.minimum.reduceat(np.where(whole, order, len(data)), np.flatnonzero(new))[np.cumsum(new) - 1]
    again = np.sort(order[whole & (first + length <= order)])
    seconds = time.process_time() - begun
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spans: dict[int, list[list[int]]] = {}
    for place in again.tolist():
        document = int(np.searchsorted(borders, place, "right")) - 1
        start = place - int(borders[document])
        found = spans.setdefault(document, [])
        if found and start <= found[-1][1]:
            found[-1][1] = start + length
        else:
            found.append([start, start + length])
    json.dump({"seconds": seconds, "peak_bytes": peak_bytes - before_bytes, "spans": spans}, sys.stdout)


if __name__ == "__main__":
    main()
