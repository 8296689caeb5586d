"""Documents that say the same in other words go, and each is close to one that stays."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_support import artifact, corpus, document, map_in_turn, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.attributes import with_columns
from liuyi.data.corpus import ATTRIBUTES
from liuyi.data.dedup import encode, semantic
from liuyi.data.dedup.clusters import cluster, unit
from liuyi.data.dedup.encode import open_encoder
from liuyi.data.dedup.groups import duplicate_schema
from liuyi.data.dedup.semantic import Alike, alike_to_kept, semantic_duplicates
from liuyi.model.tokenizer import train_bpe
from small_models import save_llama

PAIRS = [
    (
        "The cat sat on the mat and looked at the birds outside the window all morning.",
        "All morning, the cat was sitting on the mat, watching the birds outside through the window.",
    ),
    (
        "Quarterly revenue rose by eleven percent on strong demand for cloud services from large banks.",
        "Strong demand for cloud services among large banks lifted quarterly revenue eleven percent.",
    ),
    (
        "The ferry to the island leaves at noon and comes back in the evening, so bring a coat for the deck.",
        "Bring a coat for the deck: the island ferry departs at noon and returns in the evening.",
    ),
]
OTHERS = [
    "Boil the pasta in salted water, then toss it with garlic, oil and a little of the water it was cooked in.",
    "The treaty was signed in the spring and divided the river between the two kingdoms for a century.",
    "Install the driver before you connect the printer, or the computer will not know what it is.",
]


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "map_groups", map_in_turn)


def test_clusters_are_the_blobs_that_were_made() -> None:
    rng = np.random.default_rng(3)
    centers = np.eye(6, 40, dtype=np.float32)
    labels = rng.integers(0, 6, 900)
    vectors = unit(centers[labels] + rng.normal(0, 0.04, (900, 40)).astype(np.float32))
    found, centroids = cluster(vectors, 6)
    assert len({(one, other) for one, other in zip(labels.tolist(), found.tolist(), strict=True)}) == 6
    assert (found == (vectors @ centroids.T).argmax(axis=1)).all()
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(1)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 5), (300, 7)])
def test_every_vector_is_in_a_cluster_even_where_all_are_equal(size: int, count: int) -> None:
    vectors = unit(np.ones((size, 8), np.float32))
    found, _ = cluster(vectors, count)
    assert len(found) == size
    assert (found >= 0).all()
    assert (found < count).all()


def greedy(vectors: np.ndarray, cosine: float) -> list[int]:
    kept: list[int] = []
    chosen = []
    for number, vector in enumerate(vectors):
        similar = [(float(vectors[one] @ vector), one) for one in kept]
        best = max(similar, key=lambda pair: pair[0], default=(-1.0, -1))
        if best[0] >= cosine:
            chosen.append(best[1])
        else:
            kept.append(number)
            chosen.append(number)
    return chosen


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.3, 0.7, 0.95]))
def test_what_goes_is_alike_to_what_stays(seed: int, size: int, cosine: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(size, 3)).astype(np.float32))
    patch = pytest.MonkeyPatch()
    patch.setattr("liuyi.data.dedup.semantic._COMPARED_AT_ONCE", 7)
    kept, alike = alike_to_kept(vectors, cosine)
    patch.undo()
    assert kept.tolist() == greedy(vectors, cosine)
    for number, one in enumerate(kept):
        assert alike[number] == pytest.approx(1 if number == one else float(vectors[number] @ vectors[one]), abs=1e-5)


def test_a_model_gives_the_mean_of_its_final_hidden_states(tmp_path: Path) -> None:
    tokenizer = train_bpe([prose(number) for number in range(20)], 400)
    decoder = save_llama(tmp_path, tokenizer, context=128)
    texts = [prose(3, 40), "", "a", prose(4, 400)]
    found = open_encoder(tmp_path, 100).encode(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer.encode(text)[:100]
        if not ids:
            assert not vector.any()
            continue
        with torch.no_grad():
            expected = decoder(torch.tensor([ids]))[0].mean(dim=0).numpy()
        # The runner may keep keys and values in bf16.
        assert np.linalg.norm(vector - expected) < 0.01 * np.linalg.norm(expected)


def test_other_words_for_the_same_are_found(tmp_path: Path) -> None:
    texts = [text for pair in PAIRS for text in pair] + OTHERS + [""]
    source = corpus(tmp_path / "source", [document(text, path=f"{number}") for number, text in enumerate(texts)])
    bench = run_step("data.dedup_semantic", tmp_path / "run", {"corpus": source}, cosine=0.7)
    rows = pq.read_table(bench.made["corpus"].path / ATTRIBUTES).to_pylist()
    ids = [row["id"] for row in rows]
    assert [row["duplicate_kind"] for row in rows[6:]] == [""] * 4
    for one, other in ((0, 1), (2, 3), (4, 5)):
        (gone, kept) = (one, other) if rows[one]["duplicate_kind"] else (other, one)
        assert rows[gone]["duplicate_kind"] == "semantic"
        assert rows[gone]["duplicate_of"] == ids[kept]
        assert 0.7 <= rows[gone]["duplicate_similarity"] < 1
        assert rows[kept]["duplicate_of"] == ""
    assert bench.staged["corpus"].metrics == {"documents": 10, "semantic": 3}


def test_the_nearest_or_the_farthest_of_a_cluster_stays(tmp_path: Path, no_engine: None) -> None:
    texts = [PAIRS[0][0], PAIRS[0][1], *OTHERS]
    source = corpus(tmp_path / "source", [document(text, path=f"{number}") for number, text in enumerate(texts)])
    gone = []
    for keep in ("nearest", "farthest"):
        (tmp_path / keep).mkdir()
        found = semantic_duplicates(source.path, tmp_path / keep, Alike(0.7, keep, 1000, 512), workers=1)
        gone.append(np.flatnonzero(found.kind == "semantic").tolist())
    assert sorted(gone) == [[0], [1]]


def test_duplicates_found_before_stay_and_are_no_originals(tmp_path: Path, no_engine: None) -> None:
    one, other = PAIRS[0]
    source = corpus(
        tmp_path / "source", [document(text, path=f"{n}") for n, text in enumerate([one, one + "!", other])]
    )
    (tmp_path / "known").mkdir()
    ids = pq.read_table(source.path / "documents.parquet")["id"].to_pylist()
    before = pa.table([["", ids[0], ""], ["", "near", ""], [1.0, 0.9, 1.0]], schema=duplicate_schema())
    with_columns(source.path, tmp_path / "known", duplicate_schema(), [before])
    known = artifact(tmp_path / "known", "corpus")
    made = run_step("data.dedup_semantic", tmp_path / "run", {"corpus": known}, cosine=0.7).made["corpus"]
    rows = pq.read_table(made.path / ATTRIBUTES).to_pylist()
    assert (rows[1]["duplicate_of"], rows[1]["duplicate_kind"]) == (ids[0], "near")
    assert sorted([rows[0]["duplicate_kind"], rows[2]["duplicate_kind"]]) == ["", "semantic"]


@pytest.mark.slow
def test_selection_drops_what_says_the_same(tmp_path: Path) -> None:
    texts = [" ".join(said) for said in [*zip(*PAIRS, strict=True), OTHERS]]
    source = corpus(tmp_path / "source", [document(text, path=f"{number}") for number, text in enumerate(texts)])
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": source}).made["corpus"]
    made = run_step("data.dedup_semantic", tmp_path / "semantic", {"corpus": cleaned}, cosine=0.8).made["corpus"]
    for least, expected in ((0.8, ["semantic duplicate"]), (0.999, [])):
        train = run_step(
            "data.select",
            tmp_path / f"{least}",
            {"corpus": made},
            heldout_fraction=0.0,
            min_semantic_similarity=least,
        ).made["train"]
        assert pq.read_table(train.path / "dropped.parquet")["reason"].to_pylist() == expected


def test_without_a_model_and_without_the_table_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "find_spec", lambda name: None if name == "wordllama" else find_spec(name))
    source = corpus(tmp_path / "source", [document("some text")])
    with pytest.raises(DataError, match="not installed"):
        semantic_duplicates(source.path, tmp_path, Alike(0.9, "farthest", 1000, 100))
