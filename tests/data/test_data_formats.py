"""Formats, compressions, encodings and places: each read as a stream, each fault named where it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import run_step
from format_support import CHINESE, TRADITIONAL, read, warc
from web_support import served

from liuyi.core.errors import DataError
from liuyi.core.step import get_step
from liuyi.data.corpus import DOCUMENTS, Document, document_id, write_documents
from liuyi.data.sources.json_rows import read_json
from liuyi.data.sources.location import SourceFile, find_files, remote_version
from liuyi.data.sources.stream import opened


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.mark.parametrize("packing", PACKERS)
def test_every_format_in_every_compression(packing: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    rows = [{"text": "first row"}, {"text": "第二行"}]
    contents = {
        "a.txt": CHINESE.encode("gb18030"),
        "b.jsonl": "\n".join(json.dumps(row) for row in rows).encode(),
        "c.json": json.dumps(rows, indent=2).encode(),
        "d.csv": "text,n\nfirst row,1\n第二行,2\n".encode(),
        "e.parquet": parquet(rows),
        "f.html": b"<p>A page.",
        "g.warc": warc({"https://a.example/": "<p>An archived page."}),
    }
    for name, data in contents.items():
        (root / f"{name}{packing}").write_bytes(PACKERS[packing](data))
    documents, rejected = read(root, tmp_path / "out")
    assert not rejected
    by_file: dict[str, list[str]] = {}
    for url, row in documents.items():
        by_file.setdefault(url.partition("#")[0].removesuffix(packing), []).append(row["text"].strip())
    assert by_file == {
        "a.txt": [CHINESE],
        **{name: ["first row", "第二行"] for name in ("b.jsonl", "c.json", "d.csv", "e.parquet")},
        "f.html": ["A page."],
        "https://a.example/": ["An archived page."],
    }


@pytest.mark.parametrize("packing", [name for name in PACKERS if name])
def test_what_breaks_off_is_named_and_what_came_before_is_kept(packing: str, tmp_path: Path) -> None:
    import random

    rng = random.Random(1)
    lines = [json.dumps({"text": rng.randbytes(150).hex()}) for _ in range(2500)]
    data = PACKERS[packing]("\n".join(lines).encode())
    root = tmp_path / "in"
    root.mkdir()
    (root / f"cut.jsonl{packing}").write_bytes(data[: len(data) // 2])
    (root / f"no.txt{packing}").write_bytes(b"this is not packed at all")
    (root / "whole.txt").write_text("whole")
    documents, rejected = read(root, tmp_path / "out")
    kept = len(documents) - 1
    (cut,) = [line for name, line in rejected if name.startswith("cut")]
    assert kept == 0 if cut == 0 else cut in (kept + 1, kept + 2)
    assert {name for name, _ in rejected} == {f"cut.jsonl{packing}", f"no.txt{packing}"}
    if packing in (".gz", ".zst"):
        assert kept > 100


def test_a_url(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name, data in {
        "a.txt": b"one",
        "deep/b.jsonl.gz": gzip.compress(b'{"text": "two"}'),
        ".hid/c.txt": b"no",
    }.items():
        with fs.open(f"/corpus/{name}", "wb") as file:
            file.write(data)
    documents, rejected = read("memory://corpus", tmp_path / "out")
    assert {url: row["text"] for url, row in documents.items()} == {"a.txt": "one\n", "deep/b.jsonl.gz#1": "two\n"}
    assert {row["source"] for row in documents.values()} == {"corpus"}
    assert not rejected
    one, _ = read("memory://corpus/a.txt", tmp_path / "one")
    assert list(one) == ["a.txt"]
    before = remote_version("memory://corpus")
    fs.pipe("/corpus/a.txt", b"longer than it was")
    assert remote_version("memory://corpus") != before
    refused = {
        "memory://nothing-here": "no files",
        "nosuch://x/y": "nosuch",
        "http://127.0.0.1:9/x": "cannot be reached",
    }
    for url, reason in refused.items():
        with pytest.raises(DataError, match=reason):
            find_files(url)


def test_urls_of_web_servers_and_inside_archives(tmp_path: Path) -> None:
    with served({"/rows.jsonl.gz?version=1": (200, {}, gzip.compress(b'{"text": "from afar"}'))}) as site:
        documents, _ = read(f"{site.url}/rows.jsonl.gz?version=1", tmp_path / "web")
    assert {url: row["text"] for url, row in documents.items()} == {"rows.jsonl.gz#1": "from afar\n"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.txt", "first")
        archive.writestr("deep/two.md", "second")
    documents, _ = read(f"zip://::{tmp_path / 'a.zip'}", tmp_path / "zip")
    assert {url: row["text"] for url, row in documents.items()} == {"one.txt": "first\n", "deep/two.md": "second\n"}


class Redirected(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = "redirected"

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        raise RuntimeError("403, message='Forbidden', url='https://far.example/x?X-Amz-Signature=pass-word'")


def test_an_address_with_a_secret_is_refused_and_none_is_quoted() -> None:
    params = get_step("data.files").params
    for url in ("s3://me:pass-word@bucket/texts", "https://a.example/rows.jsonl?X-Amz-Signature=pass-word"):
        with pytest.raises(ValueError, match="belong in the environment"):
            params.model_validate({"path": url})
    params.model_validate({"path": "https://a.example/rows.jsonl?version=1"})
    fsspec.register_implementation("redirected", Redirected, clobber=True)
    with pytest.raises(DataError, match=r"403.*Signature=\*\*\*") as refused:
        find_files("redirected://texts")
    assert "pass-word" not in str(refused.value)


def test_a_path_is_checked_and_hashed_and_a_url_is_not(tmp_path: Path) -> None:
    params = get_step("data.files").params
    (tmp_path / "a.txt").write_text("a")
    context = {"folder": tmp_path}
    said = params.model_validate({"path": "a.txt"}, context=context).model_dump(context=context)["path"]
    assert said[0] == "a.txt"
    assert len(said[1]) == 64
    with pytest.raises(ValueError, match=r"no file or folder 'b\.txt'"):
        params.model_validate({"path": "b.txt"}, context=context)
    assert params.model_validate({"path": "s3://bucket/x"}, context=context).model_dump(context=context)["path"] == (
        "s3://bucket/x"
    )


@pytest.mark.parametrize(("encoding", "text"), [("gb18030", CHINESE), ("big5", TRADITIONAL), ("utf-16", CHINESE)])
def test_chinese_tables_in_any_encoding(encoding: str, text: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    (root / "b.csv").write_bytes(f"text\n{text}\n".encode(encoding))
    (root / "c.txt").write_bytes(text.encode(encoding))
    documents, rejected = read(root, tmp_path / "out")
    assert not rejected
    assert [row["text"] for row in documents.values()] == [text + "\n"] * 3


def test_chinese_that_begins_late(tmp_path: Path) -> None:
    """The head of the file is ASCII; the lines beyond it are GB 18030, and one is nothing."""
    root = tmp_path / "in"
    root.mkdir()
    plain = [json.dumps({"text": f"row {n} " + "x" * 100}) for n in range(800)]
    late = json.dumps({"text": CHINESE}, ensure_ascii=False).encode("gb18030")
    (root / "a.jsonl").write_bytes("\n".join(plain).encode() + b"\n" + late + b'\n{"text": "\xff\xfe\xfd"}')
    rows = "\n".join(f"{n},{'y' * 100}" for n in range(800))
    (root / "b.csv").write_bytes(f"n,text\n{rows}\n800,".encode() + CHINESE.encode("gb18030") + b"\n801,\xff\xfe\xfd\n")
    documents, rejected = read(root, tmp_path / "out")
    assert documents["a.jsonl#801"]["text"] == documents["b.csv#802"]["text"] == CHINESE + "\n"
    assert rejected == {("a.jsonl", 802): "not UTF-8", ("b.csv", 803): "'text' is not UTF-8"}


def test_a_quote_that_is_never_closed_swallows_nothing_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\nfirst,1\n"second,2\nthird,3\nfourth,4\n')
    documents, rejected = read(path, tmp_path / "out")
    assert list(documents) == ["a.csv#2"]
    assert list(rejected) == [("a.csv", 3)]
    assert "not CSV" in rejected["a.csv", 3]


@pytest.mark.parametrize("end", ["\n\n", "\n", " "])
def test_a_long_text_is_divided(end: str, tmp_path: Path) -> None:
    """No byte is lost or doubled, and pieces end where paragraphs, lines or at least characters do."""
    path = tmp_path / "long.txt"
    whole = "".join(f"段落 {number} 讲的是第 {number} 件事。{end}" for number in range(900))
    path.write_text(whole, encoding="utf-8")
    documents, rejected = read(path, tmp_path / "out", max_document_mb=0.004)
    assert not rejected
    assert len(documents) > 8
    assert all(len(row["text"].encode()) <= 4001 for row in documents.values())
    squeeze = lambda text: "".join(text.split())  # noqa: E731
    assert squeeze("".join(row["text"] for row in documents.values())) == squeeze(whole)
    if end != " ":
        for url, row in documents.items():
            line = int(url.partition("#")[2])
            assert whole.split("\n")[line - 1] == row["text"].split("\n")[0]
            assert row["text"].endswith("件事。\n")


def test_rows_and_pages_beyond_the_bound_are_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * 9000 + '"}\n{"text": "after"}\n')
    (root / "b.html").write_text("<p>" + "x" * 9000)
    (root / "c.json").write_text(json.dumps([{"text": "short"}]))
    (root / "d.txt").write_bytes(("字" * 9000).encode("utf-16"))
    documents, rejected = read(root, tmp_path / "out", max_document_mb=0.005)
    assert list(documents) == ["a.jsonl#1", "a.jsonl#3", "c.json#1"]
    assert set(rejected) == {("a.jsonl", 2), ("b.html", 0), ("d.txt", 0)}
    assert all("longer than 0.005 MB" in reason for reason in rejected.values())


def read_text(path: Path, longest: int = 10**6) -> list[tuple[int, int, object]]:
    with opened(SourceFile(path.name, str(path), 0)) as file:
        return list(read_json(file, longest))


def test_json_arrays_as_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [
        {"n": number, "text": '文\\"本[]{}' * (number % 50), "deep": [{"a": [1, {"b": None}]}]}
        for number in range(3000)
    ]
    for indent, ascii in ((None, True), (None, False), (1, True), (2, False)):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii), encoding="utf-8")
        found = read_text(path)
        assert [row for _, _, row in found] == rows
        assert [number for _, number, _ in found] == list(range(1, 3001))
        lines = path.read_text(encoding="utf-8").split("\n")
        assert all("{" in lines[line - 1] for line, _, _ in found)
    path.write_text("\n".join(json.dumps(row, indent=1) for row in rows), encoding="utf-8")
    assert [row for _, _, row in read_text(path)] == rows


def test_wrong_json_rows_are_told_and_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '[\n {"text": "one"},\n {"text": "two" "x"},\n {"z": 1},\n {"text": "four", "in": [\n  {"text": "no"}]}\n]'
    )
    assert read_text(path) == [
        (2, 1, {"text": "one"}),
        (3, 2, "not JSON: Expecting ',' delimiter"),
        (4, 3, {"z": 1}),
        (5, 4, {"text": "four", "in": [{"text": "no"}]}),
    ]
    path.write_text('[\n {"text": "one"},\n {"text": two,\n  "in": [\n  {"text": "inner"}]},\n {"text": "three"}\n]')
    assert [row for _, _, row in read_text(path)] == [
        {"text": "one"},
        "not JSON: Expecting value",
        {"text": "three"},
    ]
    for broken in ('[{"text": "one"}, {"text": "tw', '[{"text": "one"}, {"text": x}]'):
        path.write_text(broken)
        first, second = read_text(path)
        assert first[2] == {"text": "one"}
        assert "nothing after it was read" in str(second[2])
    path.write_text("[" + "[" * 100_000)
    assert "nested too deeply" in str(read_text(path)[0][2])
    path.write_text("")
    assert read_text(path) == []


def test_row_groups_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuyi.data.corpus._BYTES_PER_GROUP", 100_000)
    texts = ["x" * 30_000] * 10 + ["y"] * 2000
    count, size = write_documents(
        tmp_path, (Document(document_id("s", str(n), text), text, "s", str(n), "MIT") for n, text in enumerate(texts))
    )
    assert (count, size) == (2010, 302_000)
    metadata = pq.read_metadata(tmp_path / DOCUMENTS)
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert rows[:2] == [4, 4]
    assert sum(rows) == 2010
    assert max(rows) <= 1024


def test_the_summary_says_what_was_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"a": 1}\n{"b": 1}\n{broken\n{"text": 5}\n')
    bench = run_step("data.files", tmp_path / "out", path=path)
    (said,) = bench.logs
    assert "1 documents" in said
    assert "2 × there is no field 'text'" in said
    assert "1 × not JSON" in said


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """30 MB and 240 MB of rows take the same memory, within what allocators keep."""
    peaks = []
    for megabytes in (30, 240):
        path = tmp_path / f"{megabytes}.jsonl.gz"
        row = json.dumps({"text": "a sentence that is said again and again. " * 50}) + "\n"
        with gzip.open(path, "wt", compresslevel=1) as file:
            for _ in range(megabytes * 10**6 // len(row) // 100):
                file.write(row * 100)
        out = tmp_path / f"out{megabytes}"
        out.mkdir()
        code = (
            "import sys, resource\nfrom pathlib import Path\nfrom liuyi.data.corpus import write_found\n"
            "from liuyi.data.sources.files import Reading, read_files\n"
            "from liuyi.data.sources.location import find_files\n"
            "written = write_found(Path(sys.argv[2]), read_files(find_files(sys.argv[1]), 's', Reading()))\n"
            "assert written.bytes > 0.9e6 * int(sys.argv[3])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(out), str(megabytes)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1000)
    assert peaks[1] < peaks[0] + 120, peaks
