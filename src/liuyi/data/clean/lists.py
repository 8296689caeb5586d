"""Lists of one's own: addresses that are not wanted, words that are counted. One entry a line; `#` begins a comment.

A host on the list stands for its subdomains too, an address with a path for all below it; lines of a hosts file
(`0.0.0.0 ads.example.net`) are read as well. A word is found in any case, between spaces or not where it is Chinese;
where it begins or ends with a letter or digit of another script, a word of the text must begin or end there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.data.clean.batch import Batch, Class, Floats, Ints, ratio
from liuyi.data.clean.matching import Words

URLS = {"url_blocked": pa.bool_()}
WORDS = {"bad_words": pa.int64(), "bad_word_ratio": pa.float32()}

_SINK = re.compile(r"0\.0\.0\.0|127\.0\.0\.1|::1?")
"""What a hosts file sends unwanted hosts to."""
_REMARK = re.compile(r"\s#")
_SPELT = (Class.LETTER, Class.DIGIT)


@dataclass(frozen=True)
class Lists:
    """Entries of lists; an empty one is not there, and its attributes are not measured."""

    urls: frozenset[str] = frozenset()
    """Hosts, and hosts with a path: `example.com`, `example.com/ads`."""
    words: tuple[str, ...] = ()
    """In lower case, each once."""

    @classmethod
    def read(cls, urls: Path | None, words: Path | None) -> Lists:
        """Read the files. Raises DataError where one has no entry, or an entry that is no address."""
        return cls(
            frozenset(_addresses(urls)) if urls else frozenset(),
            tuple(sorted({pc.utf8_lower(entry).as_py() for _, entry in _entries(words)})) if words else (),
        )

    @property
    def schema(self) -> pa.Schema:
        """The attributes that these lists give."""
        return pa.schema({**(URLS if self.urls else {}), **(WORDS if self.words else {})})


def measure_group(lists: Lists, group: pa.Table) -> pa.Table:
    """From the columns `text` and `url` of documents to the attributes of the lists:

    - url_blocked: whether the document's address is on the list.
    - bad_words, bad_word_ratio: how often words of the list occur, and their share of visible characters.
    """
    columns: dict[str, object] = {}
    if lists.urls:
        columns["url_blocked"] = blocked(group["url"], lists.urls)
    if lists.words:
        texts = group["text"].combine_chunks().fill_null("")
        columns["bad_words"], columns["bad_word_ratio"] = count_words(texts, lists.words)
    return pa.table(columns, schema=lists.schema)


def blocked(urls: pa.ChunkedArray, listed: frozenset[str]) -> NDArray[np.bool_]:
    """[docs] whether an address, or a host or folder above it, is listed. What is no address is not."""
    return np.array([any(above in listed for above in _above(url or "")) for url in urls.to_pylist()], bool)


def count_words(texts: pa.Array, words: tuple[str, ...]) -> tuple[Ints, Floats]:
    """[docs] occurrences of the words, and the share of visible characters in them, at most 1.

    Words within words count each for itself; `words` are in lower case.
    """
    batch = Batch(pc.utf8_lower(texts))
    found = _automaton(words).find(batch)
    spelt = np.isin(np.append(batch.classes, Class.SPACE), _SPELT)
    end = found.start + found.chars
    whole = ~(_joined(batch, spelt, found.start - 1, found.owner) | _joined(batch, spelt, end - 1, found.owner))
    owner, chars = found.owner[whole], found.chars[whole]
    covered = np.minimum(np.bincount(owner, chars, minlength=batch.size), batch.visible)
    return np.bincount(owner, minlength=batch.size), ratio(covered, batch.visible)


def _joined(batch: Batch, spelt: NDArray[np.bool_], left: Ints, owner: Ints) -> NDArray[np.bool_]:
    """Whether the characters at `left` and after it, of one document, are both letters or digits of a spelt word."""
    ends = np.cumsum(batch.chars)
    inside = (left >= ends[owner] - batch.chars[owner]) & (left + 1 < ends[owner])
    return np.asarray(inside & spelt[left] & spelt[left + 1], bool)


@cache
def _automaton(words: tuple[str, ...]) -> Words:
    return Words(words, overlapping=True)


def _above(url: str) -> Iterator[str]:
    """The hosts and folders that an address lies in: `https://a.b.example/c/d` in `b.example`, `a.b.example/c`, …"""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return
    labels, steps = host.split("."), [step for step in parts.path.split("/") if step]
    for start in range(len(labels) if host else 0):
        domain = ".".join(labels[start:])
        yield domain
        for depth in range(1, len(steps) + 1):
            yield "/".join([domain, *steps[:depth]])


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the list cannot be read: {error}", where=str(path), hint="a list is a text in UTF-8"
        ) from error
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    entries = [(number, entry) for number, entry in entries if entry and not entry.startswith("#")]
    if not entries:
        raise DataError("the list has no entry", where=str(path), hint="write one entry a line")
    yield from entries


def _addresses(path: Path) -> Iterator[str]:
    """The addresses of a list; a line of a hosts file may have several."""
    for line, entry in _entries(path):
        said = _REMARK.split(entry)[0].split()
        hosts = said[1:] if len(said) > 1 and _SINK.fullmatch(said[0]) else [" ".join(said)]
        yield from (_address(host, f"{path}:{line}") for host in hosts)


def _address(entry: str, where: str) -> str:
    """An entry as `blocked` compares it: in lower case, without scheme, port and the slash at its end."""
    entry = entry.removeprefix("*.").removeprefix("||").removesuffix("^")
    try:
        parts = urlsplit(entry if "://" in entry else f"//{entry}")
        host = (parts.hostname or "").rstrip(".")
    except ValueError:  # a bracket that is not closed
        host = ""
    if not host or " " in entry:
        raise DataError(f"'{entry}' is no host or address", where=where, hint="write example.com or example.com/folder")
    return "/".join([host, *(step for step in parts.path.split("/") if step)])
