"""Licences from metadata and from their own texts."""

from __future__ import annotations

from email.message import Message
from importlib.metadata import distribution

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.licences import UNKNOWN, from_metadata, from_name, from_text
from liuyi.data.sources.distributions import chosen
from liuyi.data.spdx import allows

MIT = "Permission is hereby granted, free of charge, to any person … The above copyright notice and this permission"
BSD = "Redistribution and use in source and binary forms, with or\nwithout modification … "


def stated(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("name", "spdx"),
    [
        ("MIT", "MIT"),
        ("MIT License", "MIT"),
        ("Apache 2.0", "Apache-2.0"),
        ("Apache Software License", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache License 1.1", UNKNOWN),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("2-clause BSD", "BSD-2-Clause"),
        ("BSD", UNKNOWN),
        ("ISC License (ISCL)", "ISC"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("GNU General Public License v3 (GPLv3)", "GPL-3.0-only"),
        ("MPL-2.0 AND MIT", "MPL-2.0 AND MIT"),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", "(MIT OR Apache-2.0) AND BSD-3-Clause"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("apache-2.0", "Apache-2.0"),
        ("MIT/X11", "MIT"),
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL v3", "GPL-3.0-only"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("lgpl-3.0-only", "LGPL-3.0-only"),
        ("GFDL-1.3+", "GFDL-1.3-or-later"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("CC BY-NC-ND 3.0", "CC-BY-NC-ND-3.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "CC-BY-SA-4.0"),
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC-BY-SA-4.0"),
        ("http://www.apache.org/licenses/LICENSE-2.0", "Apache-2.0"),
        ("Other/Proprietary License", UNKNOWN),
        ("see LICENSE file AND more", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_names(name: str, spdx: str) -> None:
    assert from_name(name) == spdx


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        (MIT, "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD + "Neither the name of the holder", "BSD-3-Clause"),
        (BSD + "Neither the name of the holder\n" + "bundled: " * 500 + MIT, "BSD-3-Clause"),
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("Redis is good.", UNKNOWN),
    ],
)
def test_texts(text: str, spdx: str) -> None:
    assert from_text(text) == spdx


def test_order_of_evidence() -> None:
    assert from_metadata(stated(License_Expression="MIT OR  Apache-2.0", License="BSD")) == "MIT OR Apache-2.0"
    mpl = "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"
    assert from_metadata(stated(License="MIT", Classifier=mpl)) == "MIT"
    assert from_metadata(stated(Classifier=["Programming Language :: Python", mpl])) == "MPL-2.0"
    both = [mpl, "License :: OSI Approved :: MIT License"]
    assert from_metadata(stated(Classifier=both)) == "MIT AND MPL-2.0"
    bsd = "License :: OSI Approved :: BSD License"
    assert from_metadata(stated(License="BSD", Classifier=bsd), BSD + "neither the name") == "BSD-3-Clause"
    assert from_metadata(stated(License=BSD), "") == "BSD-2-Clause"
    assert from_metadata(stated()) == UNKNOWN


def test_what_is_installed_here() -> None:
    known = {one.name: one.licence for one in chosen(include=("python", "numpy", "scipy", "click", "pyyaml", "jinja2"))}
    assert known["python"] == "PSF-2.0"
    assert known["scipy"] == known["jinja2"] == known["click"] == "BSD-3-Clause"
    assert known["pyyaml"] == "MIT"
    assert known["numpy"] == (distribution("numpy").metadata.get("License-Expression") or "BSD-3-Clause")


@pytest.mark.parametrize(
    ("expression", "allowed", "expected"),
    [
        ("MIT", ("MIT",), True),
        ("mit license", ("MIT",), True),
        ("MIT", ("Apache 2.0",), False),
        ("Apache-2.0", ("Apache 2.0",), True),
        ("(MIT OR Apache-2.0)", ("Apache-2.0",), True),
        pytest.param("(" * 5000 + "MIT" + ")" * 5000, ("MIT",), False, id="nested without end"),
        pytest.param(" OR ".join(["GPL-3.0-only"] * 100_000), ("MIT",), False, id="long"),
        ("(GPL-3.0-only MIT OR MIT", ("MIT",), False),
        ("MIT AND GPL-3.0-only", ("MIT",), False),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", ("MIT", "BSD-*"), True),
        ("MIT OR GPL-3.0-only AND BSD-3-Clause", ("GPL-3.0-only",), False),
        ("MIT OR GPL-3.0-only AND BSD-3-Clause", ("GPL-3.0-only", "bsd-*"), True),
        ("Apache-2.0 WITH LLVM-exception", ("Apache-2.0",), True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("GPL-2.0-only WITH Classpath-exception-2.0",), True),
        ("CC-BY-4.0", ("CC-BY-?.?",), True),
        ("CC-BY-NC-4.0", ("CC-BY-?.?",), False),
        ("unknown", ("MIT", "*-BY-*"), False),
        ("unknown", ("unknown",), True),
        (" AND ".join(["BSD-3-Clause", "Apache-2.0"] * 5), ("Apache-2.0", "BSD-3-Clause"), True),
        (" AND ".join(["BSD-3-Clause", "Apache-2.0"] * 5), ("Apache-2.0",), False),
        ("see LICENSE", ("MIT",), False),
        ("house terms 7", ("house terms 7",), True),
        ("", ("MIT",), False),
    ],
)
def test_what_a_list_allows(expression: str, allowed: tuple[str, ...], expected: bool) -> None:
    assert allows(allowed, expression) is expected


LICENCES = ("MIT", "ISC", "Zlib")
EXPRESSIONS = st.recursive(
    st.sampled_from(LICENCES),
    lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda parts: f"({' '.join(parts)})"),
    max_leaves=5,
)


@settings(deadline=None)
@given(EXPRESSIONS, st.sets(st.sampled_from(LICENCES)))
def test_expressions_as_python_evaluates_them(expression: str, allowed: set[str]) -> None:
    names = {name: name in allowed for name in LICENCES}
    expected = eval(expression.replace("AND", "and").replace("OR", "or"), {}, names)
    assert allows(tuple(allowed), expression) is expected
