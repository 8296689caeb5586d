"""Documentation of Debian packages, as they install it under `/usr/share/doc`, with the licence of each package."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from liuyi.core.errors import DataError, did_you_mean
from liuyi.data import licences
from liuyi.data.corpus import Document, Rejected, document_id
from liuyi.data.sources.files import HTML, TEXT, Reading, read_files
from liuyi.data.sources.location import SourceFile
from liuyi.data.sources.stream import suffixes
from liuyi.data.text import decode

DOC = Path("/usr/share/doc")
STATUS = Path("/var/lib/dpkg/status")

_PROSE = re.compile(
    r"(?:readme|news|faq|notes|howto|guide|manual|tutorial|overview|introduction|install)\b.*", re.IGNORECASE
)
_LISTS = re.compile(
    r"(?:copyright|changelog|changes|authors|thanks|contributors|todo|index)\b.*|.*\.docs\b.*", re.IGNORECASE
)
_STANZA = re.compile(r"\n[ \t]*\n")
_FIELD = re.compile(r"^(Files|License):[ \t]*(.*)$", re.MULTILINE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z]+(?:-\d+(?:\.\d+)*)?)")
_GNU = re.compile(r"(A?GPL|LGPL|GFDL)-(\d(?:\.\d)?)(\+)?(?:-only|-or-later)?", re.IGNORECASE)
_SHORT = {
    "expat": "MIT",
    "mit": "MIT",
    "x11": "X11",
    "isc": "ISC",
    "zlib": "Zlib",
    "artistic": "Artistic-1.0-Perl",
    "artistic-2.0": "Artistic-2.0",
    "apache-2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "mpl-2.0": "MPL-2.0",
    "mpl-1.1": "MPL-1.1",
    "psf-2": "PSF-2.0",
    "psf-2.0": "PSF-2.0",
    "python": "PSF-2.0",
    "public-domain": "LicenseRef-Public-Domain",
    "unlicense": "Unlicense",
}


@dataclass(frozen=True)
class Package:
    """An installed package's folder of documentation."""

    name: str
    version: str
    licence: str
    files: tuple[SourceFile, ...]
    """Texts and web pages, compressed or not, in the order of their paths; lists of changes and names left out."""

    def url(self, path: str) -> str:
        """The package URL (purl) of a file."""
        return f"pkg:deb/debian/{self.name}@{self.version}#{path}"


def find_packages(
    root: Path = DOC, include: Sequence[str] = (), exclude: Sequence[str] = (), status: Path = STATUS
) -> list[Package]:
    """The packages that have something to read, by name; only those of `include` if any are named, none of `exclude`.

    Raises DataError with the nearest name for one that is not there.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    for name in (*include, *exclude):
        if name not in names:
            raise DataError(f"there is no package '{name}'", where=str(root), hint=did_you_mean(name, names))
    wanted = (set(include) or set(names)) - set(exclude)
    versions = _versions(status)
    found = [_package(root / name, versions.get(name, "")) for name in names if name in wanted]
    return [package for package in found if package.files]


def read_packages(
    packages: Sequence[Package],
    reading: Reading,
    *,
    workers: int | None = None,
    on_file: Callable[[int], None] = lambda done: None,
) -> Iterator[Document | Rejected]:
    """The documents of the packages; their source and cluster is the package, their licence the package's."""
    by_name = {package.name: package for package in packages}
    files = [file for package in packages for file in package.files]
    for found in read_files(files, "", reading, workers=workers, on_file=on_file):
        if isinstance(found, Rejected):
            yield found
            continue
        name, _, path = found.url.partition("/")
        package = by_name[name]
        yield replace(
            found,
            id=document_id(name, path, found.text),
            source=name,
            url=package.url(path),
            license=package.licence,
            cluster=name,
        )


def copyright_licence(text: str) -> str:
    """The licence that a Debian copyright file states: the one of all files in the machine-readable form, else that of
    its text, else the one common licence it points to; `unknown` where it is not clear.

    >>> copyright_licence("Format: x\\n\\nFiles: *\\nCopyright: me\\nLicense: GPL-2+ or Expat")
    'GPL-2.0-or-later OR MIT'
    """
    if text.startswith("Format"):
        for stanza in _STANZA.split(text):
            fields = {name: value.strip() for name, value in _FIELD.findall(stanza)}
            if "*" in fields.get("Files", "").split() and fields.get("License"):
                return from_short_name(fields["License"])
    later = "any later version" in " ".join(text.split())
    found = licences.from_text(text)
    named = set(_COMMON.findall(text))
    if found == licences.UNKNOWN and len(named) == 1:
        return from_short_name(named.pop() + ("+" if later else ""))
    return found.replace("-only", "-or-later") if later else found


def from_short_name(name: str) -> str:
    """The SPDX expression of a licence's short name in Debian, such as `GPL-2+ or Expat`; `unknown` for other names."""
    parts = re.split(r"\s+(and/or|and|or)\s+", name.replace(",", ""), flags=re.IGNORECASE)
    words = [_operator(part) if number % 2 else _spdx(part) for number, part in enumerate(parts)]
    return licences.UNKNOWN if licences.UNKNOWN in words else " ".join(words)


def _operator(word: str) -> str:
    return "AND" if word.lower() == "and" else "OR"


def _spdx(name: str) -> str:
    if name.lower() in _SHORT:
        return _SHORT[name.lower()]
    gnu = _GNU.fullmatch(name)
    if gnu:
        version = gnu[2] if "." in gnu[2] else f"{gnu[2]}.0"
        return f"{gnu[1].upper()}-{version}-{'or-later' if gnu[3] or 'later' in name else 'only'}"
    return licences.from_name(name)


def _package(folder: Path, version: str) -> Package:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"examples", "_sources", "_static"})
        for name in sorted(names):
            path = Path(parent, name)
            kind = _kind(name)
            if kind and path.is_file():
                inner = path.relative_to(folder.parent).as_posix()
                files.append(SourceFile(inner, str(path), path.stat().st_size, kind))
    return Package(folder.name, version, _licence(folder), tuple(sorted(files, key=lambda file: file.name)))


def _kind(name: str) -> str:
    """The suffix of the format that a file is in; empty for what is not read."""
    kind, packing = suffixes(name)
    bare = name.removesuffix(packing)
    if _LISTS.fullmatch(bare) and kind not in HTML:
        return ""
    if kind in TEXT | HTML:
        return kind
    return ".txt" if kind in ("", ".debian") and _PROSE.fullmatch(bare) else ""


def _licence(folder: Path) -> str:
    try:
        return copyright_licence(decode((folder / "copyright").read_bytes()))
    except (OSError, DataError):
        return licences.UNKNOWN


def _versions(status: Path) -> dict[str, str]:
    """Versions of the installed packages; none where the list cannot be read."""
    try:
        text = status.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", text, re.MULTILINE))
