"""Where files lie: a path on this machine, or a URL that `fsspec` opens (`s3://…`, `https://…`, `memory://…`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SerializationInfo, ValidationInfo

from liuyi.core.digest import readable_name, sha256_json, sha256_tree
from liuyi.core.errors import DataError
from liuyi.core.secrets import hide_secrets_in, without_secrets

_VERSION_FIELDS = ("ETag", "etag", "md5", "md5Hash", "checksum", "LastModified", "last_modified", "mtime", "created")
_FETCHED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file to read: its path below the root (POSIX), where it lies, and its size (0 where that is not told)."""

    name: str
    place: str
    bytes: int
    kind: str = ""
    """The suffix that says its format, where its name has none that does."""

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes of the file, from the first on; a file behind a URL is fetched piece by piece.

        Raises OSError, and DataError where the URL cannot be opened.
        """
        if not is_url(self.place):
            with Path(self.place).open("rb") as file:
                yield file
            return
        fs, path = _file_system(self.place)
        try:
            remote = fs.open(path, "rb", block_size=_FETCHED_AT_ONCE)
        except OSError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise _fault("opened", error, self.place) from None
        with remote as file:
            yield file


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in str(place)


def find_files(root: str | Path) -> list[SourceFile]:
    """The files under `root` in the order of their paths, or `root` itself if it is a file; links to folders are not
    followed, hidden files and folders are passed over.

    Raises DataError where there is nothing, or where a URL cannot be listed.
    """
    found = _remote(str(root)) if is_url(root) else _local(Path(root))
    if not found:
        raise DataError("there are no files here", where=str(root))
    return sorted(found, key=lambda file: file.name)


def source_name(root: str | Path) -> str:
    """What the documents below a root name as their source: the folder's name, or the file's without its suffix."""
    if is_url(root):
        return Path(str(root).rstrip("/").rpartition("/")[2]).stem or str(root)
    path = Path(root)
    return readable_name(path.stem if path.is_file() else path.resolve().name)


def remote_version(root: str | Path) -> str:
    """What is behind a URL, as a digest of the names, sizes and versions it lists; empty for a path.

    A changed file behind a URL means that a step that reads it is run again.
    """
    if not is_url(root):
        return ""
    return sha256_json([[name, _version(info)] for name, info in sorted(_listed(str(root)).items())])


def _local(root: Path) -> list[SourceFile]:
    if root.is_file():
        return [SourceFile(readable_name(root.name), str(root), root.stat().st_size)]
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return [SourceFile(readable_name(path.relative_to(root).as_posix()), str(path), _size(path)) for path in found]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere: opening it says what is wrong
        return 0


def _remote(url: str) -> list[SourceFile]:
    fs, _ = _file_system(url)
    _, chained, within = url.partition("::")
    found = []
    for name, info in _listed(url).items():
        if not any(part.startswith(".") for part in name.split("/")):
            inner = info["name"] if is_url(info["name"]) else fs.unstrip_protocol(info["name"])
            found.append(SourceFile(name, f"{inner}{chained}{within}", int(info.get("size") or 0)))
    return found


def _listed(url: str) -> dict[str, Mapping[str, Any]]:
    fs, root = _file_system(url)
    try:
        info = fs.info(root)
        if info["type"] == "file":
            return {root.partition("?")[0].rstrip("/").rpartition("/")[2]: info}
        found = fs.find(root, detail=True)
    except FileNotFoundError as error:
        if error.__cause__ is None:
            return {}
        raise _fault("reached", error.__cause__, url) from None
    except Exception as error:
        raise _fault("listed", error, url) from None
    base = root.rstrip("/") + "/"
    return {
        readable_name(name.removeprefix(base).lstrip("/")): info
        for name, info in found.items()
        if info.get("type") != "directory"
    }


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(str(error), where=url) from None
    except Exception as error:
        raise _fault("opened", error, url) from None
    return fs, path


def _fault(what: str, error: BaseException, url: str) -> DataError:
    # What a file system says may quote a signed address that a server redirected to.
    return DataError(f"cannot be {what}: {hide_secrets_in(str(error))}", where=url)


def _version(info: Mapping[str, Any]) -> list[str]:
    return [str(info.get("size")), *(str(info[name]) for name in _VERSION_FIELDS if info.get(name) is not None)]


def _at_hand(place: str, info: ValidationInfo) -> str:
    if is_url(place):
        return without_secrets(place)
    path = Path(place).expanduser()
    folder = (info.context or {}).get("folder")
    if folder is not None and not (folder / path).exists():
        raise ValueError(f"there is no file or folder '{path}' in {folder}")
    return str(path)


def _place_or_content(place: str, info: SerializationInfo) -> str | list[str]:
    folder = (info.context or {}).get("folder")
    return place if folder is None or is_url(place) else [place, sha256_tree(folder / place)]


Location = Annotated[str, BeforeValidator(os.fspath), AfterValidator(_at_hand), PlainSerializer(_place_or_content)]
"""A parameter that names a file or folder: a path relative to the recipe's folder, checked before anything runs and
with its content in the step key, or a URL (for which the step's fingerprint holds `remote_version`)."""
