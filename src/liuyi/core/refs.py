"""What people call things: an artifact, a row inside one, or an answer that was served.

| written                  | names                                                             |
|--------------------------|-------------------------------------------------------------------|
| `3f9ab2c41e0d`           | the artifact whose digest begins so                               |
| `last/sft.checkpoint`    | an output of a step of a run; `last/sft` if it has one output     |
| `last/before_sft:item-7` | a row of that artifact: document, conversation, pair, item        |
| `9c1e…`                  | a row wherever it is, or an answer that was served, by its own id |
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from liuyi.core.artifact import Manifest
from liuyi.core.errors import ArtifactError, LedgerError, LiuyiError, did_you_mean
from liuyi.core.home import Home
from liuyi.core.records import Answer
from liuyi.core.rows import ROW_TABLES, find_dropped, find_row
from liuyi.core.secrets import hide_secrets
from liuyi.core.store import AmbiguousDigest


@dataclass(frozen=True)
class Row:
    """A row, and the artifacts that hold it or left it out, earliest first."""

    name: str
    """What such a row is called: document, conversation, item."""
    id: str
    values: dict[str, Any]
    holders: tuple[Manifest, ...]
    dropped_from: tuple[Manifest, ...] = ()


def resolve_artifact(home: Home, ref: str) -> str:
    """The digest of the artifact that `ref` names.

    Raises LiuyiError, saying what would be right, if it names none.
    """
    if ref.startswith(("/", "./", "../")) or ref.endswith((".gguf", ".safetensors")):
        raise ArtifactError("there is no such file or folder", where=ref)
    if "/" in ref:
        return _output(home, ref)
    if re.fullmatch(r"[0-9a-f]{1,64}", ref):
        return home.store.resolve(ref)
    raise ArtifactError(f"'{ref}' names no artifact and no path", hint=_place_in_last_run(home, ref))


def _place_in_last_run(home: Home, ref: str) -> str:
    """What somebody may have meant who wrote `sft` or `sft.checkpoint`."""
    name, dot, output = ref.partition(".")
    try:
        steps = [step.name for step in home.ledger.steps(home.ledger.run("last").id)]
    except LedgerError:
        steps = []
    if near := difflib.get_close_matches(name, steps, n=1):
        return f"did you mean 'last/{near[0]}{dot}{output}'?"
    return "give the beginning of a digest, or an output of a run: last/STEP.OUTPUT"


def resolve(home: Home, ref: str) -> str | Row | Answer:
    """What `ref` names: the digest of an artifact, a row, or an answer.

    Raises LiuyiError, saying what would be right, if it names nothing.
    """
    if answer := home.ledger.answer(ref):
        return answer
    holder, colon, id = ref.partition(":")
    try:
        if colon:
            return row_in(home, resolve_artifact(home, holder), id)
        return resolve_artifact(home, ref)
    except LiuyiError as error:
        if row := find_rows(home, ref):
            return row
        if "/" in holder or "." in holder or isinstance(error, AmbiguousDigest):
            raise
        hint = _hint(home, ref)
        raise LiuyiError(f"nothing here is called '{ref}'", hint=hint) from error


def _hint(home: Home, ref: str) -> str:
    forms = "give a digest, run/step.output, artifact:row, or the id of a row or of an answer"
    try:
        run = home.ledger.run(ref)
    except LedgerError:
        return forms
    places = [f"{ref}/{step.name}" for step in home.ledger.steps(run.id)]
    return f"it is a run: 'liuyi runs {ref}' shows it; its outputs are {', '.join(places)}" if places else forms


def row_in(home: Home, digest: str, id: str) -> Row:
    """The row with that id in one artifact. Raises ArtifactError if it holds none."""
    manifest = home.store.manifest(digest)
    if manifest.kind not in ROW_TABLES:
        raise ArtifactError(
            f"{manifest.kind} {digest[:12]} has no rows", hint=f"kinds with rows: {', '.join(ROW_TABLES)}"
        )
    values = find_row(home.store, manifest, id)
    if values is not None:
        return Row(ROW_TABLES[manifest.kind].row, id, values, (manifest,))
    values = find_dropped(home.store, manifest, id)
    if values is not None:
        return Row(ROW_TABLES[manifest.kind].row, id, values, (), (manifest,))
    raise ArtifactError(f"{manifest.kind} {digest[:12]} holds no row '{id}'")


def find_rows(home: Home, id: str) -> Row | None:
    """The row with that id, wherever it is. Where several kinds of artifact use the id, the earliest stage counts."""
    manifests = sorted(home.store.list(), key=lambda manifest: (manifest.created, manifest.digest))
    for kind, table in ROW_TABLES.items():
        found = [(manifest, find_row(home.store, manifest, id)) for manifest in manifests if manifest.kind == kind]
        holders = [(manifest, values) for manifest, values in found if values is not None]
        dropped = [
            (manifest, values)
            for manifest in manifests
            if manifest.kind == kind and (values := find_dropped(home.store, manifest, id)) is not None
        ]
        if holders or dropped:
            values = (holders or dropped)[0][1]
            return Row(
                table.row, id, values, tuple(holder for holder, _ in holders), tuple(corpus for corpus, _ in dropped)
            )
    return None


def _output(home: Home, ref: str) -> str:
    """The digest for `run/step.output` or `run/step`."""
    run_ref, _, place = ref.partition("/")
    try:
        run = home.ledger.run(run_ref)
    except LedgerError as error:
        if run_ref[:1].isdigit() or run_ref == "last":
            raise
        if "://" in ref:
            raise LedgerError(
                "an address is no artifact, and no path", where=hide_secrets(ref), hint="liuyi chat takes one by --url"
            ) from None
        hint = f"a run has an id, or is 'last'; a model of Hugging Face's hub is fetched first: hf download {ref}"
        raise LedgerError(f"there is no run '{run_ref}', and no path '{ref}'", hint=hint) from error
    name, _, output = place.partition(".")
    steps = {step.name: step for step in home.ledger.steps(run.id)}
    if name not in steps:
        raise LedgerError(f"run {run.id} has no step '{name}'", hint=did_you_mean(name, steps))
    execution = home.ledger.execution(steps[name].key)
    if execution is None:
        raise LedgerError(f"step '{name}' of run {run.id} is {steps[name].status} and has given nothing yet")
    if output in execution.outputs:
        return execution.outputs[output]
    if output:
        raise LedgerError(f"step '{name}' has no output '{output}'", hint=did_you_mean(output, execution.outputs))
    if len(execution.outputs) > 1:
        forms = ", ".join(f"{run_ref}/{name}.{port}" for port in execution.outputs)
        raise LedgerError(f"step '{name}' has several outputs", hint=f"say which: {forms}")
    return next(iter(execution.outputs.values()))
