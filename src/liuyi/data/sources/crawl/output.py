"""What a crawl leaves: documents with their evidence, and what became of every address."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from liuyi.data.corpus import Document, Rejected, Rows, document_id
from liuyi.data.sources.crawl.crawler import Crawler
from liuyi.data.sources.crawl.urls import host_of
from liuyi.data.sources.files import Reading, read_files
from liuyi.data.sources.location import SourceFile

WARC = "warc"
URLS = "urls.parquet"
ROBOTS = "robots.parquet"


def keep_evidence(crawler: Crawler, folder: Path) -> list[SourceFile]:
    """Put the archive into `folder` as `warc/`, beside it `urls.parquet` (what became of each address) and
    `robots.parquet` (what each host allowed); gives the files of the archive.

    The archive stays where it was too, so that a kill before all is published loses nothing.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    names = {"url": text, "kind": text, "depth": number, "via": text, "state": text, "reason": text}
    with Rows(folder / URLS, pa.schema(names.items())) as urls:
        for visit in crawler.frontier.visits():
            urls.add(vars(visit))
    with Rows(folder / ROBOTS, pa.schema({"origin": text, "status": number, "text": text}.items())) as robots:
        for origin, status, body in crawler.frontier.all_robots():
            robots.add({"origin": origin, "status": status, "text": body.decode("utf-8", "replace")})
    (folder / WARC).mkdir()
    kept = []
    for path in crawler.archive.files():
        place = folder / WARC / path.name
        try:
            os.link(path, place)
        except OSError:  # another file system
            shutil.copyfile(path, place)
        kept.append(SourceFile(f"{WARC}/{path.name}", str(place), place.stat().st_size))
    return kept


def read_crawl(crawler: Crawler, files: list[SourceFile], reading: Reading) -> Iterator[Document | Rejected]:
    """The documents of the archived pages; a page that gave none, and an address that gave no page, with the reason.

    A document's source and cluster are its host, its place its address: the same page has the same id in another crawl.
    """
    for found in read_files(files, "", reading):
        if isinstance(found, Document):
            host = host_of(found.url)
            id = document_id(host, found.url, found.text)
            yield replace(found, id=id, source=host, cluster=host)
        else:
            yield found
    for visit in crawler.frontier.visits():
        if visit.kind == "page" and visit.state in ("refused", "failed"):
            yield Rejected(visit.url, 0, visit.reason, visit.via)
