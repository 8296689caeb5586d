"""The ledger's tables. A change here needs a migration beside the others, and a new `REVISION`."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

REVISION = "0001"
"""The newest migration: a ledger that carries it needs no upgrade."""


class FreeText(TypeDecorator[str]):
    """Text from anywhere. What a database refuses (NUL, lone surrogates) is replaced, not an error."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class Figure(TypeDecorator[float]):
    """A float that may be not-a-number, which SQLite cannot hold: NULL stands for it."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, str: String}  # noqa: RUF012


class RunRow(Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(FreeText)
    text: Mapped[str] = mapped_column(FreeText)
    source: Mapped[str] = mapped_column(FreeText)
    overrides: Mapped[list[str]]
    seed: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]
    error: Mapped[str] = mapped_column(FreeText)
    worker: Mapped[str]
    created: Mapped[float] = mapped_column(index=True)
    heartbeat: Mapped[float | None]
    finished: Mapped[float | None]


class RunStepRow(Base):
    __tablename__ = "run_steps"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[str] = mapped_column(default="")
    key: Mapped[str] = mapped_column(default="", index=True)
    status: Mapped[str] = mapped_column(default="waiting")
    error: Mapped[str] = mapped_column(FreeText, default="")
    seconds: Mapped[float | None]
    position: Mapped[int] = mapped_column(default=0)


class ExecutionRow(Base):
    __tablename__ = "executions"
    key: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[str]
    version: Mapped[int]
    params: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    device: Mapped[str]
    seconds: Mapped[float]
    run_id: Mapped[str]
    created: Mapped[float]


class ExecutionInputRow(Base):
    __tablename__ = "execution_inputs"
    key: Mapped[str] = mapped_column(ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(index=True)


class ExecutionOutputRow(Base):
    __tablename__ = "execution_outputs"
    key: Mapped[str] = mapped_column(ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)


class ArtifactRow(Base):
    __tablename__ = "artifacts"
    digest: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[str]
    step_key: Mapped[str]
    licences: Mapped[list[str]]
    created: Mapped[float]


class PinRow(Base):
    __tablename__ = "pins"
    digest: Mapped[str] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(FreeText)
    created: Mapped[float]


class MetricRow(Base):
    __tablename__ = "metrics"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step_name: Mapped[str]
    name: Mapped[str]
    index: Mapped[int | None] = mapped_column("at", BigInteger)
    value: Mapped[float] = mapped_column(Figure, nullable=True)
    created: Mapped[float]
    __table_args__ = (Index("ix_metrics_run_step_name", "run_id", "step_name", "name"),)


class VerdictRow(Base):
    __tablename__ = "verdicts"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    step_name: Mapped[str]
    digest: Mapped[str]
    stage: Mapped[str]
    decision: Mapped[str]
    metric: Mapped[str]
    delta: Mapped[float] = mapped_column(Figure, nullable=True)
    low: Mapped[float] = mapped_column(Figure, nullable=True)
    high: Mapped[float] = mapped_column(Figure, nullable=True)
    p_value: Mapped[float | None]
    created: Mapped[float]


class AnswerRow(Base):
    __tablename__ = "answers"
    id: Mapped[str] = mapped_column(primary_key=True)
    model_digest: Mapped[str] = mapped_column(index=True)
    app_digest: Mapped[str | None] = mapped_column(index=True)
    request_digest: Mapped[str]
    detail: Mapped[dict[str, Any]]
    created: Mapped[float]


class LeaseRow(Base):
    __tablename__ = "leases"
    key: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    renewed: Mapped[float]
    ttl_s: Mapped[float]
