"""How fast a corpus becomes tokens, in how much memory, and how short texts become beside known tokenizers.

    python benchmarks/data/tokens.py [--mb 24] [--repeat 3] [--chinese /usr/share/man/zh_CN] [--tiktoken FOLDER]

The documents are the docstrings and readmes of the installed Python packages and, in Chinese, manual pages (Debian's
`manpages-zh`). The speed is that of `write_tokens`, from a corpus on disk to an artifact, beside the library's own
`encode_batch_fast` over the same texts in memory, which keeps nothing; both on all cores, by turns. The peak of memory
is that of a process of its own, with the corpus once and four times as large.

Bytes a token are of texts that our tokenizer was not trained on. The others come with `--tiktoken`: the folder of a
package that ships the ranks of OpenAI's tokenizers, such as `llama_index/core/_static/tiktoken_cache` of
`llama-index-core`, and `tiktoken` installed. Exits with 1 where the bar is not reached.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from liuyi.data.attributes import read_groups
from liuyi.data.corpus import Document, document_id, write_documents
from liuyi.data.pool import available_cores
from liuyi.data.sources.distributions import chosen
from liuyi.data.sources.files import Reading, read_files
from liuyi.data.sources.location import find_files
from liuyi.data.sources.python_docs import read_distributions
from liuyi.data.tokens import write_tokens
from liuyi.model.tokenizer import Tokenizer, train_bpe

BAR = 0.9
"""Our speed as a part of the library's."""
VOCABULARY = 16_384
_BATCH_BYTES = 2_000_000
_BUCKET_BYTES = 1 << 20
"""Small, so that memory is that of a corpus of many buckets, as a large one is."""
_HELD_OUT = 10
"""Every tenth document is kept from the tokenizer."""


def english(size_bytes: int) -> list[Document]:
    """Documentation of installed packages."""
    distributions = chosen((), ())
    return read_distributions(distributions, max_bytes=size_bytes, max_bytes_per_source=size_bytes // 4)[0]


def chinese(folder: Path) -> list[Document]:
    """Manual pages, where there are any."""
    if not folder.exists():
        return []
    reading = Reading(extractor="plain")
    found = read_files(find_files(folder), folder.name, reading)
    return [one for one in found if isinstance(one, Document)]


def again(documents: list[Document], times: int) -> Iterator[Document]:
    """The documents several times, with ids of their own."""
    for number in range(times):
        for one in documents:
            yield Document(document_id(str(number), one.url, one.text), one.text, one.source, one.url, one.license)


def batches(texts: list[str]) -> Iterator[list[str]]:
    """Texts in lists of the size that `write_tokens` gives the library."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text.encode())
        if size >= _BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


@dataclass(frozen=True)
class Taken:
    """How long something took, and how much of the processors."""

    wall_s: float
    cpu_s: float


def measured(work: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def speed(folder: Path, tokenizer: Tokenizer, repeat: int) -> float:
    """Measure both by turns, print them, and give the ratio of their medians."""
    texts = [text for group in read_groups(folder, ["text"]) for text in group["text"].to_pylist()]
    size = sum(len(text.encode()) for text in texts) / 1e6
    backend = tokenizer.backend
    ours, raw = [], []
    for _ in range(repeat):
        raw.append(
            measured(lambda: [len(backend.encode_batch_fast(b, add_special_tokens=False)) for b in batches(texts)])
        )
        with tempfile.TemporaryDirectory() as out:
            ours.append(measured(lambda out=out: write_tokens(Path(out), folder, tokenizer)))  # type: ignore[misc]
    print(f"{size:.1f} MB, {len(texts):,} documents, {available_cores()} cores, median of {repeat}")
    for name, times in (("encode_batch_fast", raw), ("write_tokens", ours)):
        wall, cpu = median(times)
        print(f"  {name:<18} {size / wall:6.2f} MB/s, {size / cpu:6.2f} MB a CPU second")
    (raw_wall, raw_cpu), (our_wall, our_cpu) = median(raw), median(ours)
    print(f"  ours / raw         {raw_wall / our_wall:6.2f}        {raw_cpu / our_cpu:6.2f}")
    return raw_wall / our_wall


def median(times: list[Taken]) -> tuple[float, float]:
    """(wall, CPU), each by itself."""
    return statistics.median(one.wall_s for one in times), statistics.median(one.cpu_s for one in times)


def peak_mb(folder: Path, tokenizer: Path) -> float:
    """Peak resident memory of writing tokens in a process of its own."""
    code = (
        "import resource, sys, tempfile\n"
        "from pathlib import Path\n"
        "from liuyi.data.tokens import write_tokens\n"
        "from liuyi.model.tokenizer import Tokenizer\n"
        "with tempfile.TemporaryDirectory() as out:\n"
        "    tokenizer = Tokenizer.load(Path(sys.argv[2]))\n"
        "    write_tokens(Path(out), Path(sys.argv[1]), tokenizer, bucket_bytes=int(sys.argv[3]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tokenizer), str(_BUCKET_BYTES)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def compression(tokenizer: Tokenizer, heldout: dict[str, list[str]], tiktoken_cache: Path | None) -> None:
    """Print bytes a token by language, ours first."""
    encoders: dict[str, Callable[[str], int]] = {
        f"liuyi, {tokenizer.vocab_size:,}": lambda text: len(tokenizer.encode_ordinary(text))
    }
    if tiktoken_cache is not None:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(tiktoken_cache)
        import tiktoken

        for name in ("cl100k_base", "o200k_base"):
            encoding = tiktoken.get_encoding(name)
            encoders[f"{name}, {encoding.n_vocab:,}"] = lambda text, encoding=encoding: len(  # type: ignore[misc]
                encoding.encode_ordinary(text)
            )
    print(f"{'bytes a token, unseen texts':<30}" + "".join(f"{language:>8}" for language in heldout))
    for name, count in encoders.items():
        figures = [sum(len(text.encode()) for text in texts) / sum(map(count, texts)) for texts in heldout.values()]
        print(f"  {name:<28}" + "".join(f"{figure:8.2f}" for figure in figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mb", type=float, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--chinese", type=Path, default=Path("/usr/share/man/zh_CN"))
    parser.add_argument("--tiktoken", type=Path, help="a folder with the ranks of OpenAI's tokenizers")
    asked = parser.parse_args()
    by_language = {"en": english(int(asked.mb * 1e6)), "zh": chinese(asked.chinese)}
    by_language = {language: documents for language, documents in by_language.items() if documents}
    documents = [one for each in by_language.values() for one in each]
    heldout = {name: [one.text for one in each[::_HELD_OUT]] for name, each in by_language.items()}
    seen = (one.text for each in by_language.values() for n, one in enumerate(each) if n % _HELD_OUT)
    tokenizer = train_bpe(seen, VOCABULARY)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for name, times in (("once", 1), ("fourfold", 4)):
            (folder / name).mkdir()
            write_documents(folder / name, again(documents, times))
        (folder / "vocabulary").mkdir()
        tokenizer.save(folder / "vocabulary")
        ratio = speed(folder / "once", tokenizer, asked.repeat)
        peaks = [peak_mb(folder / name, folder / "vocabulary") for name in ("once", "fourfold")]
    print(f"  peak memory        {peaks[0]:,.0f} MB, and {peaks[1]:,.0f} MB for four times as much text")
    compression(tokenizer, heldout, asked.tiktoken)
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
