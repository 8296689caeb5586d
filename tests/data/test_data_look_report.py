"""The data page: its figures against plain counting, its differences, and HTML that needs nothing else."""

from __future__ import annotations

import html.parser
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import artifact, corpus, document, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.artifact import Artifact
from liuyi.core.home import Home
from liuyi.data.look import figures
from liuyi.data.look.duplicates import difference
from liuyi.data.look.page import page
from liuyi.data.look.report import Report, build_report
from liuyi.data.look.survey import survey
from liuyi.data.look.view import View, view_of
from liuyi.data.select.rules import KEPT, RULES, Attributes, reasons

EVIL = '<script>alert("x")</script>& <img src="https://example.org/x.png">'
CHINESE = (
    "北京的秋天很美，街边的叶子慢慢变黄了。我们沿着河边一直走，走到天黑才回家吃晚饭。老师说这个问题可以用两种方法解决。"
)


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("cleaned")
    texts = [prose(number, words=20 + 7 * number) for number in range(40)]
    texts += [texts[20] + EVIL, texts[30], "short", CHINESE + EVIL]
    given_ = [
        document(text, path=f"{n}", cluster=f"c{n % 7}", license="MIT" if n % 2 else EVIL)
        for n, text in enumerate(texts)
    ]
    raw = corpus(folder / "raw", given_)
    return run_step("data.clean", folder / "run", {"corpus": raw}).made["corpus"]


@pytest.fixture
def view(home: Home, cleaned: Artifact) -> View:
    return view_of(home, cleaned)


def decided(cleaned: Artifact, view: View) -> tuple[pa.Table, pa.Table, list[str]]:
    documents, attributes = (pq.read_table(cleaned.file(name)) for name in ("documents.parquet", "attributes.parquet"))
    assert view.judge is not None
    why = reasons(Attributes(attributes, documents["license"]), view.judge.thresholds)
    return documents, attributes, why.tolist()


def test_a_survey_counts_what_the_rules_say(cleaned: Artifact, view: View) -> None:
    documents, _, why = decided(cleaned, view)
    sizes = [len(text.encode()) for text in documents["text"].to_pylist()]
    found = survey(view)
    assert {reason: tally.documents for reason, tally in found.by_reason.items()} == dict(Counter(why))
    for reason, tally in found.by_reason.items():
        assert tally.bytes == sum(size for size, each in zip(sizes, why, strict=True) if each == reason)
    assert found.total.documents == len(why)
    for licence, (whole, kept) in found.by_group["license"].items():
        rows = [n for n, each in enumerate(documents["license"].to_pylist()) if each == licence]
        assert (whole.documents, kept.documents) == (len(rows), sum(why[row] == KEPT for row in rows))
        assert whole.bytes == sum(sizes[row] for row in rows)
    assert set(found.by_group["language"]) <= {"en", "zh", "unsure"}
    order = [rule.reason for rule in RULES]
    given_ = [reason for reason in found.by_reason if reason]
    assert given_ == sorted(given_, key=order.index)


def test_the_figures_of_a_threshold_are_those_of_deciding_again(cleaned: Artifact, view: View) -> None:
    documents, attributes, why = decided(cleaned, view)
    found = survey(view)
    assert view.judge is not None
    assert found.sample is not None
    for one in figures.thresholds(view.judge, found.sample):
        histogram = one.histogram
        counted = histogram.kept + histogram.dropped_for_it + histogram.dropped_otherwise
        assert counted.sum() == len(why)
        assert histogram.kept.sum() == why.count(KEPT)
        for number in (0, 7, figures.LIMITS - 1):
            limit = float(one.limits[number])
            moved = view.judge.thresholds.model_copy(update={one.measure.threshold: limit})
            again = reasons(Attributes(attributes, documents["license"]), moved)
            assert one.kept_at[number] == pytest.approx((again == KEPT).mean())
        for move in one.moves:
            moved = view.judge.thresholds.model_copy(update={one.measure.threshold: move.limit})
            again = reasons(Attributes(attributes, documents["license"]), moved)
            assert move.documents == pytest.approx(((again == KEPT).sum() - why.count(KEPT)) / len(why))
        assert all(why[row] == KEPT for row in one.just_kept)
        assert all(why[row] in one.measure.reasons for row in one.just_dropped)


def test_just_kept_and_just_dropped_are_the_nearest_of_each_side(cleaned: Artifact, view: View) -> None:
    _, attributes, why = decided(cleaned, view)
    found = survey(view)
    assert view.judge is not None
    assert found.sample is not None
    (words,) = (one for one in figures.thresholds(view.judge, found.sample) if one.measure.threshold == "min_words")
    counts = attributes["words"].to_pylist()
    kept = sorted(counts[row] for row in range(len(why)) if why[row] == KEPT)
    assert [counts[row] for row in words.just_kept] == kept[:2]
    assert why[words.just_dropped[0]] == "too short"


@given(st.lists(st.floats(-5, 1e5), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    histogram = figures.histogram(np.array(values))
    assert histogram.kept.sum() == len(values)
    assert (np.diff(histogram.edges) > 0).all()


@given(st.text("ab 中文。\n", max_size=60), st.text("ab 中文。\n", max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    runs = difference(before, after)
    assert "".join(text for kind, text in runs if kind != "added") == before
    assert "".join(text for kind, text in runs if kind != "removed") == after


def test_a_difference_names_the_words_that_changed() -> None:
    assert difference("the old house", "the new house") == (
        ("same", "the "),
        ("removed", "old"),
        ("added", "new"),
        ("same", " house"),
    )
    assert ("added", "黄") in difference("叶子变红了", "叶子变黄了")


def test_texts_of_few_words_are_compared_too() -> None:
    """Without a bound this takes minutes."""
    before, after = "的" * 4000, "的了" * 2000
    runs = difference(before, after)
    assert "".join(text for kind, text in runs if kind != "added") == before
    assert "".join(text for kind, text in runs if kind != "removed") == after


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order, and keeps what could load anything."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.names: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        self.loads += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset") or name.startswith("on")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report(home: Home, cleaned: Artifact, tmp_path: Path) -> Report:
    vocab = run_step("data.tokenizer", tmp_path / "vocab", {"texts": cleaned}, vocab_size=400).made["tokenizer"]
    tokens = run_step("data.tokens", tmp_path / "tokens", {"corpus": cleaned, "tokenizer": vocab}).made["tokens"]
    return build_report(home, [cleaned, vocab, tokens], "Data of <b>tests</b>")


def test_the_page_is_whole_and_loads_nothing(report: Report) -> None:
    text = page(report)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.loads == []
    assert tags.names["script"] == tags.names["img"] == tags.names["link"] == 0
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text
    assert "url(" not in text
    assert "Data of &lt;b&gt;tests&lt;/b&gt;" in text
    assert "街边的叶子" in text


def test_the_page_says_what_the_report_holds(report: Report) -> None:
    text = page(report)
    (section,) = report.corpora
    for one in section.thresholds:
        assert f"<code>{one.figures.measure.threshold}</code>" in text
    assert f"<b>{section.survey.total.documents:,}</b><span>documents</span>" in text
    assert re.search(r'<div class="label">too short</div><div class="num">\d+</div>', text)
    (tokens,) = report.tokens
    assert f"<b>{tokens.tokens:,}</b>" in text
    assert sum(count for *_, count in tokens.by_source) == tokens.tokens
    assert int(tokens.lengths.kept.sum()) == tokens.documents
    (vocab,) = report.effects
    assert vocab.summary.split(".")[0] in text
    assert "<del>" in text or "<ins>" in text


def test_a_corpus_that_was_not_measured_has_a_page(home: Home, tmp_path: Path) -> None:
    raw = corpus(tmp_path / "raw", [document(prose(1)), document(prose(2), path="b")])
    made = build_report(home, [raw], "Raw")
    assert made.corpora[0].survey.total.documents == 2
    assert "Nothing was measured" in page(made)


def test_an_empty_corpus_has_a_page(home: Home, tmp_path: Path) -> None:
    assert "Nothing was measured" in page(build_report(home, [corpus(tmp_path / "raw", [])], "Empty"))
    empty = run_step("data.clean", tmp_path / "run", {"corpus": corpus(tmp_path / "none", [])}).made["corpus"]
    assert page(build_report(home, [empty], "Empty"))


def test_a_page_holds_no_personal_data(home: Home, tmp_path: Path) -> None:
    """Neither beside thresholds nor among duplicates."""
    text = "Write to ada@lemburg.com. " + prose(1, words=45)
    raw = corpus(tmp_path / "raw", [document(text, path="a"), document(text.upper(), path="b"), document("short")])
    clean = run_step("data.clean", tmp_path / "run", {"corpus": raw}).made["corpus"]
    made = build_report(home, [clean], "Mail")
    assert made.corpora[0].groups
    assert [one.figures.measure.threshold for one in made.corpora[0].thresholds if one.just_kept]
    shown = page(made)
    assert "lemburg" not in shown.lower()
    assert shown.count("[EMAIL]") > 1


def test_a_large_corpus_is_sampled_in_even_steps(home: Home, cleaned: Artifact, tmp_path: Path) -> None:
    """Two hundred small row groups: 64 at most are held, and the counts are still of all documents."""
    folder = tmp_path / "large"
    folder.mkdir()
    for name in ("documents.parquet", "attributes.parquet"):
        table = pa.concat_tables([pq.read_table(cleaned.file(name))] * 10)
        pq.write_table(table, folder / name, row_group_size=2)
    found = survey(view_of(home, artifact(folder, "corpus")))
    assert found.sample is not None
    assert found.total.documents == 440
    assert found.sample.rows.tolist() == [row for group in range(0, 220, 4) for row in (2 * group, 2 * group + 1)]


def test_a_mixture_shows_what_was_asked_and_what_came(home: Home, tmp_path: Path) -> None:
    """Two phases of two documents: all of `web` where three quarters were asked, then half and half."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    parts, counts = ["web", "web", "web", "law"], [30, 10, 25, 25]
    np.arange(90, dtype="<u2").tofile(folder / "tokens.bin")
    about = {"dtype": "uint16", "tokens": 90, "documents": 4, "bytes": 300, "vocab_size": 99, "eos_id": 0}
    (folder / "tokens.json").write_text(json.dumps(about))
    columns = {name: ["x"] * 4 for name in ("cluster", "source", "license", "url")}
    table = {"id": list("abcd"), "offset": [0, 30, 40, 65], "tokens": counts, "bytes": [75] * 4, **columns}
    pq.write_table(pa.table({**table, "part": parts, "epoch": [0] * 4}), folder / "documents.parquet")
    phases = [{"start": 0, "weights": {"web": 3, "law": 1}}, {"start": 40, "weights": {"web": 0.5, "law": 0.5}}]
    (folder / "mixture.json").write_text(json.dumps({"phases": phases, "sources": []}))
    made = build_report(home, [artifact(folder, "tokens")], "Mixture")
    first, second = made.tokens[0].phases
    assert first.shares == (("web", 0.75, 1.0), ("law", 0.25, 0.0))
    assert second.shares == (("web", 0.5, 0.5), ("law", 0.5, 0.5))
    assert (first.part, second.part) == (40 / 90, 50 / 90)
    assert "Mixture, phase 2: 55.6 % of the tokens" in page(made)
