"""How work that failed is told: as one of our errors, in words that survive the way from process to process."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import liuyi.core.errors
from liuyi.core.disk import FULL
from liuyi.core.errors import LiuyiError, OutOfDisk, OutOfMemory, StepError

MAX_CHARACTERS = 3_000
"""Of each text: in any encoding all of them fit into a pipe's buffer."""


def as_error(error: BaseException, log: Path | str) -> LiuyiError:
    """What a step raised, as an error for people; `log` says where the traceback was written."""
    if isinstance(error, LiuyiError):
        return error
    see = f"the traceback is in {log}"
    name, text = type(error).__name__, " ".join(str(error).split())
    if _is_out_of_memory(error):
        return OutOfMemory(f"out of memory: {text or name}", hint=f"a smaller batch or model needs less; {see}")
    if isinstance(error, OSError) and error.errno in FULL:
        return OutOfDisk(f"no space left: {text}", hint="'liuyi gc' removes what no run needs")
    return StepError(f"{name}: {text}" if text else name, hint=see)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, torch not imported
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def killed_error(signal_number: int, *, out_of_memory: bool, log: Path) -> LiuyiError:
    """What to say of a step process that a signal ended."""
    if out_of_memory:
        return OutOfMemory(
            "the step's process was killed because memory ran out", hint="a smaller batch or model needs less"
        )
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        name = f"signal {signal_number}"
    if signal_number in (signal.SIGKILL, signal.SIGTERM):
        return StepError(f"the step's process was killed ({name})", hint="'liuyi resume' goes on from where it was")
    return StepError(f"the step's process crashed ({name})", hint=f"its last words are in {log}")


def pack(error: LiuyiError) -> dict[str, Any]:
    """An error as JSON; very long texts are cut."""
    texts = {"message": error.message, "where": error.where, "hint": error.hint}
    return {"type": type(error).__name__} | {name: text[:MAX_CHARACTERS] for name, text in texts.items()}


def unpack(packed: dict[str, Any]) -> LiuyiError:
    """The error that `pack` packed; StepError where its type is not one of ours."""
    found = getattr(liuyi.core.errors, packed["type"], StepError)
    known = isinstance(found, type) and issubclass(found, LiuyiError)
    return (found if known else StepError)(packed["message"], where=packed["where"], hint=packed["hint"])
