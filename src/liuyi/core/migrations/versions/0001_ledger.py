"""The ledger: runs, steps, executions with their edges, artifacts, pins, metrics, verdicts, answers and leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("overrides", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("worker", sa.String, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("heartbeat", sa.Double),
        sa.Column("finished", sa.Double),
    )
    op.create_index("ix_runs_created", "runs", ["created"])
    op.create_table(
        "run_steps",
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("position", sa.Integer, nullable=False),
    )
    op.create_index("ix_run_steps_key", "run_steps", ["key"])
    op.create_table(
        "executions",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "execution_inputs",
        sa.Column("key", sa.String, sa.ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
    op.create_index("ix_execution_inputs_digest", "execution_inputs", ["digest"])
    op.create_table(
        "execution_outputs",
        sa.Column("key", sa.String, sa.ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False),
    )
    op.create_index("ix_execution_outputs_digest", "execution_outputs", ["digest"])
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("step_key", sa.String, nullable=False),
        sa.Column("licences", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "pins",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "metrics",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("step_name", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("at", sa.BigInteger),
        sa.Column("value", sa.Double),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_metrics_run_step_name", "metrics", ["run_id", "step_name", "name"])
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("step_name", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("metric", sa.String, nullable=False),
        sa.Column("delta", sa.Double),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
        sa.Column("p_value", sa.Double),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_verdicts_run_id", "verdicts", ["run_id"])
    op.create_table(
        "answers",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("model_digest", sa.String, nullable=False),
        sa.Column("app_digest", sa.String),
        sa.Column("request_digest", sa.String, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_answers_model_digest", "answers", ["model_digest"])
    op.create_index("ix_answers_app_digest", "answers", ["app_digest"])
    op.create_table(
        "leases",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("renewed", sa.Double, nullable=False),
        sa.Column("ttl_s", sa.Double, nullable=False),
    )
