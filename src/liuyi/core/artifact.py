"""An artifact: an immutable folder whose manifest says what it is and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal[
    "corpus",
    "classifier",
    "tokenizer",
    "tokens",
    "chats",
    "preferences",
    "checkpoint",
    "milestones",
    "adapter",
    "evalset",
    "evaluation",
    "verdict",
    "report",
    "app",
]
KINDS: tuple[str, ...] = get_args(Kind)
MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artifact: relative POSIX path, size and SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True)
    path: str
    bytes: int
    sha256: str


class InputRef(BaseModel):
    """One input of the step that made an artifact: the port's name and the artifact's digest."""

    model_config = ConfigDict(frozen=True)
    name: str
    digest: str


class Manifest(BaseModel):
    """What `manifest.json` holds. The digest covers the files, not the manifest."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")
    schema_version: int = 1
    kind: Kind
    digest: str
    files: tuple[FileEntry, ...]
    step: str = ""
    step_key: str = ""
    output: str = ""
    inputs: tuple[InputRef, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    licences: tuple[str, ...] = ()
    created: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Artifact:
    """A published artifact at hand on this machine: read its files under `path`, change nothing."""

    manifest: Manifest
    path: Path

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    def file(self, name: str) -> Path:
        """The path of one file of the artifact."""
        return self.path / name
