"""Where sources of data meet the spine: their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Output, Params, SourcePath, step
from liuyi.data.sources.location import Location, remote_version


class FilesParams(Params):
    path: Location = Field(
        description="a folder, a file, or a URL that fsspec opens; txt, md, rst, html, json, jsonl, csv, tsv, parquet, "
        "docx, pdf, warc and manual pages, also as gz, zst, xz and bz2"
    )
    text_field: str = Field("text", description="the field of a row that holds its text")
    license: str = Field("unknown", description="the licence of what does not state its own")
    cluster: Literal["document", "file", "folder"] = Field(
        "document", description="what is held out together, unless a row has a `cluster` of its own"
    )
    extractor: Literal["trafilatura", "resiliparse", "plain"] = Field(
        "trafilatura", description="how the text of web pages is found: most exact, fast, or with nothing installed"
    )
    max_document_mb: float = Field(
        16.0, gt=0.001, description="a longer text file is divided at its paragraphs, a longer row or page is rejected"
    )


@step(
    "data.files",
    version=2,
    inputs={},
    outputs={"corpus": Output("corpus", "rejected.parquet beside it names each file and row that was not read")},
    fingerprint=lambda params: remote_version(params.path),
)
def files(ctx: Context, params: FilesParams) -> None:
    """Documents from a folder of your own, or from a URL."""
    from liuyi.data.corpus import write_found
    from liuyi.data.sources.extract import check_extractor
    from liuyi.data.sources.files import HTML, WARC, Reading, read_files
    from liuyi.data.sources.location import find_files, source_name
    from liuyi.data.sources.stream import suffixes

    found = find_files(params.path)
    if any(suffixes(file.name)[0] in HTML | {WARC} for file in found):
        check_extractor(params.extractor)
    reading = Reading(
        params.text_field, params.license, params.cluster, params.extractor, int(params.max_document_mb * 1e6)
    )
    documents = read_files(
        found,
        source_name(params.path),
        reading,
        on_file=lambda done: ctx.progress(done, len(found), "files"),
    )
    with ctx.output("corpus") as out:
        written = write_found(out.path, documents)
        if not written.documents:
            raise DataError("no document could be read", where=params.path, hint=str(written.first_rejected))
        out.metrics.update(documents=written.documents, bytes=written.bytes, rejected=written.rejected)
        out.licences.update(written.licences)
    ctx.log(written.summary())


class DebianDocsParams(Params):
    folder: SourcePath = Field(Path("/usr/share/doc"), description="where packages keep their documentation")
    include: tuple[str, ...] = Field((), description="only these packages")
    exclude: tuple[str, ...] = Field((), description="all but these packages")
    extractor: Literal["trafilatura", "resiliparse", "plain"] = Field("trafilatura", description="as for data.files")


@step(
    "data.debian_docs",
    version=2,
    inputs={},
    outputs={"corpus": Output("corpus", "one document a file, each with its package's licence")},
)
def debian_docs(ctx: Context, params: DebianDocsParams) -> None:
    """Documentation of the Debian packages on this machine: texts and web pages."""
    from liuyi.data.corpus import write_found
    from liuyi.data.sources.debian import find_packages, read_packages
    from liuyi.data.sources.extract import check_extractor
    from liuyi.data.sources.files import HTML, Reading

    packages = find_packages(params.folder, params.include, params.exclude)
    kinds = [file.kind for package in packages for file in package.files]
    if HTML.intersection(kinds):
        check_extractor(params.extractor)
    documents = read_packages(
        packages,
        Reading(extractor=params.extractor),
        on_file=lambda done: ctx.progress(done, len(kinds), "files"),
    )
    with ctx.output("corpus") as out:
        written = write_found(out.path, documents)
        if not written.documents:
            raise DataError("no package has documentation", where=str(params.folder))
        out.metrics.update(documents=written.documents, bytes=written.bytes, rejected=written.rejected)
        out.licences.update(written.licences)
    ctx.log(f"{len(packages):,} packages: {written.summary()}")


class HuggingFaceParams(Params):
    dataset: str = Field(min_length=1, description="the data set's name on the hub, or a folder")
    config: str = Field("", description="the configuration, where the data set has several")
    split: str = Field("train", description="the part of the data set")
    revision: str = Field("", description="a commit or tag; name one, so that the same step gives the same documents")
    text_field: str = Field("text", description="the field of a row that holds its text")
    license: str = Field("unknown", description="the licence; what the data set's card states when left out")
    max_rows: int | None = Field(None, ge=1, description="the first rows only; all when left out")


@step(
    "data.huggingface",
    version=2,
    inputs={},
    outputs={"corpus": Output("corpus", "one document a row; rejected.parquet beside it names rows without text")},
)
def huggingface(ctx: Context, params: HuggingFaceParams) -> None:
    """Documents of any data set of the Hugging Face hub, streamed."""
    from liuyi.data.corpus import write_found
    from liuyi.data.sources.files import Reading
    from liuyi.data.sources.huggingface import open_dataset, read_dataset, stated_licence

    dataset = open_dataset(params.dataset, params.config, params.split, params.revision)
    reading = Reading(params.text_field, stated_licence(dataset, params.license))
    place = "/".join(
        filter(None, (f"hf://datasets/{params.dataset}@{params.revision or 'main'}", params.config, params.split))
    )
    with ctx.output("corpus") as out:
        written = write_found(out.path, read_dataset(dataset, params.dataset, place, reading, params.max_rows))
        if not written.documents:
            raise DataError(
                "no row is a document", where=params.dataset, hint=str(written.first_rejected or "it is empty")
            )
        out.metrics.update(documents=written.documents, bytes=written.bytes, rejected=written.rejected)
        out.licences.update(written.licences)
    ctx.log(written.summary())


class CrawlParams(Params):
    start: tuple[str, ...] = Field(min_length=1, description="addresses to start from")
    hosts: tuple[str, ...] = Field(
        (),
        description="hosts whose links are followed (`docs.example.org`, `localhost:8080`); those of `start` if none",
    )
    sitemaps: bool = Field(True, description="read the hosts' sitemaps")
    max_pages: int = Field(1000, ge=1, description="pages kept in all")
    max_pages_per_host: int = Field(1000, ge=1, description="pages kept from one host")
    max_depth: int = Field(5, ge=0, description="links followed from a start address")
    max_page_mb: float = Field(4.0, gt=0, description="a longer page is not read to its end, and rejected")
    max_mb: float = Field(1000.0, gt=0, description="size of the archive at which the crawl ends")
    delay_s: float = Field(
        1.0, ge=0, description="least time between two requests to a host; robots.txt may ask for more"
    )
    per_host: int = Field(1, ge=1, le=16, description="requests to one host at once")
    concurrency: int = Field(16, ge=1, le=256, description="requests at once in all")
    timeout_s: float = Field(30.0, gt=0, description="the longest time for one page, from the first byte to the last")
    contact: str = Field("", description="a mail or web address of yours that the hosts are told")
    allow_networks: tuple[str, ...] = Field(
        (), description="networks of private addresses that may be asked, such as 10.0.0.0/8; none otherwise"
    )
    license: str = Field("unknown", description="the licence of the pages")
    extractor: Literal["trafilatura", "resiliparse", "plain"] = Field("trafilatura", description="as for data.files")
    label: str = Field("", description="another label crawls again: pages change, what was crawled does not")


@step(
    "data.crawl",
    version=1,
    inputs={},
    outputs={
        "corpus": Output(
            "corpus",
            "rejected.parquet, urls.parquet and robots.parquet say what became of each address, warc/ proves it",
        )
    },
)
def crawl(ctx: Context, params: CrawlParams) -> None:
    """Pages of web sites, fetched politely and kept as they came. A killed crawl goes on where it was."""
    import importlib.util

    missing = [name for name in ("fastwarc", "lxml", "protego") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"crawling needs {', '.join(missing)}", hint="pip install 'liuyi[crawl]'")
    from liuyi import __version__
    from liuyi.data.corpus import write_found
    from liuyi.data.sources.crawl.crawler import Crawler, Plan
    from liuyi.data.sources.crawl.output import keep_evidence, read_crawl
    from liuyi.data.sources.extract import check_extractor
    from liuyi.data.sources.files import Reading

    check_extractor(params.extractor)
    named = {"start", "hosts", "sitemaps", "max_pages", "max_pages_per_host", "max_depth", "delay_s", "per_host"}
    plan = Plan(
        **params.model_dump(include=named | {"concurrency", "timeout_s", "allow_networks"}),
        max_page_bytes=int(params.max_page_mb * 1e6),
        max_bytes=int(params.max_mb * 1e6),
        user_agent=f"liuyi/{__version__} (crawler" + (f"; +{params.contact})" if params.contact else ")"),
    )
    crawler = Crawler(
        plan,
        ctx.workdir / "crawl",
        on_page=lambda pages: ctx.progress(min(pages, plan.max_pages), plan.max_pages, "pages"),
    )
    crawler.run()
    reading = Reading(license=params.license, extractor=params.extractor, longest=plan.max_page_bytes)
    with ctx.output("corpus") as out:
        written = write_found(out.path, read_crawl(crawler, keep_evidence(crawler, out.path), reading))
        if not written.documents:
            raise DataError("no page could be kept", where=params.start[0], hint=str(written.first_rejected))
        out.metrics.update(documents=written.documents, bytes=written.bytes, rejected=written.rejected)
        out.licences.update(written.licences)
    crawler.frontier.close()
    ctx.log(written.summary())
