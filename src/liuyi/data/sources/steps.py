"""Where sources of data meet the spine: their steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Output, Params, step
from liuyi.data.sources.location import Location, remote_version


class FilesParams(Params):
    path: Location = Field(
        description="a folder, a file, or a URL that fsspec opens; txt, md, rst, html, json, jsonl, csv, tsv, parquet, "
        "docx, pdf, warc, also as gz, zst, xz and bz2"
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
