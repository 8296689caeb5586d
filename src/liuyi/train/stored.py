"""A checkpoint on the disk, as any number of processes read it: each takes the parts it needs from whoever wrote them.

000012-step000000500/
  tensors-0.safetensors   what process 0 wrote: `model/…`, `optimiser/…`
  state-0.json            where its parts lie in the whole, and what JSON can say
  training.jsonl          the run's log until then
  digests-0.json          SHA-256 of these
  tensors-1.safetensors   …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from liuyi.core.digest import sha256_file
from liuyi.core.errors import StepError
from liuyi.train.retention import Name
from liuyi.train.shards import Piece, is_sharded, laid_out, local_part

Like = Callable[[str], Tensor | None]
"""Gives for a name the tensor that another is laid out as; None for what is whole everywhere."""


def tensors_file(rank: int) -> str:
    return f"tensors-{rank}.safetensors"


def state_file(rank: int) -> str:
    return f"state-{rank}.json"


def digests_file(rank: int) -> str:
    return f"digests-{rank}.json"


def damage(path: Path, rank: int = 0, size: int = 1) -> str:
    """What is wrong with a checkpoint; empty when nothing is. Process `rank` of `size` reads its share of the files."""
    try:
        for writer in range(rank, _writers(path), size):
            digests = _digests(path, writer)
            for file in {tensors_file(writer), state_file(writer), *digests}:
                if sha256_file(path / file) != digests[file]:
                    return f"{file} does not match its digest"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return str(error)
    return ""


def recorded_digests(path: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files, all but those that say so, as they were when they were written."""
    return {file: digest for writer in range(_writers(path)) for file, digest in _digests(path, writer).items()}


def _writers(path: Path) -> int:
    return int(json.loads((path / state_file(0)).read_text(encoding="utf-8"))["writers"])


def _digests(path: Path, writer: int) -> dict[str, str]:
    return dict(json.loads((path / digests_file(writer)).read_text(encoding="utf-8")))


class Stored:
    """A checkpoint whose files are sound. `layout` is that of the processes that read it, this one of `rank`."""

    def __init__(self, path: Path, layout: Mapping[str, int] | None = None, rank: int = 0) -> None:
        self.path = path
        states = [json.loads((path / state_file(0)).read_text(encoding="utf-8"))]
        for writer in range(1, states[0]["writers"]):
            states.append(json.loads((path / state_file(writer)).read_text(encoding="utf-8")))
        self.step: int = states[0]["step"]
        self.name = Name.parse(path.name) or Name(0, self.step)
        self.state: dict[str, Any] = states[0]["state"]
        """What all processes have in common."""
        self.same_layout = layout is None or states[0]["layout"] == dict(layout)
        """Whether the processes that wrote it were laid out as those that read it are."""
        self.own: dict[str, Any] = states[rank if self.same_layout else 0]["own"]
        """What is of each process alone; that of the first one under another layout."""
        files: list[Any] = [safe_open(path / tensors_file(writer), "pt") for writer in range(len(states))]
        self._pieces: dict[str, list[tuple[Any, Piece]]] = {}
        for file, state in zip(files, states, strict=True):
            for name, part in state["pieces"].items():
                self._pieces.setdefault(name, []).append((file, Piece.from_json(part)))

    def group(self, name: str, like: Like | None = None) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one group and their names, each cut among the processes as what `like` gives for its name is.
        One is read at a time.

        What has other dimensions than its like, such as an optimiser's count of steps, is whole on every process.
        """
        prefix = f"{name}/"
        shorts = [full.removeprefix(prefix) for full in self._pieces if full.startswith(prefix)]
        for short in shorts:
            yield short, self._read(prefix + short, like(short) if like else None)

    def shapes(self, group: str) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of one group."""
        prefix = f"{group}/"
        return {n.removeprefix(prefix): parts[0][1].whole for n, parts in self._pieces.items() if n.startswith(prefix)}

    def _read(self, name: str, like: Tensor | None) -> Tensor:
        file, first = self._pieces[name][0]
        if like is None or not is_sharded(like) or like.ndim != len(first.whole):
            return self._box(name, Piece.all_of(first.whole))
        tensor = laid_out(first.whole, file.get_tensor(name).dtype, like)
        wanted, local = local_part(tensor)
        if local.numel():
            local.copy_(self._box(name, wanted))
        return tensor

    def _box(self, name: str, wanted: Piece) -> Tensor:
        """A box of a stored tensor, put together from the parts that it was written in."""
        pieces = self._pieces[name]
        for file, piece in pieces:
            if piece == wanted:
                return torch.as_tensor(file.get_tensor(name))
        box: Tensor | None = None
        missing = torch.Size(wanted.shape).numel()
        for file, piece in pieces:
            if met := wanted.overlap(piece):
                here, there = met
                part = file.get_slice(name)[there]
                box = part.new_empty(wanted.shape) if box is None else box
                box[here] = part
                missing -= part.numel()
        if box is None or missing:
            raise StepError(f"parts of '{name}' are not in the checkpoint", where=str(self.path))
        return box
