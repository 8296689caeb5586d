"""The ledger: what was run, what came of it, and who works on what right now.

    ledger = Ledger("sqlite:///home/ledger.db")
    run_id = ledger.create_run(recipe="quickstart", text=text, source="quickstart.yaml", overrides=[], seed=1)
    ledger.put_step(run_id, "sft", step="finetune.sft", status="running")
    if ledger.acquire(f"step:{key}", this_process()): ...

Every call is one short transaction; many processes and threads may call at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, func, select, update

from liuyi.core.artifact import Manifest
from liuyi.core.database import Database
from liuyi.core.errors import LedgerError, did_you_mean
from liuyi.core.leases import Leases
from liuyi.core.records import Answer, Execution, Metric, Pin, Run, RunStep, Verdict
from liuyi.core.tables import (
    AnswerRow,
    ArtifactRow,
    Base,
    ExecutionInputRow,
    ExecutionOutputRow,
    ExecutionRow,
    MetricRow,
    PinRow,
    RunRow,
    RunStepRow,
    VerdictRow,
)

_RUN_FIELDS = ("status", "error", "worker", "heartbeat", "finished", "seed", "text", "source", "overrides")
_STEP_FIELDS = ("step", "key", "status", "error", "seconds", "position")
_EDGES = ("inputs", "outputs")
_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"

_Record = TypeVar("_Record", Answer, Metric, Pin, Run, RunStep, Verdict)


class Ledger(Leases):
    """The ledger at a URL: `sqlite:///path`, a bare path, or `postgresql://user@host/database`.

    It is opened, and brought to the newest schema, when it is first used. Raises LedgerError if that cannot be done.
    """

    def __init__(self, url: str) -> None:
        super().__init__(Database(url))

    def __repr__(self) -> str:
        return f"Ledger({self._database.shown})"

    @property
    def url(self) -> str:
        """The ledger's address, without its password."""
        return self._database.shown

    def close(self) -> None:
        """Close idle connections. The ledger may be used again."""
        self._database.close()

    # Runs

    def create_run(self, *, recipe: str, text: str, source: str, overrides: Sequence[str], seed: int) -> str:
        """Enter a new run as queued and return its id, such as `260131-142233-k3f9`."""
        now = time.time()
        tail = "".join(secrets.choice(_ID_ALPHABET) for _ in range(4))
        run_id = f"{datetime.fromtimestamp(now, UTC):%y%m%d-%H%M%S}-{tail}"
        row = RunRow(
            id=run_id,
            recipe=recipe,
            text=text,
            source=source,
            overrides=list(overrides),
            seed=seed,
            status="queued",
            error="",
            worker="",
            created=now,
        )
        with self._database.write() as session:
            session.add(row)
        return run_id

    def run(self, ref: str) -> Run:
        """The run with that id, with that unique beginning of an id, or the `last` one.

        Raises LedgerError, naming what it could be, if there is none or more than one.
        """
        with self._database.read() as session:
            query = select(RunRow).order_by(RunRow.created.desc(), RunRow.id.desc())
            if ref == "last":
                row = session.scalars(query.limit(1)).first()
                if row is None:
                    raise LedgerError("there is no run yet", hint="start one with: liuyi run quickstart")
                return _run(row)
            exact = session.get(RunRow, ref)
            if exact:
                return _run(exact)
            rows = session.scalars(query.where(RunRow.id.startswith(ref, autoescape=True)).limit(9)).all()
            if ref and len(rows) == 1:
                return _run(rows[0])
            if ref and rows:
                raise LedgerError(f"'{ref}' is the beginning of several runs", hint=", ".join(row.id for row in rows))
            known = session.scalars(select(RunRow.id).order_by(RunRow.created.desc()).limit(100)).all()
            raise LedgerError(f"there is no run '{ref}'", hint=did_you_mean(ref, known))

    def runs(self, limit: int | None = 20) -> list[Run]:
        """The latest runs, newest first; all of them with `limit=None`."""
        with self._database.read() as session:
            query = select(RunRow).order_by(RunRow.created.desc(), RunRow.id.desc()).limit(limit)
            return [_run(row) for row in session.scalars(query)]

    def update_run(self, run_id: str, **changes: Any) -> None:
        """Change fields of a run: status, error, worker, heartbeat, finished, seed, text, source, overrides."""
        _known(changes, _RUN_FIELDS)
        with self._database.write() as session:
            changed = session.execute(update(RunRow).where(RunRow.id == run_id).values(**changes))
            if not _count(changed):
                raise LedgerError(f"there is no run '{run_id}'")

    def forget_run(self, run_id: str) -> None:
        """Remove a run with its steps, metrics and verdicts. Its executions stay, so lineage is not lost."""
        with self._database.write() as session:
            if not _count(session.execute(delete(RunRow).where(RunRow.id == run_id))):
                raise LedgerError(f"there is no run '{run_id}'")

    # Steps of runs

    def put_step(self, run_id: str, name: str, **changes: Any) -> None:
        """Enter or change a step of a run: step, key, status, error, seconds, position."""
        _known(changes, _STEP_FIELDS)
        with self._database.write() as session:
            self._database.upsert(session, RunStepRow, {"run_id": run_id, "name": name, **changes}, change=changes)

    def steps(self, run_id: str) -> list[RunStep]:
        """The steps of a run, in the recipe's order."""
        with self._database.read() as session:
            query = select(RunStepRow).where(RunStepRow.run_id == run_id).order_by(RunStepRow.position, RunStepRow.name)
            return [_record(RunStep, row) for row in session.scalars(query)]

    def steps_with_key(self, key: str) -> list[RunStep]:
        """The steps of all runs that stand for the same work."""
        with self._database.read() as session:
            query = select(RunStepRow).where(RunStepRow.key == key).order_by(RunStepRow.run_id, RunStepRow.name)
            return [_record(RunStep, row) for row in session.scalars(query)]

    # Finished work

    def execution(self, key: str) -> Execution | None:
        """The finished work of a step key, if there is any. Its outputs may since have been collected."""
        found = self._executions(ExecutionRow.key == key)
        return found[0] if found else None

    def record_execution(
        self,
        *,
        key: str,
        step: str,
        version: int,
        params: Mapping[str, Any],
        seed: int,
        device: str,
        inputs: Iterable[tuple[str, str]],
        outputs: Mapping[str, str],
        seconds: float,
        run_id: str = "",
        created: float | None = None,
    ) -> None:
        """Enter finished work; work done again under the same key takes the place of the earlier."""
        with self._database.write() as session:
            session.execute(delete(ExecutionRow).where(ExecutionRow.key == key))
            session.add(
                ExecutionRow(
                    key=key,
                    step=step,
                    version=version,
                    params=dict(params),
                    seed=seed,
                    device=device,
                    seconds=seconds,
                    run_id=run_id,
                    created=time.time() if created is None else created,
                )
            )
            session.flush()
            session.add_all(
                ExecutionInputRow(key=key, position=position, name=name, digest=digest)
                for position, (name, digest) in enumerate(inputs)
            )
            session.add_all(ExecutionOutputRow(key=key, name=name, digest=digest) for name, digest in outputs.items())

    def producers(self, digest: str) -> list[Execution]:
        """The executions that gave this artifact, earliest first."""
        keys = select(ExecutionOutputRow.key).where(ExecutionOutputRow.digest == digest)
        return self._executions(ExecutionRow.key.in_(keys))

    def consumers(self, digest: str) -> list[Execution]:
        """The executions that took this artifact, earliest first."""
        keys = select(ExecutionInputRow.key).where(ExecutionInputRow.digest == digest)
        return self._executions(ExecutionRow.key.in_(keys))

    def executions_of(self, run_id: str) -> list[Execution]:
        """The executions that a run did or found done."""
        keys = select(RunStepRow.key).where(RunStepRow.run_id == run_id)
        return self._executions(ExecutionRow.key.in_(keys))

    def executions(self) -> list[Execution]:
        """All finished work, earliest first."""
        return self._executions(ExecutionRow.key.is_not(None))

    def _executions(self, which: ColumnElement[bool]) -> list[Execution]:
        with self._database.read() as session:
            rows = session.scalars(select(ExecutionRow).where(which).order_by(ExecutionRow.created, ExecutionRow.key))
            found = rows.all()
            keys = select(ExecutionRow.key).where(which)
            inputs: dict[str, list[tuple[str, str]]] = {row.key: [] for row in found}
            outputs: dict[str, dict[str, str]] = {row.key: {} for row in found}
            takes = select(ExecutionInputRow).where(ExecutionInputRow.key.in_(keys))
            for taken in session.scalars(takes.order_by(ExecutionInputRow.key, ExecutionInputRow.position)):
                inputs[taken.key].append((taken.name, taken.digest))
            gives = select(ExecutionOutputRow).where(ExecutionOutputRow.key.in_(keys))
            for given in session.scalars(gives.order_by(ExecutionOutputRow.key, ExecutionOutputRow.name)):
                outputs[given.key][given.name] = given.digest
            return [_execution(row, inputs[row.key], outputs[row.key]) for row in found]

    # Artifacts and pins

    def record_artifact(self, manifest: Manifest) -> None:
        """Enter an artifact that was published to the store; entering it again changes nothing."""
        values = {
            "digest": manifest.digest,
            "kind": manifest.kind,
            "bytes": manifest.size_bytes,
            "step": manifest.step,
            "step_key": manifest.step_key,
            "licences": list(manifest.licences),
            "created": time.time(),
        }
        with self._database.write() as session:
            self._database.upsert(session, ArtifactRow, values, change=())

    def artifacts(self) -> dict[str, str]:
        """Digest and kind of every artifact ever entered, whether or not the store still holds it."""
        with self._database.read() as session:
            query = select(ArtifactRow.digest, ArtifactRow.kind).order_by(ArtifactRow.created)
            return {digest: kind for digest, kind in session.execute(query)}

    def pin(self, digest: str, note: str = "") -> None:
        """Keep an artifact, and all it came from, whatever happens to the runs that gave it."""
        values = {"digest": digest, "note": note, "created": time.time()}
        with self._database.write() as session:
            self._database.upsert(session, PinRow, values, change=("note",))

    def unpin(self, digest: str) -> bool:
        """Let go of a pinned artifact; False if it was not pinned."""
        with self._database.write() as session:
            return bool(_count(session.execute(delete(PinRow).where(PinRow.digest == digest))))

    def pins(self) -> list[Pin]:
        """All pins, earliest first."""
        with self._database.read() as session:
            rows = session.scalars(select(PinRow).order_by(PinRow.created, PinRow.digest))
            return [_record(Pin, row) for row in rows]

    # Metrics, verdicts, answers

    def add_metrics(self, run_id: str, step_name: str, rows: Iterable[tuple[str, int | None, float]]) -> None:
        """Enter figures as (name, training step or None, value), in one transaction."""
        now = time.time()
        values = [
            {"run_id": run_id, "step_name": step_name, "name": name, "index": index, "value": value, "created": now}
            for name, index, value in rows
        ]
        if values:
            with self._database.write() as session:
                session.bulk_insert_mappings(MetricRow.__mapper__, values)

    def metrics(self, run_id: str, step_name: str | None = None, name: str | None = None) -> list[Metric]:
        """The figures of a run in the order in which they were entered; of a training step that was taken again, what
        was entered last."""
        columns = [getattr(MetricRow, field.name) for field in fields(Metric)]
        place = (MetricRow.step_name, MetricRow.name, MetricRow.index)
        last = select(func.max(MetricRow.id)).where(MetricRow.run_id == run_id).group_by(*place)
        query = select(*columns).where(MetricRow.run_id == run_id).order_by(MetricRow.id)
        query = query.where(MetricRow.index.is_(None) | MetricRow.id.in_(last))
        if step_name is not None:
            query = query.where(MetricRow.step_name == step_name)
        if name is not None:
            query = query.where(MetricRow.name == name)
        with self._database.read() as session:
            return [Metric(*row) for row in session.execute(query)]

    def add_verdict(
        self,
        run_id: str,
        step_name: str,
        digest: str,
        stage: str,
        decision: str,
        metric: str,
        delta: float,
        low: float,
        high: float,
        p_value: float | None,
    ) -> None:
        """Enter what a gate decided; `digest` is the verdict's artifact."""
        row = VerdictRow(
            run_id=run_id,
            step_name=step_name,
            digest=digest,
            stage=stage,
            decision=decision,
            metric=metric,
            delta=delta,
            low=low,
            high=high,
            p_value=p_value,
            created=time.time(),
        )
        with self._database.write() as session:
            session.add(row)

    def verdicts(self, run_id: str | None = None) -> list[Verdict]:
        """The verdicts of a run, or of all runs, earliest first."""
        query = select(VerdictRow).order_by(VerdictRow.id)
        if run_id is not None:
            query = query.where(VerdictRow.run_id == run_id)
        with self._database.read() as session:
            return [_record(Verdict, row) for row in session.scalars(query)]

    def add_answer(
        self, id: str, model_digest: str, app_digest: str | None, request_digest: str, detail: Mapping[str, Any]
    ) -> None:
        """Enter an answer that was served, so that it can be traced; `detail` is JSON.

        A server before another one hands on the id of its answer. Both may enter it here: what is kept is the account
        of who knows the model, the earlier one if both do.
        """
        told = {
            "model_digest": model_digest,
            "app_digest": app_digest,
            "request_digest": request_digest,
            "detail": dict(detail),
            "created": time.time(),
        }
        with self._database.write() as session:
            unknown = AnswerRow.model_digest == ""
            self._database.upsert(session, AnswerRow, {"id": id, **told}, change=told, where=unknown)

    def answer(self, id: str) -> Answer | None:
        """The served answer with that id, if there is one."""
        with self._database.read() as session:
            row = session.get(AnswerRow, id)
            return _record(Answer, row) if row else None

    def answers_of(self, digest: str, limit: int = 20) -> list[Answer]:
        """The latest answers that a model or an application gave, newest first."""
        query = select(AnswerRow).where((AnswerRow.model_digest == digest) | (AnswerRow.app_digest == digest))
        with self._database.read() as session:
            return [
                _record(Answer, row) for row in session.scalars(query.order_by(AnswerRow.created.desc()).limit(limit))
            ]


def _known(changes: Iterable[str], known: Collection[str]) -> None:
    for field in changes:
        if field not in known:
            raise LedgerError(f"the ledger has no field '{field}'", hint=did_you_mean(field, known))


def _count(result: Any) -> int:
    return int(result.rowcount)


def _run(row: RunRow) -> Run:
    return replace(_record(Run, row), overrides=tuple(row.overrides))


def _execution(row: ExecutionRow, inputs: list[tuple[str, str]], outputs: dict[str, str]) -> Execution:
    own = {field.name: getattr(row, field.name) for field in fields(Execution) if field.name not in _EDGES}
    return Execution(**own, inputs=tuple(inputs), outputs=outputs)


def _record(record: type[_Record], row: Base) -> _Record:
    return record(**{field.name: getattr(row, field.name) for field in fields(record)})
