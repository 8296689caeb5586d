"""Duplicates: Jaccard by definition, planted copies at several similarities, groups that do not depend on order."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.dedup.exact import fingerprint
from liuyi.data.dedup.groups import Duplicates, UnionFind, by_preference, find_duplicates
from liuyi.data.dedup.jaccard import Jaccard
from liuyi.data.dedup.minhash import HASHES, Signatures, bands_for, buckets, signature
from liuyi.data.engine import engine

EXAMPLES = 20
VOCABULARY = [f"word{number}" for number in range(4000)]


def signatures(texts: list[str]) -> Signatures:
    daft = engine()
    frame = daft.from_pydict({"text": texts}).select(signature(daft, daft.col("text")).alias("s"))
    flat = frame.to_arrow()["s"].combine_chunks().flatten().to_numpy()
    return flat.astype(np.uint32).reshape(len(texts), HASHES)


def shingles(text: str) -> set[tuple[str, ...]]:
    """Sets of word 5-grams, by definition: lower case, no punctuation, Han characters apart."""
    words = re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text.lower())
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


def exact_jaccard(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def article(seed: int, words: int = 300) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=words)


def changed(words: list[str], jaccard: float, seed: int) -> str:
    """A copy whose similarity is just about `jaccard`: words are replaced one after another until it falls there."""
    rng = random.Random(seed)
    copy, original = list(words), " ".join(words)
    for place in rng.sample(range(len(words)), len(words)):
        copy[place] = f"new{rng.randrange(10**6)}"
        if exact_jaccard(original, " ".join(copy)) <= jaccard:
            return " ".join(copy)
    raise AssertionError


def group(texts: list[str], threshold: float = 0.8) -> Duplicates:
    chars = np.array(list(map(len, texts)))
    ids = [f"{number:06d}" for number in range(len(texts))]
    order = by_preference(chars, [""] * len(texts), ids)
    return find_duplicates(
        order, list(map(fingerprint, texts)), signatures(texts), Jaccard(texts.__getitem__), threshold=threshold
    )


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.sampled_from(["a", "b", "C,", "汉字", "d.e"]), min_size=5, max_size=30), st.integers(0, 30))
def test_jaccard_is_the_definition(words: list[str], cut: int) -> None:
    one, other = " ".join(words), " ".join(words[cut:] + ["z"] * 6)
    found = Jaccard([one, other].__getitem__).similarity(0, 1)
    assert found == pytest.approx(exact_jaccard(one, other))


def test_jaccard_forgets_but_is_right() -> None:
    texts = [" ".join(article(seed)) for seed in range(20)]
    small = Jaccard(texts.__getitem__, keep_shingles=500)
    large = Jaccard(texts.__getitem__)
    pairs = [(one, other) for one in range(20) for other in range(one)]
    assert [small.similarity(*pair) for pair in pairs] == [large.similarity(*pair) for pair in pairs]


def test_signatures_estimate_jaccard() -> None:
    base = article(1, 600)
    wanted = [0.95, 0.8, 0.6, 0.4]
    texts = [" ".join(base)] + [changed(base, similarity, seed) for seed, similarity in enumerate(wanted)]
    found = signatures(texts)
    for row, text in enumerate(texts):
        truth = exact_jaccard(texts[0], text)
        estimate = (found[0] == found[row]).mean()
        assert abs(estimate - truth) < 4 * np.sqrt(truth * (1 - truth) / HASHES) + 1e-9


def test_signatures_do_not_see_case_or_punctuation_but_see_chinese() -> None:
    han = "机器学习的目标是让程序从数据中学到规律，而不是由人把规则一条一条写出来。"
    found = signatures(
        ["One two, three four FIVE six.", "one two three  four five six", han, han.replace("，", " "), han[::-1]]
    )
    assert (found[0] == found[1]).all()
    assert (found[2] == found[3]).all()
    assert (found[2] == found[4]).mean() < 0.2


@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.8, 0.85, 0.9, 1.0])
def test_bands(jaccard: float) -> None:
    bands, rows = bands_for(jaccard)
    assert bands * rows <= HASHES
    assert 1 - (1 - jaccard**rows) ** bands >= 0.98
    if rows < HASHES:
        assert 1 - (1 - jaccard ** (rows + 1)) ** (HASHES // (rows + 1)) < 0.98


def test_buckets_are_what_agrees_in_a_band() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 3, (200, 6)).astype(np.uint32)
    found = {tuple(bucket.tolist()) for bucket in buckets(table, 2, 3)}
    expected = set()
    for band in (table[:, :3], table[:, 3:]):
        by_key: dict[bytes, list[int]] = {}
        for row, part in enumerate(band):
            by_key.setdefault(part.tobytes(), []).append(row)
        expected |= {tuple(rows) for rows in by_key.values() if len(rows) > 1}
    assert found == expected


def test_planted_near_duplicates() -> None:
    """At Jaccard 0.85 and more all but 2 % are found, below the threshold none, and nothing unrelated ever."""
    similarities = [0.98, 0.92, 0.88, 0.85, 0.7, 0.5]
    originals = [article(seed) for seed in range(240)]
    texts = [" ".join(words) for words in originals]
    copies: dict[int, float] = {}
    for number, words in enumerate(originals):
        copies[len(texts)] = similarities[number % len(similarities)]
        texts.append(changed(words, copies[len(texts)], number))
    found = group(texts)
    joined = {row: found.representative[row] == found.representative[row - 240] for row in copies}
    near = [joined[row] for row, similarity in copies.items() if similarity >= 0.85]
    assert np.mean(near) >= 0.98
    assert not any(joined[row] for row, similarity in copies.items() if similarity < 0.8)
    for row, kept in enumerate(found.representative):
        if kept != row:
            assert abs(kept - row) == 240
            assert found.similarity[row] == pytest.approx(exact_jaccard(texts[row], texts[kept]), abs=1e-6)
            assert not found.exact[row]


def test_planted_chinese_near_duplicates() -> None:
    rng = random.Random(3)
    letters = [chr(point) for point in range(0x4E00, 0x5800)]
    originals = ["".join(rng.choices(letters, k=400)) for _ in range(60)]
    copies = [text[:200] + "".join(rng.choices(letters, k=5)) + text[205:] for text in originals]
    found = group(originals + copies)
    assert (found.representative[:60] == found.representative[60:]).mean() >= 0.98
    assert len(set(found.representative.tolist())) == 60


def test_exact_duplicates_know_no_case_and_no_space() -> None:
    found = group(["Hello  World. " * 9, "hello world. " * 9, "ｈello world. " * 9, "other words here " * 9])
    assert found.representative.tolist() == [0, 0, 0, 3]
    assert found.exact.tolist() == [False, True, True, False]


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.permutations(list(range(9))))
def test_groups_do_not_depend_on_the_order(order: list[int]) -> None:
    texts, table = _nine()
    shuffled = [texts[place] for place in order]
    ids = [f"id{place}" for place in order]
    chars = np.array(list(map(len, shuffled)))
    found = find_duplicates(
        by_preference(chars, [""] * 9, ids),
        list(map(fingerprint, shuffled)),
        table[order],
        Jaccard(shuffled.__getitem__),
        threshold=0.8,
    )
    kept = {ids[row]: ids[representative] for row, representative in enumerate(found.representative)}
    base = group(texts)
    assert kept == {f"id{row}": f"id{representative}" for row, representative in enumerate(base.representative)}


_made: list[tuple[list[str], Signatures]] = []


def _nine() -> tuple[list[str], Signatures]:
    if not _made:
        words = [article(seed) for seed in range(3)]
        texts = [" ".join(one) for one in words]
        texts += [changed(one, 0.93, seed) for seed, one in enumerate(words)]
        texts += [text.upper() for text in texts[:3]]
        _made.append((texts, signatures(texts)))
    return _made[0]


def test_a_chain_is_one_group() -> None:
    words = article(5, 400)
    texts = [" ".join(words)]
    for step in range(1, 5):
        words = words[:]
        words[20 * step : 20 * step + 6] = [f"link{step}{number}" for number in range(6)]
        texts.append(" ".join(words))
    assert exact_jaccard(texts[0], texts[4]) < 0.85 < exact_jaccard(texts[0], texts[1])
    assert len(set(group(texts, 0.9).representative.tolist())) == 1


def test_a_large_bucket_is_joined_too() -> None:
    words = article(7, 300)
    texts = [changed(words, 0.97, seed) for seed in range(90)]
    assert len(set(group(texts, 0.8).representative.tolist())) == 1


def test_preference() -> None:
    chars = np.array([1000, 1010, 3000, 1010])
    order = by_preference(
        chars,
        ["pkg/_vendor/other/x.py", "other/x.py", "long/path/of/the/longest.py", "other/y.py"],
        ["a", "d", "b", "c"],
    )
    assert order.tolist() == [2, 3, 1, 0]


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=30))
def test_union_find_against_repeated_merging(pairs: list[tuple[int, int]]) -> None:
    sets = UnionFind(15)
    merged = [{item} for item in range(15)]
    for one, other in pairs:
        sets.join(one, other)
        joined = merged[one] | merged[other]
        for item in joined:
            merged[item] = joined
    assert [sets.find(item) for item in range(15)] == [min(merged[item]) for item in range(15)]
