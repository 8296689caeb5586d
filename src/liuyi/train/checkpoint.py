"""Checkpoints of a run: everything that the next step depends on, in safetensors and JSON.

A checkpoint is written beside, fsynced and renamed into place by a background thread, so it is there whole or not at
all and training goes on meanwhile. Every file's SHA-256 is checked on load; a damaged checkpoint is passed over for
the one before it.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from liuyi.core.digest import sha256_file
from liuyi.core.disk import FULL, sync
from liuyi.core.errors import OutOfDisk, StepError

STATE_FILE = "state.json"
DIGESTS_FILE = "digests.json"
KEEP = 2


@dataclass(frozen=True)
class Snapshot:
    """The state before `step`: groups of tensors, each a safetensors file, and what JSON can say."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    def copied(self) -> Snapshot:
        """A snapshot that training does not change any more; tied tensors are copied once."""
        copies: dict[int, Tensor] = {}

        def copy(tensor: Tensor) -> Tensor:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True).contiguous()
            return copies[id(tensor)]

        groups = {group: {name: copy(t) for name, t in tensors.items()} for group, tensors in self.tensors.items()}
        return Snapshot(self.step, groups, deepcopy(self.state))


class Checkpoints:
    """The checkpoints in one folder, numbered in the order of their making.

    `warn` is told of damaged ones.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda message: None) -> None:
        self.folder = folder
        self.warn = warn
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("tmp-*"):
            shutil.rmtree(leftover)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def save(
        self, snapshot: Snapshot, *, anchors: Sequence[int] = (), before: Callable[[], None] = lambda: None
    ) -> None:
        """Copy the snapshot now and write it in the background, after `before`; the write before it must have ended.

        The newest two stay, and for each step of `anchors` the newest one at or before it.
        """
        self.wait()
        self._pending = self._pool.submit(self._write, snapshot.copied(), anchors, before)

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> bool:
        """Wait for the write under way, if there is one; raises what it met (OutOfDisk, StepError, OSError)."""
        if self._pending is None:
            return False
        pending, self._pending = self._pending, None
        pending.result()
        return True

    def load(self, at_most: int | None = None) -> Snapshot | None:
        """The newest undamaged checkpoint, of those at or before step `at_most` when it is given."""
        self.wait()
        for path in reversed(self._paths()):
            if at_most is not None and _step(path) > at_most:
                continue
            problem = _damage(path)
            if not problem:
                return _read(path)
            self.warn(f"checkpoint {path.name} is damaged ({problem}): passing to the one before it")
            shutil.rmtree(path)
        return None

    def forget_newest(self, at_most: int | None = None) -> None:
        """Remove the checkpoint that `load` has given, of which the caller has found out more than it can know."""
        self.wait()
        shutil.rmtree(next(path for path in reversed(self._paths()) if at_most is None or _step(path) <= at_most))

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, which a rollback has made untrue."""
        self.wait()
        for path in reversed(self._paths()):
            if _step(path) > step:
                shutil.rmtree(path)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("tmp-"))

    def _write(self, snapshot: Snapshot, anchors: Sequence[int], before: Callable[[], None]) -> None:
        before()
        paths = self._paths()
        serial = int(paths[-1].name.split("-")[0]) + 1 if paths else 0
        name = f"{serial:06d}-step{snapshot.step:09d}"
        temporary = self.folder / f"tmp-{name}"
        try:
            temporary.mkdir()
            files = []
            for group, tensors in snapshot.tensors.items():
                files.append(f"{group}.safetensors")
                save_file(dict(tensors), temporary / files[-1])
            _dump(temporary / STATE_FILE, {"step": snapshot.step, "groups": list(snapshot.tensors), **snapshot.state})
            digests = {file: sha256_file(temporary / file) for file in [*files, STATE_FILE]}
            _dump(temporary / DIGESTS_FILE, digests)
            for path in [*temporary.iterdir(), temporary]:
                sync(path)
            temporary.rename(self.folder / name)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if getattr(error, "errno", None) in FULL or any(f"os error {number})" in str(error) for number in FULL):
                raise OutOfDisk("no space is left for a checkpoint", where=str(self.folder)) from error
            if isinstance(error, SafetensorError):
                raise StepError(f"a checkpoint could not be written: {error}", where=str(self.folder)) from error
            raise
        paths = self._paths()
        kept = set(paths[-KEEP:])
        for anchor in anchors:
            kept.update([path for path in paths if _step(path) <= anchor][-1:])
        for path in paths:
            if path not in kept:
                shutil.rmtree(path)


def _step(path: Path) -> int:
    return int(path.name.split("-step")[1])


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty when nothing is."""
    try:
        digests = json.loads((path / DIGESTS_FILE).read_text(encoding="utf-8"))
        wrong = [file for file, digest in digests.items() if sha256_file(path / file) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{wrong[0]} does not match its digest" if wrong else ""


def _read(path: Path) -> Snapshot:
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    groups = state.pop("groups")
    return Snapshot(state.pop("step"), {group: load_file(path / f"{group}.safetensors") for group in groups}, state)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as JSON values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    devices = [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())]
    return {
        "python": random.getstate(),
        "numpy": [kind, _encode(np.asarray(keys).tobytes()), *rest],
        "torch": [_encode(state.numpy().tobytes()) for state in [torch.get_rng_state(), *devices]],
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), dtype=np.uint32), *rest))
    host, *devices = [torch.frombuffer(bytearray(base64.b64decode(part)), dtype=torch.uint8) for part in state["torch"]]
    torch.set_rng_state(host)
    for device, device_state in enumerate(devices):
        torch.cuda.set_rng_state(device_state, device)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
