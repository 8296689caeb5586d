"""Web archives, pages, Word and PDF files: what is read of them, and what is named as unreadable."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_support import run_step
from fastwarc.warc import WarcRecord, WarcRecordType
from format_support import CHINESE, TRADITIONAL, read, warc

from liuyi.data.corpus import REJECTED, read_documents
from liuyi.data.sources.extract import decode_page
from liuyi.data.sources.location import find_files


def test_web_archives(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    pages = {f"https://a.example/{number}": f"<p>Page {number}.</p>" for number in range(3)}
    whole = warc(pages)
    members = b"".join(gzip.compress(warc({url: page})) for url, page in pages.items())
    (root / "a.warc.gz").write_bytes(members)
    damaged = bytearray(whole)
    damaged[damaged.index(b"Page 1") + 5] ^= 1
    (root / "b.warc").write_bytes(bytes(damaged))
    (root / "c.warc").write_bytes(whole[:-8])
    (root / "d.warc").write_bytes(whole + b"something else\n")
    (root / "e.warc").write_bytes(
        warc({"https://a.example/x.png": b"\x89PNG"}, "image/png")
        + warc({"https://a.example/no": "<p>Gone"}, status="404 Not Found")
        + warc({"https://a.example/gbk": f"<p>{CHINESE}".encode("gbk")}, "text/html; charset=gb2312")
        + warc({"https://a.example/t": "Plain text."}, "text/plain")
    )
    made = run_step("data.files", tmp_path / "out", path=root, extractor="plain").made["corpus"]
    documents = read_documents(made.path).to_pylist()
    texts = [(row["url"].removeprefix("https://a.example/"), row["text"].strip()) for row in documents]
    numbered = [(str(number), f"Page {number}.") for number in range(3)]
    assert texts == [
        *numbered,
        numbered[0],
        numbered[2],
        *numbered[:2],
        *numbered,
        ("gbk", CHINESE),
        ("t", "Plain text."),
    ]
    assert len({row["id"] for row in documents}) == len(documents)
    assert all(row["created"].startswith("20") for row in documents)
    rejected = {(row["file"], row["line"]): row["reason"] for row in pq.read_table(made.file(REJECTED)).to_pylist()}
    assert rejected.keys() == {("b.warc", 4), ("c.warc", 6), ("d.warc", 7), ("e.warc", 2), ("e.warc", 4)}
    assert "digest" in rejected["b.warc", 4]
    assert "cut off" in rejected["c.warc", 6]
    assert "damaged after record 6" in rejected["d.warc", 7]
    assert "HTTP 404" in rejected["e.warc", 4]


def test_a_bomb_inside_a_page_is_bounded(tmp_path: Path) -> None:
    sink = io.BytesIO()
    record = WarcRecord()
    record.init_headers(WarcRecordType.response)
    record.headers["WARC-Target-URI"] = "https://a.example/"
    record.is_http = True
    body = gzip.compress(b"<p>" + b"a" * 30_000_000)
    record.set_bytes_content(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + body)
    record.write(sink)
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.warc").write_bytes(sink.getvalue())
    (root / "b.txt").write_text("fine")
    _, rejected = read(root, tmp_path / "out", max_document_mb=1)
    assert rejected == {("a.warc", 1): "longer than 1 MB"}


def docx(path: Path) -> None:
    from docx import Document as Word

    word = Word()
    word.add_heading("The house", 1)
    word.add_paragraph("它有两层。")
    word.add_paragraph("a garden", style="List Bullet")
    table = word.add_table(2, 2)
    for row, values in enumerate((("room", "m²"), ("kitchen", "12"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    word.add_paragraph("After the table.")
    word.save(str(path))


def pdf(*pages: str) -> bytes:
    """A PDF written by hand: one line of text a page."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    font = "<< /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
    for number, text in enumerate(pages):
        content = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * number} 0 R "
            f"/Resources << /Font {font} >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += "".join(f"{place:010d} 00000 n \n" for place in places).encode()
    return out + f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF".encode()


def test_word_and_pdf(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    docx(root / "a.docx")
    (root / "b.pdf").write_bytes(pdf("First page.", "Second page."))
    (root / "c.pdf").write_bytes(pdf(""))
    (root / "d.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    (root / "e.docx").write_bytes(b"PK\x03\x04 not a zip")
    (root / "f.pdf").write_bytes(locked(pdf("Secret.")))
    documents, rejected = read(root, tmp_path / "out")
    assert documents["a.docx"]["text"] == (
        "# The house\n\n它有两层。\n\n- a garden\n\n| room | m² |\n| kitchen | 12 |\n\nAfter the table.\n"
    )
    assert documents["b.pdf"]["text"] == "First page.\n\nSecond page.\n"
    assert set(rejected) == {("c.pdf", 0), ("d.pdf", 0), ("e.docx", 0), ("f.pdf", 0)}
    assert "scan" in rejected["c.pdf", 0]
    assert "password" in rejected["f.pdf", 0]


def locked(data: bytes) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt("a password", algorithm="RC4-128")
    sink = io.BytesIO()
    writer.write(sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        (f'<meta charset="gb2312"><p>{CHINESE}'.encode("gbk"), ""),
        (f'<meta http-equiv="Content-Type" content="text/html; charset=big5"><p>{TRADITIONAL}'.encode("big5"), ""),
        ("<p>日本語のページ".encode("shift_jis"), "Shift_JIS"),
        ("<p>Привет".encode("koi8-r"), "koi8-r"),
        ('<meta charset="utf-8"><p>é'.encode("cp1252"), ""),
        ("<p>é".encode(), "nonsense"),
    ],
)
def test_declared_encodings(data: bytes, charset: str) -> None:
    text = decode_page(data, charset)
    assert text.partition("<p>")[2] in (CHINESE, TRADITIONAL, "日本語のページ", "Привет", "é")


def test_a_declared_encoding_gives_no_unpaired_surrogates() -> None:
    assert decode_page(b'<meta charset="utf-7"><p>a+2AA-b').endswith("<p>a\ufffdb")


def test_pages_are_the_same_whatever_the_workers(tmp_path: Path) -> None:
    from liuyi.data.sources.files import Reading, read_files

    for number in range(40):
        (tmp_path / f"{number:02}.html").write_text(f"<p>Page {number}.")
        (tmp_path / f"{number:02}.jsonl").write_text('{"text": "row"}\nbroken\n')
    files = find_files(tmp_path)
    reading = Reading(extractor="plain")
    alone = list(read_files(files, "s", reading, workers=1))
    assert len(alone) == 120
    assert list(read_files(files, "s", reading, workers=2)) == alone
