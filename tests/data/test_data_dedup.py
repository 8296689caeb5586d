"""Duplicates: Jaccard by definition, planted copies at several similarities, groups that do not depend on order."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from data_support import corpus, document
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from liuyi.data.attributes import read_groups
from liuyi.data.corpus import Document
from liuyi.data.dedup import verify
from liuyi.data.dedup.candidates import Components, candidate_groups
from liuyi.data.dedup.exact import as_numbers, fingerprint
from liuyi.data.dedup.groups import Duplicates, by_preference, find_duplicates
from liuyi.data.dedup.minhash import HASHES, band_keys, bands_for, signatures
from liuyi.data.dedup.shingles import distinct_shingles, jaccard

EXAMPLES = 20
VOCABULARY = [f"word{number}" for number in range(4000)]


def by_definition(text: str) -> set[tuple[str, ...]]:
    """Sets of word 5-grams: lower case, no punctuation, Han characters apart."""
    words = re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text.lower())
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))} if words else set()


def exact_jaccard(one: str, other: str) -> float:
    left, right = by_definition(one), by_definition(other)
    return len(left & right) / max(1, len(left | right))


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


def found_in(folder: Path, documents: list[Document], threshold: float = 0.8, workers: int = 1) -> Duplicates:
    made = corpus(folder / "corpus", documents)
    texts = [one.text for one in documents]
    found = find_duplicates(
        made.path,
        as_numbers(list(map(fingerprint, texts))),
        signatures(texts),
        np.array(list(map(len, texts)), np.int64),
        threshold=threshold,
        workdir=folder,
        workers=workers,
    )
    assert [path.name for path in folder.iterdir()] == ["corpus"]
    return found


def group(folder: Path, texts: list[str], threshold: float = 0.8, workers: int = 1) -> Duplicates:
    documents = [document(text, path=f"{number:06d}") for number, text in enumerate(texts)]
    return found_in(folder, documents, threshold, workers)


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.sampled_from(["a", "b", "C,", "汉字", "d.e", "."]), max_size=30), st.integers(0, 30))
def test_jaccard_is_the_definition(words: list[str], cut: int) -> None:
    one, other = " ".join(words), " ".join(words[cut:] + ["z"] * (cut % 7))
    left, right = distinct_shingles([one, other])
    assert (len(left), len(right)) == (len(by_definition(one)), len(by_definition(other)))
    assert jaccard(left, right) == pytest.approx(exact_jaccard(one, other))


def test_signatures_estimate_jaccard() -> None:
    """Without bias, and with the spread of a binomial: agreements in 112 places are as good as independent."""
    errors = []
    for seed in range(240):
        words = article(seed, 150)
        texts = [" ".join(words), changed(words, (0.95, 0.8, 0.6, 0.4)[seed % 4], seed)]
        one, other = signatures(texts)
        truth = exact_jaccard(*texts)
        errors.append(((one == other).mean() - truth) / np.sqrt(truth * (1 - truth) / HASHES))
    assert abs(np.mean(errors)) < 4 / np.sqrt(len(errors))
    assert 0.85 < np.std(errors) < 1.15
    assert max(np.abs(errors)) < 4.5


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["", "one", "a b c d e f", "灯" * 7, " ".join(article(1, 30_000)), "x y z"]
    together = signatures(texts)
    assert all((signatures([text])[0] == row).all() for text, row in zip(texts, together, strict=True))


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


def test_keys_of_bands_are_equal_where_bands_are() -> None:
    table = np.random.default_rng(0).integers(0, 3, (200, 6)).astype(np.uint32)
    for band, keys in zip((table[:, :3], table[:, 3:]), band_keys(table, 2, 3), strict=True):
        assert len(np.unique(keys)) == len(np.unique(band, axis=0))
        assert len(np.unique(np.column_stack([keys, band]), axis=0)) == len(np.unique(band, axis=0))


def test_candidates_are_what_agrees(tmp_path: Path) -> None:
    """Signatures made up so that who agrees with whom is known: four families, each member near its founder."""
    rng = np.random.default_rng(1)
    founders = rng.integers(0, 1 << 32, (4, HASHES), np.uint32)
    table = np.repeat(founders, 30, axis=0)
    for row in table:
        row[rng.choice(HASHES, 10, replace=False)] = rng.integers(0, 1 << 32, 10, np.uint32)
    table = np.concatenate([table, rng.integers(0, 1 << 32, (50, HASHES), np.uint32)])
    order = rng.permutation(len(table))
    found = candidate_groups(table, order, 0.8, tmp_path)
    assert sorted(sorted(group.tolist()) for group in found) == [list(range(at, at + 30)) for at in (0, 30, 60, 90)]
    rank = np.argsort(order)
    assert all((np.diff(rank[group]) > 0).all() for group in found)


def test_planted_near_duplicates(tmp_path: Path) -> None:
    """At Jaccard 0.85 and more all but 2 % are found, below the threshold none, and nothing unrelated ever."""
    similarities = [0.98, 0.92, 0.88, 0.85, 0.7, 0.5]
    originals = [article(seed) for seed in range(240)]
    texts = [" ".join(words) for words in originals]
    copies: dict[int, float] = {}
    for number, words in enumerate(originals):
        copies[len(texts)] = similarities[number % len(similarities)]
        texts.append(changed(words, copies[len(texts)], number))
    found = group(tmp_path, texts)
    joined = {row: found.representative[row] == found.representative[row - 240] for row in copies}
    near = [joined[row] for row, similarity in copies.items() if similarity >= 0.85]
    assert np.mean(near) >= 0.98
    assert not any(joined[row] for row, similarity in copies.items() if similarity < 0.8)
    for row, kept in enumerate(found.representative):
        if kept != row:
            assert abs(kept - row) == 240
            assert found.similarity[row] == pytest.approx(exact_jaccard(texts[row], texts[kept]), abs=1e-6)
            assert found.kind[row] == "near"


def test_planted_chinese_near_duplicates(tmp_path: Path) -> None:
    rng = random.Random(3)
    letters = [chr(point) for point in range(0x4E00, 0x5800)]
    originals = ["".join(rng.choices(letters, k=400)) for _ in range(60)]
    copies = [text[:200] + "".join(rng.choices(letters, k=5)) + text[205:] for text in originals]
    found = group(tmp_path, originals + copies)
    assert (found.representative[:60] == found.representative[60:]).mean() >= 0.98
    assert len(set(found.representative.tolist())) == 60


def test_exact_duplicates_know_no_case_and_no_space(tmp_path: Path) -> None:
    texts = ["Hello  World. " * 9, "hello world. " * 9, "ｈello world. " * 9, "other words here " * 9]
    found = group(tmp_path, texts)
    assert len(set(found.representative[:3].tolist())) == 1
    assert found.representative[3] == 3
    assert sorted(found.kind.tolist()) == ["", "", "exact", "exact"]


def test_texts_without_words_are_no_duplicates_unless_equal(tmp_path: Path) -> None:
    found = group(tmp_path, ["---", "***", "---", "", "—"])
    assert found.kind.tolist().count("exact") == 1
    assert found.representative[0] == found.representative[2]


def test_an_empty_corpus_has_no_duplicates(tmp_path: Path) -> None:
    found = group(tmp_path, [])
    assert len(found.representative) == 0
    assert sum(table.num_rows for table in found.attributes(tmp_path / "corpus")) == 0


def test_a_copy_of_a_near_duplicate_is_near_to_what_stays(tmp_path: Path) -> None:
    words = article(2)
    original, near = " ".join([*words, "longer"] * 2), " ".join([*words, "longer"] * 2 + ["x"])[9:]
    found = group(tmp_path, [original + " y z", near, near.upper()])
    assert found.representative.tolist() == [0, 0, 0]
    assert found.kind.tolist() == ["", "near", "near"]
    assert found.similarity[1] == found.similarity[2] == pytest.approx(exact_jaccard(original + " y z", near))


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.permutations(list(range(9))))
def test_groups_do_not_depend_on_the_order(tmp_path_factory, order: list[int]) -> None:
    texts = _nine()
    documents = [document(text, path=f"{number}") for number, text in enumerate(texts)]
    kept = []
    for places in (range(9), order):
        given = [documents[place] for place in places]
        found = found_in(tmp_path_factory.mktemp("order"), given)
        kept.append({given[row].id: given[one].id for row, one in enumerate(found.representative)})
    assert kept[0] == kept[1]
    assert len(set(kept[0].values())) == 3


def _nine() -> list[str]:
    words = [article(seed) for seed in range(3)]
    texts = [" ".join(one) for one in words]
    texts += [changed(one, 0.93, seed) for seed, one in enumerate(words)]
    return texts + [text.upper() for text in texts[:3]]


def test_groups_do_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [changed(article(seed), similarity, seed) for seed in range(40) for similarity in (0.95, 0.9, 0.7)]
    one = group(tmp_path / "one", texts)
    monkeypatch.setattr(verify, "_WORTH_WORKERS", 0)
    monkeypatch.setattr(verify, "_MEMBERS_AT_ONCE", 20)
    several = group(tmp_path / "several", texts, workers=2)
    assert (one.representative == several.representative).all()
    assert (one.similarity == several.similarity).all()
    assert (one.kind == several.kind).all()


def test_a_chain_of_small_changes_joins_no_strangers(tmp_path: Path) -> None:
    """Neighbours in the chain are similar, its ends are not: what goes is similar to what stays."""
    words = article(5, 400)
    texts = [" ".join(words)]
    for step in range(1, 9):
        words = words[:]
        words[20 * step : 20 * step + 6] = [f"link{step}{number}" for number in range(6)]
        texts.append(" ".join(words))
    assert exact_jaccard(texts[0], texts[8]) < 0.85 < 0.9 < exact_jaccard(texts[0], texts[1])
    found = group(tmp_path, texts, 0.9)
    staying = [row for row, kept in enumerate(found.representative) if row == kept]
    assert 1 < len(staying) < len(texts)
    for row, kept in enumerate(found.representative):
        assert exact_jaccard(texts[row], texts[kept]) >= 0.9
        assert kept in staying
    assert all(exact_jaccard(texts[one], texts[other]) < 0.9 for one in staying for other in staying if one != other)


def test_a_large_bucket_is_joined_too(tmp_path: Path) -> None:
    words = article(7, 300)
    texts = [changed(words, 0.97, seed) for seed in range(90)]
    assert len(set(group(tmp_path, texts).representative.tolist())) == 1


def test_pages_of_one_template_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies among them are found all the same."""
    template = article(1, 200)
    pages = [changed(template, 0.84, seed) for seed in range(120)]
    copies = [changed(pages[number].split(), 0.9, 500 + number) for number in range(20)]
    texts = [*pages, *copies]
    compared: list[float] = []

    def counting(*sets: NDArray[np.uint64]) -> float:
        compared.append(jaccard(*sets))
        return compared[-1]

    monkeypatch.setattr(verify, "jaccard", counting)
    monkeypatch.setattr(verify, "_MOST_COMPARED", 4)
    kept, similarity = verify.choose(signatures(texts), distinct_shingles(texts), 0.8)
    assert kept[:120].tolist() == list(range(120))
    assert kept[120:].tolist() == list(range(20))
    assert (similarity[120:] >= 0.85).all()
    assert len(compared) <= 4 * len(texts)


def test_preference() -> None:
    chars = np.array([1000, 1010, 3000, 1010])
    urls = ["pkg/_vendor/other/x.py", "other/x.py", "long/path/of/the/longest.py", "other/y.py"]
    order = by_preference(chars, np.array(list(map(len, urls))), ["a", "d", "b", "c"])
    assert order.tolist() == [2, 3, 1, 0]


def test_attributes_name_the_document_that_stays(tmp_path: Path) -> None:
    texts = [" ".join(article(seed % 700)) for seed in range(1500)]
    found = group(tmp_path, texts)
    ids = [id for table in read_groups(tmp_path / "corpus", ["id"]) for id in table["id"].to_pylist()]
    rows = [row for table in found.attributes(tmp_path / "corpus") for row in table.to_pylist()]
    assert len(rows) == 1500
    assert sum(row["duplicate_kind"] == "exact" for row in rows) == 800
    for row, kept, attributes in zip(range(1500), found.representative.tolist(), rows, strict=True):
        assert attributes["duplicate_of"] == ("" if kept == row else ids[kept])
        assert (attributes["duplicate_kind"] == "") == (kept == row)


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=10), max_size=4))
def test_components_against_repeated_merging(rounds: list[list[tuple[int, int]]]) -> None:
    found = Components(15)
    merged = [{item} for item in range(15)]
    for pairs in rounds:
        one, other = np.array(pairs, np.int64).reshape(-1, 2).T
        found.join(one, other)
        for left, right in pairs:
            joined = merged[left] | merged[right]
            for item in joined:
                merged[item] = joined
    assert found.labels.tolist() == [min(merged[item]) for item in range(15)]
    several = sorted({tuple(sorted(group)) for group in merged if len(group) > 1})
    assert [tuple(group.tolist()) for group in found.of_several()] == several
