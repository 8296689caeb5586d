"""The installed distributions and the standard library as sets of files, with name, version and licence."""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from liuyi.core.errors import DataError, did_you_mean
from liuyi.data import licences

STANDARD_LIBRARY = "python"

_PYTHON = (".py", ".pyi")
_TEXT = (".rst", ".md", ".txt")
_TESTS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
_LISTS = re.compile(r"(?:top_level|entry_points|requires|sources|dependency_links|requirements[\w-]*|cmakelists)\.txt")
_LICENCE_FILE = re.compile(r"(?:licen[cs]e|copying|notice)[\w.-]*", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    """One file that may hold documentation: its path inside the distribution, and where it lies."""

    path: str
    location: str
    bytes: int

    @property
    def is_python(self) -> bool:
        return self.path.endswith(_PYTHON)


@dataclass(frozen=True)
class Distribution:
    """A set of files that share a name, a version and a licence."""

    name: str
    version: str
    licence: str
    readme: str
    """The long description of the package metadata; may be empty."""
    files: tuple[SourceFile, ...]
    """Python and text files in the order of their paths, tests and lists of names left out."""

    def url(self, path: str) -> str:
        """The package URL (purl) of a file: which distribution, which version, which path."""
        kind = "generic" if self.name == STANDARD_LIBRARY else "pypi"
        return f"pkg:{kind}/{self.name}@{self.version}#{path}"


def chosen(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Distribution]:
    """The standard library and what is installed, by name: only those of `include` if any are named, none of `exclude`.

    Raises DataError with the nearest name for one that is not there.
    """
    found = _by_name()
    known = {STANDARD_LIBRARY, *found}
    for name in (*include, *exclude):
        if canonical(name) not in known:
            raise DataError(f"no distribution '{name}' is installed", hint=did_you_mean(name, known))
    wanted = (set(map(canonical, include)) or known) - set(map(canonical, exclude))
    library = [standard_library()] if STANDARD_LIBRARY in wanted else []
    return library + [_read(name, distribution) for name, distribution in found.items() if name in wanted]


def versions() -> list[str]:
    """`name==version` of the interpreter and of everything installed, in the order of names."""
    python = f"{STANDARD_LIBRARY}=={platform.python_version()}"
    return [python, *(f"{name}=={distribution.version}" for name, distribution in _by_name().items())]


def installed(search: Sequence[str] | None = None) -> Iterator[Distribution]:
    """The distributions found on `search` (default `sys.path`), in the order of their names.

    Where one name is found twice, the first on the path counts, as for the interpreter.
    """
    for name, distribution in _by_name(search).items():
        yield _read(name, distribution)


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _by_name(search: Sequence[str] | None = None) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=list(sys.path if search is None else search)):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonical(name), distribution)
    return dict(sorted(found.items()))


def standard_library(folder: Path | None = None) -> Distribution:
    """The standard library of the running interpreter, as the distribution `python`."""
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _TESTS)
        for name in sorted(names):
            found = _source_file(Path(parent, name).relative_to(root).as_posix(), Path(parent, name))
            if found:
                files.append(found)
    return Distribution(
        STANDARD_LIBRARY, platform.python_version(), "PSF-2.0", "", tuple(sorted(files, key=lambda file: file.path))
    )


def _read(name: str, distribution: metadata.Distribution) -> Distribution:
    files: dict[str, SourceFile] = {}
    licence_text = ""
    for entry in distribution.files or ():
        path = PurePosixPath(entry.as_posix())
        location = Path(str(distribution.locate_file(entry)))
        if not licence_text and _LICENCE_FILE.fullmatch(path.name) and path.suffix not in _PYTHON:
            licence_text = _text_of(location)
        found = _source_file(str(path), location)
        if found:
            files.setdefault(found.path, found)
    about = distribution.metadata
    readme = (about.get_all("Description") or [""])[0]
    return Distribution(
        name,
        distribution.version,
        licences.from_metadata(about, licence_text),
        readme,
        tuple(sorted(files.values(), key=lambda file: file.path)),
    )


def _source_file(path: str, location: Path) -> SourceFile | None:
    parts = PurePosixPath(path).parts
    if not path.endswith(_PYTHON + _TEXT) or _TESTS.intersection(parts[:-1]) or ".." in parts:
        return None
    if path.endswith(".txt") and _LISTS.fullmatch(parts[-1].lower()):
        return None
    try:
        return SourceFile(path, str(location), location.stat().st_size) if location.is_file() else None
    except OSError:  # a link that leads to itself, or a file this user may not see
        return None


def _text_of(location: Path) -> str:
    try:
        return location.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
