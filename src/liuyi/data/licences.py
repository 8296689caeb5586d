"""Licences as short SPDX-like expressions, from package metadata or from a licence's own text."""

from __future__ import annotations

import re
from email.message import Message
from typing import Protocol

UNKNOWN = "unknown"

_LONGEST_NAME = 80
_LONGEST_TEXT = 50_000
_PHRASES_WITHIN = 3000

_NAMES: tuple[tuple[str, str], ...] = (
    (r"apache(?: software)?(?: license)?,?(?: version)?[ -]*v?(?:2(?:\.0)?)?(?: license)?", "Apache-2.0"),
    (r"(?:the )?(?:expat|mit|mit/x11|x11/mit)(?: license)?(?: \(mit\))?", "MIT"),
    (r"mit[- ]0|mit no attribution license(?: \(mit-0\))?", "MIT-0"),
    (
        r"(?:the )?(?:new|modified|revised|3-clause|bsd-?3)[ -]*(?:bsd|clause)?(?: license)?|bsd[ -]3[ -]clause.*",
        "BSD-3-Clause",
    ),
    (r"(?:simplified|freebsd|2-clause|bsd-?2)[ -]*(?:bsd|clause)?(?: license)?|bsd[ -]2[ -]clause.*", "BSD-2-Clause"),
    (r"0bsd|zero[- ]clause bsd.*", "0BSD"),
    (r"isc(?: license)?(?: \(iscl\))?", "ISC"),
    (r"(?:mozilla public license|mpl)[ -]*v?2(?:\.0)?(?: \(mpl 2\.0\))?", "MPL-2.0"),
    (r"(?:python software foundation|psf)(?: license)?(?:[ -]2\.0)?", "PSF-2.0"),
    (r"(?:the )?unlicense(?: \(unlicense\))?", "Unlicense"),
    (r"zlib(?:/libpng)?(?: license)?", "Zlib"),
    (r"boost software license 1\.0(?: \(bsl-1\.0\))?|bsl-1\.0", "BSL-1.0"),
    (r"cc0.*|creative commons zero.*", "CC0-1.0"),
    (r"(?:https?://)?(?:www\.)?apache\.org/licenses/license-2\.0(?:\.(?:html|txt))?", "Apache-2.0"),
    (r"(?:https?://)?(?:www\.)?opensource\.org/licenses?/mit/?", "MIT"),
    (r"odc[ -]by(?:[ -]1\.0)?", "ODC-By-1.0"),
    (r"odbl(?:[ -]1\.0)?", "ODbL-1.0"),
    (r"eupl[ -]1\.2", "EUPL-1.2"),
    (r"public[ -]domain", "LicenseRef-Public-Domain"),
    (r"gnu lesser general public license v3 (?:\(lgplv3\))?", "LGPL-3.0-only"),
    (r"gnu lesser general public license v3 or later \(lgplv3\+\)", "LGPL-3.0-or-later"),
    (r"gnu lesser general public license v2 or later \(lgplv2\+\)", "LGPL-2.0-or-later"),
    (r"gnu library or lesser general public license \(lgpl\)|lgpl", "LGPL-2.0-or-later"),
    (r"gnu general public license v3 \(gplv3\)|gplv3", "GPL-3.0-only"),
    (r"gnu general public license v3 or later \(gplv3\+\)|gplv3\+", "GPL-3.0-or-later"),
    (r"gnu general public license v2 \(gplv2\)|gplv2", "GPL-2.0-only"),
    (r"gnu general public license v2 or later \(gplv2\+\)|gplv2\+", "GPL-2.0-or-later"),
    (r"gnu affero general public license v3(?: \(agplv3\))?", "AGPL-3.0-only"),
    (r"gnu affero general public license v3 or later.*", "AGPL-3.0-or-later"),
)
_CREATIVE_COMMONS = re.compile(
    r"(?:https?://)?(?:www\.)?creativecommons\.org/licenses/(?P<terms>by(?:-(?:nc|sa|nd))*)/(?P<version>\d\.\d).*"
    r"|(?:creative commons |cc)[ -]?(?P<words>(?:by|attribution)(?:[ -](?:nc|sa|nd|non-?commercial|share-?alike"
    r"|no ?deriv(?:ative)?s?))*)[ -]?v?(?P<number>\d\.\d)(?: (?:international|unported|generic|deed))*",
    re.IGNORECASE,
)
_GNU = re.compile(
    r"(?:gnu )?(?P<kind>agpl|lgpl|gpl|gfdl|fdl)[ -]?v?(?P<version>\d(?:\.\d)?)"
    r"(?P<later>\+| or later|-or-later)?(?:-only)?",
    re.IGNORECASE,
)
_SPELT_RIGHT = {
    name.casefold(): name
    for name in (
        "0BSD", "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause",
        "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0", "EPL-2.0", "EUPL-1.2", "ISC", "MIT", "MIT-0",
        "MPL-2.0", "MS-PL", "ODbL-1.0", "ODC-By-1.0", "OFL-1.1", "PSF-2.0", "Python-2.0", "Unlicense", "WTFPL", "Zlib",
    )
}  # fmt: skip
_IDENTIFIER = re.compile(
    r"(?:[A-Za-z]+-)*[A-Za-z]+-\d[\w.]*(?:-(?:only|or-later|Clause))?|MIT(?:-0)?|ISC|Zlib|Unlicense|0BSD|LicenseRef-[\w.-]+|LLVM-exception"
)
_OPERATOR = re.compile(r"\(|\)| (?:AND|OR|WITH) ")

_TEXTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("apache license", "version 2.0"), "Apache-2.0"),
    (("mozilla public license", "2.0"), "MPL-2.0"),
    (("gnu affero general public license", "version 3"), "AGPL-3.0-only"),
    (("gnu lesser general public license", "version 3"), "LGPL-3.0-only"),
    (("gnu lesser general public license", "version 2.1"), "LGPL-2.1-only"),
    (("gnu general public license", "version 3"), "GPL-3.0-only"),
    (("gnu general public license", "version 2"), "GPL-2.0-only"),
    (("redistribution and use in source and binary forms", "neither the name"), "BSD-3-Clause"),
    (("redistribution and use in source and binary forms", "may not be used to endorse"), "BSD-3-Clause"),
    (("redistribution and use in source and binary forms",), "BSD-2-Clause"),
    (("permission is hereby granted, free of charge", "the above copyright notice"), "MIT"),
    (("permission to use, copy, modify, and/or distribute this software",), "ISC"),
    (("python software foundation license",), "PSF-2.0"),
    (("this is free and unencumbered software",), "Unlicense"),
)


class Metadata(Protocol):
    """The part of `importlib.metadata.PackageMetadata` that is needed here."""

    def get_all(self, name: str, failobj: None = None) -> list[str] | None: ...


def from_name(name: str) -> str:
    """The SPDX identifier (or expression) that a licence's name means; `unknown` where it is not clear.

    >>> from_name("Apache License 2.0"), from_name("3-Clause BSD License"), from_name("Other/Proprietary")
    ('Apache-2.0', 'BSD-3-Clause', 'unknown')
    """
    name = " ".join(name.split())
    if not name or len(name) > _LONGEST_NAME:
        return UNKNOWN
    known = _SPELT_RIGHT.get(name.casefold()) or _creative_commons(name) or _gnu(name)
    if known:
        return known
    if all(_IDENTIFIER.fullmatch(part.strip()) for part in _OPERATOR.split(name) if part.strip()):
        return name
    for pattern, spdx in _NAMES:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return spdx
    return UNKNOWN


def _creative_commons(name: str) -> str:
    match = _CREATIVE_COMMONS.fullmatch(name)
    if not match:
        return ""
    said = re.sub(r"[ -]", "", (match["terms"] or match["words"]).lower())
    terms = {"BY": "", "NC": "nc", "SA": "sa|sharealike", "ND": "nd|noderiv"}
    named = "-".join(term for term, forms in terms.items() if re.search(forms, said))
    return f"CC-{named}-{match['version'] or match['number']}"


def _gnu(name: str) -> str:
    """Names as Debian and people write them: `GPL-2+`, `LGPL v2.1`, `GFDL-1.3+`; empty where it is none."""
    match = _GNU.fullmatch(name)
    if not match:
        return ""
    kind = {"FDL": "GFDL"}.get(match["kind"].upper(), match["kind"].upper())
    version = match["version"] if "." in match["version"] else f"{match['version']}.0"
    return f"{kind}-{version}-{'or-later' if match['later'] else 'only'}"


def from_text(text: str) -> str:
    """The licence whose text this is, by its standing phrases; `unknown` where none fits.

    A file that holds several licences is known by the one that comes first.
    """
    text = " ".join(text[:_LONGEST_TEXT].lower().split())
    found = []
    for (lead, *others), spdx in _TEXTS:
        start = text.find(lead)
        if start >= 0 and all(text.find(other, start, start + _PHRASES_WITHIN) >= 0 for other in others):
            found.append((start, -len(others), spdx))
    return min(found)[2] if found else UNKNOWN


def from_metadata(metadata: Metadata | Message, licence_text: str = "") -> str:
    """The licence of a distribution: `License-Expression`, else `License`, else its classifiers, else its licence file.

    Several classifiers are joined by AND: it is not said whether one of them is enough.
    """
    stated = _first(metadata, "License-Expression")
    if stated:
        return " ".join(stated.split())
    found = from_name(_first(metadata, "License"))
    if found != UNKNOWN:
        return found
    classified = set()
    for classifier in metadata.get_all("Classifier") or []:
        if classifier.startswith("License :: "):
            classified.add(from_name(classifier.rsplit("::", 1)[-1].strip()))
    if classified - {UNKNOWN}:
        return " AND ".join(sorted(classified - {UNKNOWN}))
    found = from_text(_first(metadata, "License"))
    return found if found != UNKNOWN else from_text(licence_text)


def _first(metadata: Metadata | Message, name: str) -> str:
    values = metadata.get_all(name)
    return values[0] if values else ""
