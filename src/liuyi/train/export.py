"""Live figures in other tools while training: one class a tool in `export_tools.py`, and here what they share.

A tool is imported before training begins; one that is not there, or does not come in a minute, is told once and done
without. Then a thread of its own hands the figures over, so a tool that is slow or down never holds up training: that
is told once, too. The run over there has an id, kept in `exports.json` of the workdir, by which a run that is resumed
goes on in it; a step that is taken twice is logged once. Keys and passwords are the tools' own affair, from their own
environment variables, and what a tool's error says is told without them.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Protocol

from liuyi.core.secrets import hide_secrets_in, scrub
from liuyi.train.rng import load_rng_state, rng_state

MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "trackio": "trackio", "wandb": "wandb"}
STATE_FILE = "exports.json"
WAITING_ROWS = 100_000
"""Rows that may wait for a tool before it is given up."""
FINISH_S, FAILED_FINISH_S = 60.0, 5.0
"""How long the end of a run waits for a tool, and that of a run that failed or was cancelled."""
IMPORT_S = 60.0
"""How long a run that starts waits for a tool to be imported."""
GATHER_S = 1.0
"""Rows are handed over about so often."""
_SHOWN_ALREADY = ("loss", "lr", "grad_norm")
_SECRET_NAME = re.compile("key|token|secret|passw|credential", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters; a shorter value, such as `true`, would be blotted out of words that hold no secret."""

Row = tuple[int, Mapping[str, float]]


@dataclass(frozen=True)
class External:
    """A run as a tool is told of it."""

    project: str
    name: str
    folder: Path
    """For tools that keep files."""
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    id: str = ""
    """By which the tool knows the run; empty for a new one."""
    first: int = 0
    """The first step that this process took."""
    handed_over: int = -1
    """The last step that was handed over by processes before this one."""


class Tool(Protocol):
    """A run in another tool; to make one is to start it, or to go on with it where it has an id."""

    id: str
    last: int
    """The last step that is there already."""

    def log(self, rows: Sequence[Row]) -> None: ...

    def finish(self, *, failed: bool) -> None: ...


class Exporter:
    """An onlooker that hands what it sees to one tool, which is imported when this is made."""

    def __init__(
        self, name: str, start: Callable[[External], Tool], run: External, workdir: Path, log: Callable[[str], None]
    ) -> None:
        self.name, self.start, self.run, self.workdir, self.log = name, start, run, workdir, log
        self._queue: Queue[Row | None] = Queue(WAITING_ROWS)
        self._thread: threading.Thread | None = None
        self._failed = False
        self._given_up = False
        self._import()

    def after_step(self, model: Any, row: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Leave the row for the thread, which the first one starts."""
        if self._given_up:
            return
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, args=(row["step"],), name=f"export to {self.name}", daemon=True
            )
            self._thread.start()
        self._leave((row["step"], values_of(row, figures)))

    def close(self, *, failed: bool) -> None:
        """Hand over what is left, and end the run over there."""
        self._failed = failed
        if self._thread is None or self._given_up:
            return
        self._leave(None)
        patience_s = FAILED_FINISH_S if failed else FINISH_S
        self._thread.join(patience_s)
        if self._thread.is_alive() and not self._given_up:
            self._give_up(f"it has not taken everything within {patience_s:g} s")

    def _import(self) -> None:
        """Import the tool while nothing else goes on: what some draw at random while they are imported is given back to
        whom it belongs."""
        met: list[BaseException] = []

        def bring() -> None:
            try:
                importlib.import_module(MODULES[self.name])
            except BaseException as error:  # some end the process where a setting is missing
                met.append(error)

        before = rng_state()
        thread = threading.Thread(target=bring, name=f"import of {self.name}", daemon=True)
        thread.start()
        thread.join(IMPORT_S)
        load_rng_state(before)
        if thread.is_alive():
            self._give_up(f"it cannot be imported within {IMPORT_S:g} s")
        elif met:
            absent = isinstance(met[0], ImportError)
            self._give_up(_told(met[0]), f"pip install 'liuyi[{self.name}]'" if absent else "")

    def _leave(self, row: Row | None) -> None:
        try:
            self._queue.put_nowait(row)
        except Full:
            self._give_up(f"{WAITING_ROWS:,} rows wait to be taken")

    def _work(self, first: int) -> None:
        try:
            self._export(first)
        except BaseException as error:
            self._give_up(_told(error))

    def _export(self, first: int) -> None:
        state = self._state().get(self.name, {})
        known = {"id": state["id"], "handed_over": state["step"]} if state else {}
        tool = self.start(replace(self.run, **known, first=first))
        last, over = tool.last, False
        self._keep_state(tool.id, last)
        while not over:
            rows, over = self._gathered()
            if fresh := list(_later_than(last, rows)):
                # Kept first: a row may be lost with this process, and is never there twice.
                last = fresh[-1][0]
                self._keep_state(tool.id, last)
                tool.log(fresh)
        tool.finish(failed=self._failed)

    def _gathered(self) -> tuple[list[Row], bool]:
        """The rows of about a second, and whether there are no more to come."""
        rows: list[Row] = []
        row = self._queue.get()
        until = time.monotonic() + GATHER_S
        while row is not None:
            rows.append(row)
            try:
                row = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                return rows, False
        return rows, True

    def _give_up(self, reason: str, hint: str = "") -> None:
        self._given_up = True
        self.log(f"{self.name}: {reason}; training goes on without it{f' ({hint})' if hint else ''}")

    def _state(self) -> dict[str, dict[str, Any]]:
        path = self.workdir / STATE_FILE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def _keep_state(self, id: str, step: int) -> None:
        with _state_lock:
            state = {**self._state(), self.name: {"id": id, "step": step}}
            draft = self.workdir / f"{STATE_FILE}.tmp"
            draft.write_text(json.dumps(state), encoding="utf-8")
            draft.rename(self.workdir / STATE_FILE)


_state_lock = threading.Lock()


def values_of(row: Mapping[str, Any], figures: Mapping[str, float]) -> dict[str, float]:
    """What is exported of a step: `train/…` from its line in the log, and `speed/…` by the clock."""
    values = {
        f"train/{name}": float(value)
        for name, value in row.items()
        if name not in ("step", "batch", "skipped") and isinstance(value, int | float) and math.isfinite(value)
    }
    if row.get("skipped"):
        values["train/skipped"] = 1.0
    return values | {f"speed/{name}": value for name, value in figures.items() if name not in _SHOWN_ALREADY}


def _later_than(last: int, rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of steps that were not seen yet; those of a rollback stay as they were first seen."""
    for row in rows:
        if row[0] > last:
            last = row[0]
            yield row


def _told(error: BaseException) -> str:
    """The first line of what an error says, without what the environment holds of secrets."""
    text = hide_secrets_in(f"{type(error).__name__}: {error}".splitlines()[0])
    for name, value in os.environ.items():
        if "://" in value:
            text = scrub(text, value)
        elif len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return text
