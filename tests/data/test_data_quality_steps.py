"""The steps of learned quality on planted good and bad documents: what is learnt, doubted, scored and selected."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import Bench, corpus, document, prose, run_step

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Bars, Effect, Table
from liuyi.core.errors import DataError
from liuyi.core.words import split
from liuyi.data.corpus import ATTRIBUTES, DROPPED
from liuyi.data.quality.classifier import Classifier
from liuyi.data.quality.examples import gather
from liuyi.data.quality.score import ranks, score

_SPAM = split(
    "buy our cheap watches now and win the best offer of the week with free delivery to your door today because we "
    "care about prices that nobody else can give to a customer who clicks here"
)


def spam(number: int) -> str:
    rng = random.Random(number)
    return "\n".join(" ".join(rng.choices(_SPAM, k=11)).capitalize() + f" order{number}." for _ in range(7)) + "\n"


def pages(folder: Path, make: object, numbers: range, name: str) -> Artifact:
    made = [document(make(number), cluster=f"{name}{number % 12}", path=f"{number}") for number in numbers]  # type: ignore[operator]
    return corpus(folder, made)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("trained")
    good = pages(folder / "good", prose, range(60), "site")
    bad = pages(folder / "bad", spam, range(60), "shop")
    return run_step("data.train_classifier", folder / "run", {"good": good, "bad": bad})


def effect_of(bench: Bench) -> Effect:
    shown = Effect.load(bench.made["classifier"].path)
    assert shown is not None
    return shown


def test_planted_quality_is_learnt_and_shown(trained: Bench) -> None:
    shown = effect_of(trained)
    figures = next(block for block in shown.blocks if isinstance(block, Table) and block.title == "On sources not seen")
    assert {row[0]: row[1] for row in figures.rows}["AUC"] > 0.99
    assert trained.staged["classifier"].metrics["auc"] > 0.99
    assert trained.staged["classifier"].licences == {"MIT"}
    words = {block.title: {name for name, _ in block.bars} for block in shown.blocks if isinstance(block, Bars)}
    known = {word for number in range(60) for word in prose(number).lower().replace(".", "").split()}
    assert {word for name in words["Words that speak for good"] for word in name.split()} <= known
    assert {word for name in words["Words that speak for bad"] for word in name.split()} <= {*_SPAM, *known}
    assert words["Words that speak for bad"] & {"buy", "cheap", "watches", "offer", "prices", "customer", "delivery"}
    assert "60 good examples are few" in shown.summary


def test_the_same_examples_give_the_same_classifier_whatever_their_order(trained: Bench, tmp_path: Path) -> None:
    good = pages(tmp_path / "good", prose, range(59, -1, -1), "site")
    halves = [pages(tmp_path / str(start), spam, range(start, 60, 2), "shop") for start in (1, 0)]
    again = run_step("data.train_classifier", tmp_path / "run", {"good": good, "bad": halves})
    assert again.made["classifier"].digest == trained.made["classifier"].digest


def test_a_sample_of_the_corpus_stands_for_bad_examples(tmp_path: Path) -> None:
    good = pages(tmp_path / "good", prose, range(40), "site")
    mixed = corpus(
        tmp_path / "mixed",
        [document((prose if n % 10 == 0 else spam)(n), cluster=f"c{n}", path=str(n)) for n in range(200)],
    )
    made = run_step("data.train_classifier", tmp_path / "run", {"good": good, "background": mixed})
    assert "40 randomly sampled documents" in effect_of(made).summary
    scores = Classifier.load(made.made["classifier"].path).score([prose(900), spam(900)])
    assert scores[0] > 0.5 > scores[1]
    with pytest.raises(DataError, match="and a background to sample them from"):
        run_step("data.train_classifier", tmp_path / "both", {"good": good, "bad": mixed, "background": mixed})


def test_rows_with_labels_are_examples(tmp_path: Path) -> None:
    rows = [{"text": prose(n), "label": "good"} for n in range(30)] + [{"text": spam(n), "label": 0} for n in range(30)]
    rows += [rows[0], {"text": prose(1).upper(), "label": "bad"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run_step("data.train_classifier", tmp_path / "run", labelled=path)
    metrics = made.staged["classifier"].metrics
    assert (metrics["good"], metrics["bad"], metrics["left_out"], metrics["contradictions"]) == (29, 30, 1, 1)
    assert "1 texts were given as good and as bad" in effect_of(made).summary
    path.write_text(json.dumps({"text": "x", "label": "so-so"}) + "\n")
    with pytest.raises(DataError, match="'so-so' is neither good nor bad") as told:
        run_step("data.train_classifier", tmp_path / "wrong", labelled=path)
    assert told.value.where.endswith("rows.jsonl:1")
    path.write_text('{"text": "x", "label": "good"}\n{"text": \n')
    with pytest.raises(DataError, match="not JSON"):
        run_step("data.train_classifier", tmp_path / "broken", labelled=path)
    path.with_suffix(".csv").write_text("")
    with pytest.raises(DataError, match=r"rows\.csv:1: empty"):
        run_step("data.train_classifier", tmp_path / "empty", labelled=path.with_suffix(".csv"))


def test_labelled_rows_that_utf8_cannot_hold(tmp_path: Path) -> None:
    rows = [{"text": prose(n) + "\ud800", "label": "good", "cluster": f"\udfff{n}"} for n in range(25)]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, *({"text": spam(n), "label": 0} for n in range(25))])
    )
    made = run_step("data.train_classifier", tmp_path / "run", labelled=path)
    assert made.staged["classifier"].metrics["good"] == 25
    path.write_text(json.dumps({"text": "x", "label": "\ud800"}) + "\n")
    with pytest.raises(DataError) as told:
        run_step("data.train_classifier", tmp_path / "wrong", labelled=path)
    assert r"the label '\ud800' is neither" in str(told.value)
    assert str(told.value).encode()


def test_clusters_and_labels_are_numbers_as_well(tmp_path: Path) -> None:
    """Cluster 0 is a cluster: were its rows taken for sources of their own, some would be on both sides of a split."""
    rows = [
        {"text": (prose if good else spam)(n), "label": float(good), "cluster": n % 2}
        for n in range(25)
        for good in (True, False)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = gather((), (), path, (), most=100)
    assert (len(made.good), len(made.bad)) == (25, 25)
    assert {example.group for example in (*made.good, *made.bad)} == {"0", "1"}


def test_too_few_examples_are_told(tmp_path: Path) -> None:
    good = pages(tmp_path / "good", prose, range(25), "site")
    with pytest.raises(DataError, match="0 bad examples are too few") as told:
        run_step("data.train_classifier", tmp_path / "run", {"good": good})
    assert "background" in told.value.hint


def test_trivial_differences_raise_doubts(tmp_path: Path) -> None:
    chinese = "读者打开一个文件，按照顺序返回其中的每一行，并且注意编码与错误。"
    rng = random.Random(3)
    good = [document("".join(rng.sample(chinese, 30)) * 9 + str(n), cluster="one", path=str(n)) for n in range(30)]
    bad = [document(prose(n, words=12), cluster=f"b{n}", path=str(n)) for n in range(30)]
    made = run_step(
        "data.train_classifier",
        tmp_path / "run",
        {"good": corpus(tmp_path / "good", good), "bad": corpus(tmp_path / "bad", bad)},
    )
    said = effect_of(made).summary
    assert "all good examples come from 1 source" in said
    assert "On examples that it had not seen" in said, "one source cannot be on one side of a split only"
    assert "length alone tells 100% of pairs" in said
    assert "differ in language" in said


def test_an_interval_counts_examples_where_sources_cannot_be_kept_apart(tmp_path: Path) -> None:
    """Both kinds are of one source each: drawing sources again would give one and the same table every time."""
    rng = random.Random(5)
    rows = [
        {"text": (spam if rng.random() < share else prose)(n), "label": label, "cluster": label}
        for label, share in (("good", 0.2), ("bad", 0.8))
        for n in range(30 * (label == "bad"), 30 + 30 * (label == "bad"))
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = run_step("data.train_classifier", tmp_path / "run", labelled=tmp_path / "labels.jsonl")
    (table,) = (block for block in effect_of(made).blocks if isinstance(block, Table) and "not seen" in block.title)
    assert table.title == "On examples not seen"
    name, value, low, high = table.rows[0]
    assert name == "AUC"
    assert low < value < high


def test_scores_are_attributes_that_selection_judges(trained: Bench, tmp_path: Path) -> None:
    mixed = [
        document((prose if n % 2 else spam)(n + 500), cluster=f"c{n}", path=f"{'good' if n % 2 else 'bad'}{n}")
        for n in range(40)
    ]
    source = corpus(tmp_path / "mixed", mixed)
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": source}).made["corpus"]
    classifier = trained.made["classifier"]
    scored = run_step("data.score", tmp_path / "score", {"corpus": cleaned, "classifier": classifier}).made["corpus"]
    table = pq.read_table(scored.path / ATTRIBUTES)
    assert table.column_names[0] == "id"
    assert "words" in table.column_names
    expected = Classifier.load(classifier.path).score([one.text for one in mixed])
    assert table["quality_score"].to_pylist() == expected.tolist()

    chosen = run_step("data.select", tmp_path / "select", {"corpus": scored}, min_quality_score=0.5, heldout_fraction=0)
    dropped = pq.read_table(chosen.made["train"].path / DROPPED)
    urls = dict(zip(dropped["url"].to_pylist(), dropped["reason"].to_pylist(), strict=True))
    assert {url for url, reason in urls.items() if reason == "low quality"} >= {f"bad{n}" for n in range(2, 40, 2)}
    assert not any(url.startswith("good") and reason == "low quality" for url, reason in urls.items())
    shown = Effect.load(chosen.made["train"].path)
    assert shown is not None
    funnel = next(block for block in shown.blocks if isinstance(block, Bars))
    assert dict(funnel.bars)["low quality"] == list(urls.values()).count("low quality")

    best = run_step("data.select", tmp_path / "best", {"corpus": scored}, max_quality_rank=0.25, heldout_fraction=0)
    reasons = pq.read_table(best.made["train"].path / DROPPED)["reason"].to_pylist()
    assert reasons.count("not among the best") > 20
    with pytest.raises(DataError, match="no attribute 'quality_score'"):
        run_step("data.select", tmp_path / "unscored", {"corpus": cleaned}, min_quality_score=0.5)


def test_the_rank_is_the_share_of_bytes_above() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.9], np.float32)
    sizes = np.array([10, 20, 30, 40])
    assert ranks(scores, sizes).tolist() == pytest.approx([0.9, 0.0, 0.6, 0.0])


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_workers(trained: Bench, tmp_path: Path) -> None:
    source = pages(tmp_path / "many", prose, range(2500), "site")
    classifier = Classifier.load(trained.made["classifier"].path)
    for workers in (1, 2):
        (tmp_path / f"out{workers}").mkdir()
        score(source.path, tmp_path / f"out{workers}", classifier, tmp_path / f"work{workers}", workers=workers)
    one, two = ((tmp_path / f"out{workers}" / ATTRIBUTES).read_bytes() for workers in (1, 2))
    assert one == two
