"""A folder of one's own: every file and row is read, or named with its reason."""

from __future__ import annotations

import csv
import json
import os
from html import escape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.digest import sha256_tree
from liuyi.core.errors import DataError
from liuyi.data.corpus import REJECTED, read_documents
from liuyi.data.sources.location import find_files
from liuyi.data.sources.web import html_text

PAGE = """<!doctype html><html><head><title>t</title><style>p{}</style></head><body>
<nav><ul><li>Home<li>About</ul></nav><script>var x = "<p>no</p>";</script>
<h1>Heading &amp; more</h1><p>First   paragraph,<br>second line.</p><p>中文段落。</p>
<pre>x = 1
    y = 2</pre><table><tr><td>a<td>b</tr></table><footer>foot</footer></body></html>"""


def read(folder: Path, out: Path, **params: object) -> tuple[dict[str, dict[str, str]], dict[tuple[str, int], str]]:
    made = run_step("data.files", out, path=folder, **({"extractor": "plain"} | params)).made["corpus"]
    documents = {row["url"]: row for row in read_documents(made.path).to_pylist()}
    rejected = pq.read_table(made.file(REJECTED)).to_pylist()
    return documents, {(row["file"], row["line"]): row["reason"] for row in rejected}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git/config").write_text("hidden")
    (root / "a.txt").write_text("plain text\r\nsecond line", encoding="utf-8")
    (root / "deep/b.md").write_text("# Title\n", encoding="utf-8")
    (root / "deep/gbk.rst").write_bytes("我们在这里写一段中文，看看是不是能认出来。".encode("gbk"))
    (root / "page.html").write_text(PAGE, encoding="utf-8")
    (root / "empty.txt").write_text(" \n")
    (root / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "nul.txt").write_bytes(b"a\x00b")
    (root / "old.zip").write_bytes(b"PK")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "dangling.txt").symlink_to(root / "nowhere.txt")
    return root


def test_names_that_are_no_utf8_are_readable(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + "/文".encode("gbk")))
    root.mkdir()
    for name, data in (("表.jsonl", b'{"text": "one"}'), ("文.txt", b"two"), ("像.png", b"\xff")):
        Path(root, os.fsdecode(name.encode("gbk"))).write_bytes(data)
    documents, rejected = read(root, tmp_path / "out")
    assert {url: row["text"] for url, row in documents.items()} == {
        "\\xb1\\xed.jsonl#1": "one\n",
        "\\xce\\xc4.txt": "two\n",
    }
    assert {row["source"] for row in documents.values()} == {"\\xce\\xc4"}
    assert list(rejected) == [("\\xcf\\xf1.png", 0)]
    digest = sha256_tree(root)
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"\xff")
    assert sha256_tree(root) != digest


def test_every_file_is_read_or_named(folder: Path, tmp_path: Path) -> None:
    documents, rejected = read(folder, tmp_path / "out", license="CC0-1.0")
    assert documents["a.txt"]["text"] == "plain text\nsecond line\n"
    assert documents["deep/b.md"]["text"] == "# Title\n"
    assert documents["deep/gbk.rst"]["text"].startswith("我们在这里")
    assert set(documents) == {"a.txt", "deep/b.md", "deep/gbk.rst", "page.html"}
    assert {name for name, _ in rejected} == {"empty.txt", "photo.jpg", "nul.txt", "old.zip", "dangling.txt"}
    assert "not a format" in rejected["photo.jpg", 0]
    assert ".parquet" in rejected["photo.jpg", 0]
    assert "NUL" in rejected["nul.txt", 0]
    assert rejected["empty.txt", 0] == "empty"
    assert all(row["license"] == "CC0-1.0" and row["source"] == "mine" for row in documents.values())


def test_rows_of_tables(tmp_path: Path) -> None:
    root = tmp_path / "rows"
    root.mkdir()
    lines = [
        '{"text": "one", "license": "MIT", "url": "https://a.example/1", "cluster": "c", "n": 1}',
        "",
        "{broken",
        "[1]",
    ]
    lines += ['{"title": "no text"}', '{"text": 5}', '{"text": " "}', '{"text": "\\ud800 lone"}']
    (root / "a.jsonl").write_bytes(
        "\n".join(lines).encode() + b'\n{"text": "\xff\xfe\xfd"}\n' + '{"text": "末"}'.encode()
    )
    with (root / "b.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["text", "lang"], ["first, with comma\nand line", "en"], ["x", "y", "z"], ["第二", "zh"]]
        )
    (root / "c.tsv").write_text("text\tlang\nthird\ten\n", encoding="utf-8")
    (root / "d.csv").write_text("text;lang\nfourth;de\n", encoding="utf-8")
    (root / "e.csv").write_bytes("text,lang\n我们在这里写一段中文的内容，看看是不是能认出来,zh\n".encode("gb18030"))
    pq.write_table(pa.table({"text": ["fifth", None, "sixth"], "n": [1, 2, 3]}), root / "f.parquet")
    (root / "g.parquet").write_bytes(b"not parquet")
    (root / "h.csv").write_text("")
    documents, rejected = read(root, tmp_path / "out")
    first = documents["https://a.example/1"]
    assert (first["text"], first["license"], first["cluster"]) == ("one\n", "MIT", "c")
    texts = {name: row["text"].strip() for name, row in documents.items()}
    assert texts["a.jsonl#8"] == "\ufffd lone"
    assert texts["a.jsonl#10"] == "末"
    assert texts["b.csv#2"] == "first, with comma\nand line"
    assert texts["b.csv#5"] == "第二"
    assert (texts["c.tsv#2"], texts["d.csv#2"], texts["f.parquet#1"], texts["f.parquet#3"]) == (
        "third",
        "fourth",
        "fifth",
        "sixth",
    )
    assert texts["e.csv#2"] == "我们在这里写一段中文的内容，看看是不是能认出来"
    assert documents["d.csv#2"]["lang"] == "de"
    assert len(texts) == 10
    assert set(rejected) == {
        ("a.jsonl", 3),
        ("a.jsonl", 4),
        ("a.jsonl", 5),
        ("a.jsonl", 6),
        ("a.jsonl", 7),
        ("a.jsonl", 9),
        ("b.csv", 4),
        ("f.parquet", 2),
        ("g.parquet", 0),
        ("h.csv", 0),
    }
    assert "title" in rejected["a.jsonl", 5]
    assert "not JSON" in rejected["a.jsonl", 3]


def test_another_field_holds_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "here"}\n')
    documents, _ = read(path, tmp_path / "out", text_field="content")
    assert list(documents) == ["a.jsonl#1"]
    with pytest.raises(DataError, match="no document") as caught:
        read(path, tmp_path / "again")
    assert "no field 'text'" in caught.value.hint


@pytest.mark.parametrize(("by", "clusters"), [("document", 3), ("file", 2), ("folder", 2)])
def test_clusters(by: str, clusters: int, tmp_path: Path) -> None:
    root = tmp_path / "r"
    (root / "x").mkdir(parents=True)
    (root / "x/a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (root / "b.txt").write_text("three")
    documents, _ = read(root, tmp_path / "out", cluster=by)
    assert len({row["cluster"] for row in documents.values()}) == clusters


def test_ids_depend_on_the_document_alone(folder: Path, tmp_path: Path) -> None:
    before, _ = read(folder, tmp_path / "one")
    (folder / "a.txt").write_text("changed")
    (folder / "new.txt").write_text("new")
    after, _ = read(folder, tmp_path / "two")
    assert before["deep/b.md"]["id"] == after["deep/b.md"]["id"]
    assert before["a.txt"]["id"] != after["a.txt"]["id"]


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files"):
        find_files(tmp_path)


def test_html() -> None:
    text = html_text(PAGE)
    assert text == "Heading & more\n\nFirst paragraph,\nsecond line.\n\n中文段落。\n\nx = 1\n    y = 2\n\na\tb"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20), min_size=1, max_size=5)
)
def test_html_paragraphs_come_back(paragraphs: list[str]) -> None:
    page = "<nav><p>menu</nav>" + "".join(f"<div><p>{escape(text)}</p></div>" for text in paragraphs)
    assert html_text(page).split("\n\n") == paragraphs


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("<>/pnavscripredivbtl !-[]&;\"'=\n"), max_size=80))
def test_any_html_gives_text(page: str) -> None:
    assert isinstance(html_text(page), str)


@pytest.mark.parametrize("mark", ["<![bogus[x]]>", "<![é>", "<![if IE]>", "<![CDATA[x]]>"])
def test_a_section_that_browsers_do_not_know_is_a_comment(mark: str) -> None:
    assert html_text(f"<p>before{mark}after") == "beforeafter"


def test_json_of_any_depth_is_one_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000 + "\n" + json.dumps({"text": "fine"}))
    documents, rejected = read(path, tmp_path / "out")
    assert list(documents) == ["deep.jsonl#2"]
    assert list(rejected) == [("deep.jsonl", 1)]
