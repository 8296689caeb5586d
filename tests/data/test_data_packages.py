"""Documentation of Debian packages, and data sets of the hub: found, read, licensed, and refused with a reason."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from data_support import run_step

from liuyi.core.errors import DataError
from liuyi.data.corpus import REJECTED, read_documents
from liuyi.data.sources.debian import copyright_licence, find_packages, from_short_name

MACHINE = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: tide

Files: *
Copyright: 2001 A. Miller
License: GPL-2+

Files: debian/*
Copyright: 2010 B. Packager
License: Expat
"""


@pytest.fixture
def doc(tmp_path: Path) -> Path:
    root = tmp_path / "doc"
    files: dict[str, bytes] = {
        "tide/copyright": MACHINE.encode(),
        "tide/README.gz": gzip.compress(b"How to read the tides.\n"),
        "tide/README.Debian": b"Notes of the packager.\n",
        "tide/NEWS.Debian.gz": gzip.compress(b"tide (2.0): the tables are new.\n"),
        "tide/changelog.gz": gzip.compress(b"Tue: fixed\n"),
        "tide/AUTHORS": b"A. Miller\n",
        "tide/manual.pdf.gz": b"%PDF",
        "tide/tide.png": b"\x89PNG",
        "tide/html/index.html": b"<body><p>The manual.</p></body>",
        "tide/examples/demo.txt": b"1 2 3\n",
        "wind/copyright": b"Version 2.1 or any later version: see /usr/share/common-licenses/LGPL-2.1.",
        "wind/guide.zh.txt": "风从哪里来。\n".encode("gbk") * 4,
        "wind/broken.txt.gz": b"not gzip",
        "empty/copyright": b"unclear",
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "tide-dev").symlink_to("tide", target_is_directory=True)
    return root


def test_debian_documentation(doc: Path, tmp_path: Path) -> None:
    made = run_step("data.debian_docs", tmp_path / "out", folder=doc, extractor="plain").made["corpus"]
    rows = {row["url"]: row for row in read_documents(made.path).to_pylist()}
    assert {url.removeprefix("pkg:deb/debian/"): row["text"] for url, row in rows.items()} == {
        "tide@#NEWS.Debian.gz": "tide (2.0): the tables are new.\n",
        "tide@#README.Debian": "Notes of the packager.\n",
        "tide@#README.gz": "How to read the tides.\n",
        "tide@#html/index.html": "The manual.\n",
        "wind@#guide.zh.txt": "风从哪里来。\n" * 4,
    }
    assert {(row["source"], row["cluster"], row["license"]) for row in rows.values()} == {
        ("tide", "tide", "GPL-2.0-or-later"),
        ("wind", "wind", "LGPL-2.1-or-later"),
    }
    (wrong,) = pq.read_table(made.file(REJECTED)).to_pylist()
    assert wrong["file"] == "wind/broken.txt.gz"
    again = run_step("data.debian_docs", tmp_path / "one", folder=doc, extractor="plain", include=("wind",))
    assert len(read_documents(again.made["corpus"].path)) == 1
    with pytest.raises(DataError, match="no package 'tidde'") as caught:
        find_packages(doc, include=("tidde",))
    assert "tide" in caught.value.hint


def test_versions_come_from_the_list_of_packages(doc: Path, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Package: wind\nStatus: installed\nVersion: 1:0.9-2\n\n"
        "Package: tide\nArchitecture: all\nVersion: 2.0-1\nDepends: x\n"
    )
    found = {package.name: package for package in find_packages(doc, status=status)}
    assert found["tide"].url("README.gz") == "pkg:deb/debian/tide@2.0-1#README.gz"
    assert found["wind"].version == "1:0.9-2"


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("GPL-1+ or Artistic", "GPL-1.0-or-later OR Artistic-1.0-Perl"),
        ("Expat and BSD-3-clause", "MIT AND BSD-3-Clause"),
        ("GFDL-1.3+", "GFDL-1.3-or-later"),
        ("permissive-and-odd", "unknown"),
        ("GPL-3+ and permissive-odd thing", "unknown"),
    ],
)
def test_short_names(name: str, licence: str) -> None:
    assert from_short_name(name) == licence


def test_copyright_files() -> None:
    assert copyright_licence(MACHINE) == "GPL-2.0-or-later"
    assert copyright_licence(MACHINE.replace("Files: *", "Files: src/*")) == "unknown"
    assert copyright_licence("See /usr/share/common-licenses/GPL-3 for it.") == "GPL-3.0-only"
    both = "See /usr/share/common-licenses/GPL-3 and /usr/share/common-licenses/LGPL-3."
    assert copyright_licence(both) == "unknown"
    gpl = "under the terms of the GNU General Public License as published; either version 2 or any later version."
    assert copyright_licence(gpl) == "GPL-2.0-or-later"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub lays it out, in a folder; nothing is asked of the network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tides"
    folder.mkdir()
    lines = [json.dumps({"text": f"row {n}", "lang": "en", "other": n}) for n in range(50)]
    lines[7] = json.dumps({"text": None, "lang": "en", "other": 7})
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text(json.dumps({"text": "held out", "lang": "en", "other": 0}))
    return folder


def test_a_dataset_of_the_hub(hub: Path, tmp_path: Path) -> None:
    bench = run_step("data.huggingface", tmp_path / "out", dataset=str(hub), license="CC0-1.0", revision="")
    made = bench.made["corpus"]
    rows = read_documents(made.path).to_pylist()
    assert len(rows) == 49
    assert rows[0]["url"] == f"hf://datasets/{hub}@main/train#1"
    assert {(row["license"], row["lang"], row["source"]) for row in rows} == {("CC0-1.0", "en", str(hub))}
    (wrong,) = pq.read_table(made.file(REJECTED)).to_pylist()
    assert (wrong["line"], wrong["reason"]) == (8, "'text' is missing")
    some = run_step("data.huggingface", tmp_path / "some", dataset=str(hub), max_rows=3).made["corpus"]
    assert [row["text"] for row in read_documents(some.path).to_pylist()] == ["row 0\n", "row 1\n", "row 2\n"]


def test_datasets_that_cannot_be_read(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**params: Any) -> str:
        with pytest.raises(DataError) as caught:
            run_step("data.huggingface", tmp_path / str(len(list(tmp_path.iterdir()))), **params)
        return str(caught.value)

    assert "no field 'txt'" in refuse(dataset=str(hub), text_field="txt")
    assert "cannot be opened" in refuse(dataset=str(hub), split="nosuch")
    assert "cannot be opened" in refuse(dataset=str(hub / "nowhere"))

    def breaks(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the hub is away\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", breaks)
        said = refuse(dataset="someone/something")
        assert "the hub is away" in said
        assert "network" in said
    (hub / "train.jsonl").write_text('{"text": "one"}\n{"text": broken')
    assert "breaks off" in refuse(dataset=str(hub)) or "cannot be opened" in refuse(dataset=str(hub))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "liuyi[datasets]" in refuse(dataset="someone/something")
