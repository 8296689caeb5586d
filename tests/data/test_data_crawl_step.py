"""`data.crawl` from beginning to end: killed in the middle, it goes on and fetches nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crawl_support import LOCAL, archived, crawl, done, page
from data_support import run_step
from web_support import Page, served

from liuyi.core.errors import DataError
from liuyi.data.corpus import REJECTED, read_documents

DRILL = """
import json, sys
from pathlib import Path
from liuyi.data.sources.crawl.crawler import Crawler, Plan
plan = Plan((sys.argv[2],), delay_s=0.0, per_host=3, timeout_s=5.0, allow_networks=("127.0.0.1",))
crawler = Crawler(plan, Path(sys.argv[1]), on_page=lambda pages: print(pages, flush=True))
crawler.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_killed_and_resumed(torn: bool, tmp_path: Path) -> None:
    """`kill -9` three times, also with a page half written: what lies in the archive is not asked for again."""

    def slow(request: BaseHTTPRequestHandler) -> str:
        time.sleep(0.02)
        number = int(request.path.strip("/") or 0)
        return page(
            f"page {number} " + "words " * 200, *(f"/{next}" for next in (2 * number + 1, 2 * number + 2) if next < 60)
        )

    with served({"/*": slow, "/robots.txt": (404, {}, b"")}) as site:
        command = [sys.executable, "-c", DRILL, str(tmp_path), f"{site.url}/"]
        for stop in (8, 25, 40):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout
            for line in process.stdout:
                if int(line) >= stop:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.wait(20)
            process.stdout.close()
            kept = archived(tmp_path)
            assert len(kept) >= stop
            if torn:
                (last,) = (tmp_path / "warc").glob("*.warc.gz")
                data = last.read_bytes()
                last.write_bytes(data + data[400:900])
            asked_before = len(site.requests)
            time.sleep(0.1)
        done_process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done_process.returncode == 0, done_process.stderr
        asked = [site.url + path for _, path in site.requests[asked_before:]]
        assert not set(asked) & set(kept)
        assert sorted(archived(tmp_path)) == sorted({f"{site.url}/{number or ''}" for number in range(60)})
        again = [path for path, times in Counter(site.paths()).items() if times > 1]
        assert len(again) <= 9  # three were under way at each of three kills


def test_pages_behind_the_known_end_are_learnt_from(tmp_path: Path) -> None:
    """Killed after the archive was written and before the frontier heard of it: the page and its links are found."""
    with served({"/": page("home", "/a"), "/a": page("a", "/b"), "/b": page("b")}) as site:
        crawler = crawl(site, tmp_path, max_pages=2)
        assert done(crawler, site) == {"/", "/a"}
        crawler.frontier._db.execute("update urls set state = 'waiting' where url like '%/a'")
        crawler.frontier._db.execute("delete from urls where url like '%/b'")
        crawler.frontier.keep_end("crawl-00000.warc.gz", 0)
        crawler.frontier.close()
        again = crawl(site, tmp_path)
        assert done(again, site) == {"/", "/a", "/b"}
        assert Counter(site.paths()) == Counter(["/", "/a", "/b"])


def test_the_step(tmp_path: Path) -> None:
    words = "The miller opened the gate when the tide had turned, and the wheel began to move slowly. "
    pages: dict[str, Page] = {
        "/": page(words * 4, "/zh", "/plain.txt", "/gone", "/empty"),
        "/zh": (
            200,
            {"Content-Type": "text/html; charset=gb2312"},
            f"<p>{'数据库在写入之前会先把修改记录到日志里。' * 5}".encode("gbk"),
        ),
        "/plain.txt": (200, {"Content-Type": "text/plain"}, words.encode()),
        "/empty": page(""),
    }
    with served(pages) as site:
        given = {
            "delay_s": 0,
            "allow_networks": LOCAL,
            "extractor": "plain",
            "license": "CC-BY-4.0",
            "contact": "a@b.example",
        }
        bench = run_step("data.crawl", tmp_path, start=[site.url], **given)
    made = bench.made["corpus"]
    documents = {row["url"].removeprefix(site.url): row for row in read_documents(made.path).to_pylist()}
    assert set(documents) == {"/", "/zh", "/plain.txt"}
    assert "数据库" in documents["/zh"]["text"]
    assert {(row["source"], row["cluster"], row["license"]) for row in documents.values()} == {
        (site.address, site.address, "CC-BY-4.0")
    }
    assert documents["/"]["created"].startswith("20")
    rejected = {row["file"]: (row["reason"], row["head"]) for row in pq.read_table(made.file(REJECTED)).to_pylist()}
    assert rejected[f"{site.url}/gone"] == ("the answer was HTTP 404", f"{site.url}/")
    assert ("no text in it", f"{site.url}/empty") in rejected.values()
    assert {entry.path for entry in made.manifest.files} >= {
        "warc/crawl-00000.warc.gz",
        "urls.parquet",
        "robots.parquet",
    }
    urls = pq.read_table(made.file("urls.parquet")).to_pylist()
    assert {row["url"].removeprefix(site.url): row["state"] for row in urls}["/zh"] == "done"
    (robots,) = pq.read_table(made.file("robots.parquet")).to_pylist()
    assert (robots["origin"], robots["status"]) == (site.url, 404)
    assert "+a@b.example" in site.headers[0]["User-Agent"]
    archive = run_step("data.files", tmp_path / "again", path=made.file("warc"), extractor="plain").made["corpus"]
    assert [row["text"] for row in read_documents(archive.path).to_pylist()] == [
        row["text"] for row in documents.values()
    ]


def test_a_start_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an address to crawl"):
        run_step("data.crawl", tmp_path, start=["ftp://example.org"])
    with pytest.raises(DataError, match="no page could be kept") as caught:
        run_step("data.crawl", tmp_path / "b", start=["http://127.0.0.1:9/"], delay_s=0)
    assert "not a public address" in caught.value.hint
