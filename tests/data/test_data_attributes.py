"""Attributes added as a stream, against the same made with whole tables; optional rules; edits of kept texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.artifact import Artifact
from liuyi.core.errors import ArtifactError, DataError
from liuyi.data.attributes import attribute_schema, read_groups, with_columns
from liuyi.data.clean.filters import measure
from liuyi.data.clean.pii import find, mask
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS
from liuyi.data.select import rules
from liuyi.data.select.edit import cut_ratio, edited, replace
from liuyi.data.select.edits import CUT, MASKED, Edits
from liuyi.data.select.rules import Attributes, reasons
from liuyi.data.select.thresholds import Thresholds

LETTERS = pa.schema([("letters", pa.int32())])
SPAN = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("kind", pa.string())]))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return corpus(tmp_path_factory.mktemp("many") / "corpus", [document(f"text {n} " * (n % 7)) for n in range(2500)])


def letters(source: Path, rows: int | None = None) -> list[pa.Table]:
    table = pa.concat_tables(read_groups(source, ["text"]))
    made = pa.table({"letters": pc.utf8_length(table["text"])})
    return [made.slice(start, rows or len(made)) for start in range(0, len(made), rows or len(made))]


def test_groups_are_bounded_and_whole(many: Artifact) -> None:
    groups = list(read_groups(many.path, ["id", "text"]))
    assert [group.num_rows for group in groups] == [1024, 1024, 452]
    assert pa.concat_tables(groups).equals(pq.read_table(many.file(DOCUMENTS), columns=["id", "text"]))


def test_columns_do_not_depend_on_how_they_came(many: Artifact, tmp_path: Path) -> None:
    written = []
    for rows in (None, 1, 100, 1024, 2000):
        out = tmp_path / str(rows)
        out.mkdir()
        assert with_columns(many.path, out, LETTERS, letters(many.path, rows)) == 2500
        written.append((out / ATTRIBUTES).read_bytes())
        assert (out / DOCUMENTS).read_bytes() == many.file(DOCUMENTS).read_bytes()
    assert len(set(written)) == 1
    table = pq.read_table(tmp_path / "1" / ATTRIBUTES)
    documents = pq.read_table(many.file(DOCUMENTS))
    assert table.column_names == ["id", "letters"]
    assert table["id"].equals(documents["id"])
    assert table["letters"].to_pylist() == [len(text) for text in documents["text"].to_pylist()]
    assert pq.ParquetFile(tmp_path / "1" / ATTRIBUTES).metadata.row_group(0).num_rows == 1024


def test_columns_are_added_and_replaced(many: Artifact, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    for folder in (first, second, third):
        folder.mkdir()
    with_columns(many.path, first, LETTERS, letters(many.path))
    numbers = pa.table({"number": np.arange(2500)})
    with_columns(first, second, numbers.schema, [numbers])
    assert attribute_schema(second).names == ["id", "letters", "number"]
    assert pq.read_table(second / ATTRIBUTES)["letters"].equals(letters(many.path)[0]["letters"].cast(pa.int32()))
    zeros = pa.table({"letters": pa.array(np.zeros(2500), pa.int32())})
    with_columns(second, third, LETTERS, [zeros])
    table = pq.read_table(third / ATTRIBUTES)
    assert table.column_names == ["id", "number", "letters"]
    assert not any(table["letters"].to_pylist())
    assert table["number"].to_pylist() == list(range(2500))


@pytest.mark.parametrize("rows", [0, 1024, 2499, 2501, 4000])
def test_another_number_of_rows_is_refused(many: Artifact, tmp_path: Path, rows: int) -> None:
    measured = pa.table({"letters": pa.array(np.zeros(rows), pa.int32())})
    with pytest.raises(ArtifactError, match="rows were measured"):
        with_columns(many.path, tmp_path, LETTERS, [measured])


def test_attributes_of_other_documents_are_refused(many: Artifact, tmp_path: Path) -> None:
    one, out = corpus(tmp_path / "one", [document("other")]), tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"id": ["nobody"], "old": [1]}), one.path / ATTRIBUTES)
    with pytest.raises(ArtifactError, match="same ids"):
        with_columns(one.path, out, LETTERS, [pa.table({"letters": [5]})])


def test_what_is_not_there_is_said(many: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no attributes"):
        list(read_groups(many.path, ["id"], ATTRIBUTES))
    with pytest.raises(ArtifactError, match=r"lacks \['nothing"):
        list(read_groups(many.path, ["nothing"]))


class WithScore(Thresholds):
    min_score: float | None = None


def test_an_optional_rule_applies_once_its_threshold_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = rules.optional(
        "low score",
        lambda a, t: a["score"] < t.min_score,
        needs="score",
        measured_by="data.score",
        threshold="min_score",
    )
    monkeypatch.setattr(rules, "RULES", (rule,))
    table = pa.table({"words": [9, 9, 9], "score": [0.1, 0.5, 0.9]})
    licences = pa.chunked_array([["MIT"] * 3])
    assert reasons(Attributes(table, licences), WithScore()).tolist() == ["", "", ""]
    assert reasons(Attributes(table, licences), WithScore(min_score=0.5)).tolist() == ["low score", "", ""]
    bare = Attributes(table.drop_columns("score"), licences)
    assert reasons(bare, WithScore()).tolist() == ["", "", ""]
    with pytest.raises(DataError, match="min_score is set") as caught:
        reasons(bare, WithScore(min_score=0.0))
    assert "data.score" in caught.value.hint


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from(["", "[X]", "[Y]"])), max_size=6)


@settings(deadline=None)
@given(SPANS)
def test_replacing_letter_by_letter(spans: list[tuple[int, int, str]]) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(40))
    given = [(start, start + size, instead) for start, size, instead in spans]
    covered = {place for start, end, _ in given for place in range(start, end)}
    made = replace(text, given)
    assert made.replace("[X]", "").replace("[Y]", "") == "".join(c for n, c in enumerate(text) if n not in covered)
    cuts = {place for start, end, instead in given if not instead for place in range(start, end)}
    for instead in ("[X]", "[Y]"):
        reaching = [one for one in given if one[2] == instead and not set(range(*one[:2])) <= cuts]
        assert made.count(instead) == len(reaching)


def test_texts_are_cut_and_masked(tmp_path: Path) -> None:
    repeated = "Copyright ada@lemburg.com\n"
    texts = pa.chunked_array([[f"Write to ada@lemburg.com.\n{repeated}End.", "Nothing here."]])
    start = texts[0].as_py().index(repeated)
    cuts = [[{"start": start, "end": start + len(repeated), "kind": "line"}], None]
    table = measure(texts.combine_chunks()).append_column(CUT, pa.array(cuts, SPAN))
    assert edited(texts, table, Edits()).to_pylist() == ["Write to [EMAIL].\nEnd.", "Nothing here."]
    assert edited(texts, table, Edits(mask_pii=False))[0].as_py() == "Write to ada@lemburg.com.\nEnd."
    whole = texts[0].as_py()
    masked = edited(texts, table, Edits(cut_repeated=False))
    assert masked[0].as_py() == mask(whole, find(whole))
    assert edited(texts, table.drop_columns(CUT), Edits()).equals(masked)
    assert edited(texts, table.drop_columns([CUT, MASKED]), Edits()).equals(texts.combine_chunks())
    assert cut_ratio(table).tolist() == [len(repeated) / len(whole), 0]


def test_only_chinese_is_simplified() -> None:
    chinese = "資料庫在寫入之前會先把修改記錄到日誌裡。請寫信給 ada@lemburg.com，謝謝。"
    japanese = "これは日本語の文章です。図書館で本を読んで、學校へ行きました。"
    texts = pa.chunked_array([[chinese, japanese, "Plain English."]])
    made = edited(texts, measure(texts.combine_chunks()), Edits(simplify_chinese=True)).to_pylist()
    assert made == ["资料库在写入之前会先把修改记录到日志里。请写信给 [EMAIL]，谢谢。", japanese, "Plain English."]


def test_a_document_of_which_little_is_left_is_dropped() -> None:
    text = prose(1)
    table = measure(pa.array([text, text]))
    for name, value in (("duplicate_kind", ""), ("duplicate_similarity", 1.0)):
        table = table.append_column(name, pa.array([value, value]))
    licences = pa.chunked_array([["MIT", "MIT"]])
    why = reasons(Attributes(table, licences, np.array([0.2, 0.7])), Thresholds())
    assert why.tolist() == ["", "little left once repeated text is cut out"]
