"""Texts in Chinese, files of several formats, and reading them with `data.files`."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
from data_support import run_step
from fastwarc.warc import WarcRecord, WarcRecordType

from liuyi.data.corpus import REJECTED, read_documents

CHINESE = "我们在这里写下一段中文，用来看看编码是不是能够被认出来。这是第二句话，它说的是天气很好。"
TRADITIONAL = "我們在這裡寫下一段中文，用來看看編碼是不是能夠被認出來。這是第二句話，它說的是天氣很好。"


def read(
    folder: Path | str, out: Path, **params: object
) -> tuple[dict[str, dict[str, str]], dict[tuple[str, int], str]]:
    made = run_step("data.files", out, path=folder, **({"extractor": "plain"} | params)).made["corpus"]
    documents = {row["url"]: row for row in read_documents(made.path).to_pylist()}
    rejected = pq.read_table(made.file(REJECTED)).to_pylist()
    return documents, {(row["file"], row["line"]): row["reason"] for row in rejected}


def warc(pages: dict[str, str | bytes], kind: str = "text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    """A web archive with a request and a response for each page."""
    sink = io.BytesIO()
    for url, body in pages.items():
        for record_type, head in (
            (WarcRecordType.request, "GET / HTTP/1.1"),
            (WarcRecordType.response, f"HTTP/1.1 {status}"),
        ):
            record = WarcRecord()
            record.init_headers(record_type)
            record.headers["WARC-Target-URI"] = url
            record.is_http = True
            data = body if isinstance(body, bytes) else body.encode()
            content = data if record_type is WarcRecordType.response else b""
            record.set_bytes_content(f"{head}\r\nContent-Type: {kind}\r\n\r\n".encode() + content)
            record.write(sink, checksum_data=True)
    return sink.getvalue()
