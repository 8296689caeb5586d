"""Manual pages come out as `man` shows them, whatever macros they are written with."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_support import run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.corpus import REJECTED, read_documents
from liuyi.data.sources.man import is_man_page, man_text

PAGE = r"""'\" t
.\" A comment.
.TH SIEVE 1 2024\-01\-01 "tools 1.0"
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.am URL
.    ad l
.  .
.de XX
this is no text
..
.SH NAME
sieve \- pass on lines
.SH "SYNOPSIS AND MORE"
.B sieve
.RI [ \-iv ]
.BR \-n " \fIcount\fP"
.SH DESCRIPTION
The first line
and the second, with \fBbold\fR and \f[I]italics\f[R].\" not this
.PP
A new paragraph: \(lqquoted\(rq, it\(aqs 5\(mu3, \e and a\-b.
.TP
.B \-i
Ignore case.
.IP \(bu 2
A point.
.nf
  x = "\\n"   # kept
.B y
.fi
.TS
tab(	);
lb lb
l l.
name	value
_
one	1
.TE
.SS 中文
第一行
第二行
English
third
"""

TEXT = """# NAME

sieve - pass on lines

# SYNOPSIS AND MORE

sieve [-iv] -n count

# DESCRIPTION

The first line and the second, with bold and italics.

A new paragraph: “quoted”, it's 5×3, \\ and a-b.

-i

Ignore case.

•

A point.

```
  x = "\\n"   # kept
y
```

| name | value |
| one | 1 |

## 中文

第一行第二行 English third"""

MDOC = r""".Dd January 1, 2024
.Dt TIDE 1
.Os
.Sh NAME
.Nm tide
.Nd tell the tide
.Sh SYNOPSIS
.Nm tide
.Op Fl hv
.Op Fl f Ar file
.Sh DESCRIPTION
See
.Xr moon 1
.Bl -tag -width Ds
.It Fl h
Help.
.El
"""


def test_a_page_of_man_macros() -> None:
    assert man_text(PAGE) == TEXT


def test_a_page_of_mdoc_macros() -> None:
    assert man_text(MDOC) == (
        "# NAME\n\ntide — tell the tide\n\n# SYNOPSIS\n\ntide -hv -f file\n\n# DESCRIPTION\n\nSee moon 1\n\n-h\n\nHelp."
    )


@pytest.mark.parametrize(
    ("name", "is_page"),
    [
        ("/usr/share/man/man1/ls.1.gz", True),
        ("zh_CN/man5/fstab.5", True),
        ("man3/Foo::Bar.3pm.gz", True),
        ("docs/release-1.1", False),
        ("man1/readme.txt", False),
        ("manual/ls.1", False),
    ],
)
def test_names(name: str, is_page: bool) -> None:
    assert is_man_page(name) == is_page


def test_manual_pages_as_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "zh_CN/man1"
    folder.mkdir(parents=True)
    (folder / "sieve.1.gz").write_bytes(gzip.compress(PAGE.encode()))
    (folder / "alias.1.gz").write_bytes(gzip.compress(b".so man1/sieve.1\n"))
    (folder / "none.1").write_text("words without a macro\n")
    made = run_step("data.files", tmp_path / "out", path=tmp_path / "zh_CN", license="GFDL-1.3-or-later").made["corpus"]
    (row,) = read_documents(made.path).to_pylist()
    assert (row["url"], row["text"]) == ("man1/sieve.1.gz", TEXT + "\n")
    rejected = {one["file"]: one["reason"] for one in pq.read_table(made.file(REJECTED)).to_pylist()}
    assert rejected == {"man1/alias.1.gz": "points to another manual page", "man1/none.1": "no text in it"}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.sampled_from(".'\\\"fB(lq[] SHTPnaé中\t"), max_size=20), max_size=12))
def test_any_source_gives_text(lines: list[str]) -> None:
    assert isinstance(man_text("\n".join(lines)), str)
