"""Block lists and word lists against plain search, and as a step before selection."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError, StepError
from liuyi.data.clean.lists import Lists, blocked, count_words
from liuyi.data.corpus import ATTRIBUTES, DROPPED

EXAMPLES = 60
LETTERS = st.text(st.sampled_from("ab1 中文，-"), max_size=40)
WORDS = st.sets(st.text(st.sampled_from("ab1中文"), min_size=1, max_size=3), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/a", True),
        ("http://www.EXAMPLE.com:8080", True),
        ("https://example.com./", True),
        ("https://notexample.com/", False),
        ("https://example.com.evil.test/", False),
        ("https://blog.test/ads/today.html", True),
        ("https://www.blog.test/ads", True),
        ("https://blog.test/ads-free", False),
        ("https://blog.test/", False),
        ("https://1.2.3.4/x", True),
        ("pkg/module.py", False),
        ("http://[broken", False),
        ("", False),
    ],
)
def test_hosts_and_folders(url: str, expected: bool) -> None:
    listed = frozenset({"example.com", "blog.test/ads", "1.2.3.4"})
    assert blocked(pa.chunked_array([[url]]), listed).tolist() == [expected]


def test_forms_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(
        "# a comment\n0.0.0.0 ads.example.net\n127.0.0.1  Track.example.org # of a hosts file\n"
        "||cdn.example.io^\n*.spam.test\nhttps://forum.test/casino/\n\n0.0.0.0\ta.example.cn b.example.cn\t# two\n",
        encoding="utf-8",
    )
    expected = {"ads.example.net", "track.example.org", "cdn.example.io", "spam.test", "forum.test/casino"}
    expected |= {"a.example.cn", "b.example.cn"}
    assert Lists.read(path, None).urls == expected


@pytest.mark.parametrize(
    ("content", "message"), [("# nothing\n", "no entry"), ("two words here\n", "no host"), ("[broken\n", "no host")]
)
def test_lists_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Lists.read(path, None)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        Lists.read(None, path)


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(LETTERS, min_size=1, max_size=4), WORDS)
def test_words_by_plain_search(texts: list[str], words: set[str]) -> None:
    counts, shares = count_words(pa.array(texts), tuple(sorted(words)))
    for row, text in enumerate(texts):
        expected = 0
        for word in words:
            before = "(?<![ab1])" if word[0] in "ab1" else ""
            after = "(?![ab1])" if word[-1] in "ab1" else ""
            expected += len(re.findall(f"(?={before}{word}{after})", text))
        assert counts[row] == expected
        assert (shares[row] > 0) == (expected > 0)
        assert shares[row] <= 1


def test_case_and_chinese_without_spaces() -> None:
    texts = pa.array(["A Casino, CASINOS and casino.", "网上赌场欢迎你，赌场开门了", "ÉCOLE école"])
    counts, shares = count_words(texts, ("casino", "école", "赌场"))
    assert counts.tolist() == [2, 2, 2]
    assert shares[1] == pytest.approx(4 / 13)


@pytest.mark.slow
def test_as_a_step(tmp_path: Path) -> None:
    urls, words = tmp_path / "urls.txt", tmp_path / "words.txt"
    urls.write_text("spam.test\n", encoding="utf-8")
    words.write_text("lines\nencodings\n", encoding="utf-8")
    documents = [document(prose(n), f"pkg{n}", f"https://{'spam' if n == 3 else 'good'}.test/{n}") for n in range(8)]
    documents.append(document(prose(9, words=900), "pkg9", "https://good.test/9"))
    given_corpus = corpus(tmp_path / "corpus", documents)
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": given_corpus}).made["corpus"]
    listed = run_step("data.lists", tmp_path / "lists", {"corpus": cleaned}, urls=urls, words=words).made["corpus"]
    table = pq.read_table(listed.path / ATTRIBUTES)
    assert {"lang", "words", "pii", "url_blocked", "bad_words", "bad_word_ratio"} <= set(table.column_names)
    assert table["url_blocked"].to_pylist() == [n == 3 for n in range(9)]
    limits = {"heldout_fraction": 0.0, "max_bad_words": 20}
    chosen = run_step("data.select", tmp_path / "select", {"corpus": listed}, **limits).made["train"]
    reasons = {row["url"]: row["reason"] for row in pq.read_table(chosen.path / DROPPED).to_pylist()}
    assert reasons["https://spam.test/3"] == "blocked address"
    assert reasons["https://good.test/9"] == "words of a list"
    with pytest.raises(DataError, match=r"run data\.lists"):
        run_step("data.select", tmp_path / "without", {"corpus": cleaned}, **limits)
    with pytest.raises(StepError, match="no list is given"):
        run_step("data.lists", tmp_path / "none", {"corpus": cleaned})
