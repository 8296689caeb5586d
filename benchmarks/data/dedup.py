"""How well and how fast near duplicates are found: planted copies of real documents, with datatrove beside it.

    python benchmarks/data/dedup.py [--mb 20] [--copies 150] [--peer /path/to/datatrove/bin/python]

The documents are the docstrings and readmes of the installed Python packages. Of some, copies are planted whose Jaccard
similarity (of sets of word 5-grams, counted here with plain Python sets) is as close as can be to a wanted figure: half
of them by words replaced here and there, half by passages rewritten. Printed are, by similarity, the part of the copies
that is found (they and their originals do not both stay), and over all documents that go, the part that truly is as
similar as the threshold to the document that stays. CPU seconds are of one process; reading the documents is included.

The peer runs in an environment of its own: python -m venv V; V/bin/pip install 'datatrove[processing]' spacy
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from liuyi.data.corpus import DOCUMENTS, Document, document_id, read_documents, write_documents
from liuyi.data.dedup.exact import as_numbers, fingerprint
from liuyi.data.dedup.groups import Duplicates, find_duplicates
from liuyi.data.dedup.minhash import HASHES, signatures
from liuyi.data.sources.distributions import chosen
from liuyi.data.sources.python_docs import read_distributions

SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
THRESHOLD = 0.8
BAR_FROM, BAR_RECALL, BAR_PRECISION, BAR_SPEED = 0.85, 0.98, 0.99, 20
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|_+")
_PEER = Path(__file__).parent / "peers" / "datatrove_minhash.py"


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams by definition."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / max(1, len(one | other))


def edited(text: str, similarity: float, rng: random.Random, *, in_passages: bool) -> str | None:
    """A copy about as similar as wanted: by bisection over how many words are replaced. None where none comes close."""
    parts = re.split(r"(\w+)", text)
    places = list(range(1, len(parts), 2))
    if in_passages:
        start = rng.randrange(len(places))
        places = places[start:] + places[:start]
    else:
        rng.shuffle(places)
    instead = [f"{rng.choice('bcdfgklmnprst')}{rng.randrange(10**5)}" for _ in places]
    original = shingles(text)
    least, most, best, closest = 0, len(places), None, 0.02
    while least <= most:
        count = (least + most) // 2
        copy = list(parts)
        for place, word in zip(places[:count], instead, strict=False):
            copy[place] = word
        found = jaccard(original, shingles("".join(copy)))
        if abs(found - similarity) < closest:
            best, closest = "".join(copy), abs(found - similarity)
        least, most = (count + 1, most) if found > similarity else (least, count - 1)
    return best


def documents(mb: float) -> list[Document]:
    """Real documents, of 60 words and more."""
    found, _ = read_distributions(chosen(), max_bytes=int(mb * 1e6), max_bytes_per_source=int(mb * 1e6 / 4))
    return [one for one in found if len(one.text.split()) >= 60]


def plant(originals: list[Document], copies: int) -> tuple[list[Document], dict[str, tuple[str, float]]]:
    """The documents with copies among them, and for each copy its original and their true similarity."""
    rng = random.Random(7)
    pool = rng.sample(originals, len(originals))
    planted: dict[str, tuple[str, float]] = {}
    made = []
    for similarity in SIMILARITIES:
        wanted = copies
        while wanted and pool:
            original = pool.pop()
            text = edited(original.text, similarity, rng, in_passages=wanted % 2 == 0)
            if text is None:
                continue
            copy = Document(
                document_id("planted", original.id, text), text, "planted", original.url + "?copy", original.license
            )
            planted[copy.id] = original.id, jaccard(shingles(original.text), shingles(text))
            made.append(copy)
            wanted -= 1
    together = originals + made
    return rng.sample(together, len(together)), planted


def ours(folder: Path) -> tuple[Duplicates, dict[str, float]]:
    """What Liuyi finds, by one process, and the CPU seconds that it takes."""
    begun = time.process_time()
    texts = read_documents(folder, ["text"])["text"].to_pylist()
    marks = {"reading": time.process_time()}
    prints = as_numbers([fingerprint(text) for text in texts])
    marks["fingerprints"] = time.process_time()
    sketches = np.memmap(folder / "signatures", np.uint32, "w+", shape=(len(texts), HASHES))
    sketches[:] = signatures(texts)
    marks["signatures"] = time.process_time()
    chars = np.array(list(map(len, texts)), np.int64)
    found = find_duplicates(folder, prints, sketches, chars, threshold=THRESHOLD, workdir=folder, workers=1)
    marks["groups"] = time.process_time()
    seconds = {}
    for name, at in marks.items():
        seconds[name], begun = at - begun, at
    return found, seconds


def peer(python: str, folder: Path) -> tuple[set[str], dict[str, float]]:
    """The ids that stay after datatrove's pipeline, and its CPU seconds by stage."""
    done = subprocess.run(
        [python, str(_PEER), str(folder / DOCUMENTS), str(folder / "datatrove")], stdout=subprocess.PIPE, check=True
    )
    answer = json.loads(done.stdout)
    return set(answer["kept"]), answer["seconds"]


def recall(planted: dict[str, tuple[str, float]], stays: set[str]) -> Iterator[tuple[float, int, float]]:
    """(similarity, copies, part found): a copy is found if it and its original do not both stay."""
    found: Counter[float] = Counter()
    made: Counter[float] = Counter()
    for copy, (original, similarity) in planted.items():
        nearest = min(SIMILARITIES, key=lambda wanted: abs(wanted - similarity))
        made[nearest] += 1
        found[nearest] += not (copy in stays and original in stays)
    for similarity in SIMILARITIES:
        if made[similarity]:
            yield similarity, made[similarity], found[similarity] / made[similarity]


def precision(texts: list[str], found: Duplicates) -> tuple[int, float]:
    """How many documents go, and the part that is as similar as the threshold to what stays, by plain sets."""
    gone = np.flatnonzero(found.kind == "near").tolist()
    true = sum(jaccard(shingles(texts[row]), shingles(texts[found.representative[row]])) >= THRESHOLD for row in gone)
    return len(gone), true / max(1, len(gone))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20, help="megabytes of real text")
    parser.add_argument("--copies", type=int, default=150, help="planted copies at each similarity")
    parser.add_argument("--peer", default="", help="the Python of an environment with datatrove")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        together, planted = plant(documents(asked.mb), asked.copies)
        write_documents(folder, together)
        ids, texts = [one.id for one in together], [one.text for one in together]
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(ids):,} documents, {size / 1e6:.1f} MB, {len(planted):,} planted copies")
        found, seconds = ours(folder)
        stays = {id for number, id in enumerate(ids) if found.representative[number] == number}
        gone, right = precision(texts, found)
        print(f"\nLiuyi: {gone:,} near duplicates go, {right:.4f} of them at Jaccard >= {THRESHOLD} to what stays")
        reached = {similarity: part for similarity, _, part in recall(planted, stays)}
        others: dict[float, float] = {}
        speed = size / 1e6 / sum(seconds.values())
        _show_seconds("Liuyi", seconds, size)
        if asked.peer:
            kept, peer_seconds = peer(asked.peer, folder)
            others = {similarity: part for similarity, _, part in recall(planted, kept)}
            _show_seconds("datatrove", peer_seconds, size)
            ratio = sum(peer_seconds.values()) / sum(seconds.values())
            print(f"per core: {ratio:.1f} times datatrove (bar: {BAR_SPEED})")
        print(f"\n{'Jaccard':>8} {'copies':>7} {'Liuyi':>7}" + f" {'datatrove':>10}" * bool(others))
        for similarity, count, part in recall(planted, stays):
            print(f"{similarity:8.2f} {count:7} {part:7.3f}" + (f" {others[similarity]:10.3f}" if others else ""))
        worst = min(part for similarity, part in reached.items() if similarity >= BAR_FROM)
        print(f"\nrecall from {BAR_FROM}: {worst:.3f} at least (bar: {BAR_RECALL})")
        print(f"precision: {right:.4f} (bar: {BAR_PRECISION})")
        print(f"{speed:.1f} MB a CPU second")


def _show_seconds(name: str, seconds: dict[str, float], size: int) -> None:
    parts = ", ".join(f"{stage} {taken:.2f}" for stage, taken in seconds.items())
    total = sum(seconds.values())
    print(f"{name}: {total:.2f} CPU s = {size / 1e6 / total:.2f} MB/s a core ({parts})")


if __name__ == "__main__":
    main()
