"""Errors for people: what was wrong, where, and what would be right.

Every error that a user can cause or meet derives from `LiuyiError`. The command line prints its message
and hint; a traceback is shown only with `--debug`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LiuyiError(Exception):
    """Base of all errors meant for people.

    `message` says what was wrong, `where` names the file, line or field, `hint` says what would be right.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = _printable(message)
        self.where = _printable(where)
        self.hint = _printable(hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


def _printable(text: str) -> str:
    """Text that terminals and the ledger take: what is no Unicode in it, from a name or from JSON, as its escape."""
    return text.encode(errors="backslashreplace").decode()


class RecipeError(LiuyiError):
    """A recipe does not say what can be run: misspelt step, missing input, wrong type, cycle."""


class ArtifactError(LiuyiError):
    """An artifact is unknown, incomplete, of the wrong kind, or its bytes do not match its digest."""


class LedgerError(LiuyiError):
    """The ledger cannot be opened, or does not know what was asked for."""


class StepError(LiuyiError):
    """A step failed."""


class DataError(LiuyiError):
    """Input data is not what it should be."""


class ModelError(LiuyiError):
    """A model folder, configuration or tokenizer cannot be used."""


class OutOfDisk(LiuyiError):
    """No space left on the device that holds the store or the work folder."""


class OutOfMemory(LiuyiError):
    """The machine or the accelerator ran out of memory."""


class Cancelled(LiuyiError):
    """The run was cancelled by its owner."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or the list of all of them when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known"
