"""The desk task as artifacts: chats to learn from, with the rules and the schema beside them, and eval sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.digest import sha256_bytes
from liuyi.core.effect import Bars, Effect, Sample, Samples, Table
from liuyi.data.desk.build import Desk, Row
from liuyi.data.desk.facility import LANGUAGES
from liuyi.data.desk.templates import ATTRIBUTION, LICENCE, PACKAGE

if TYPE_CHECKING:
    import pyarrow as pa

RULES = "rules.json"
FACILITY = "facility.json"
SCHEMA = "schema.json"
EVAL_SETS = {
    "dev": "templates held out for calibration, with typing errors and outside requests",
    "test": "templates held out for the final measure",
    "familiar": "new sentences of training templates",
    "typos": "test sentences with typing errors",
    "outside": "requests that are not the desk's",
    "compound": "several requests in one sentence",
}


def write_chats(folder: Path, name: str, desk: Desk) -> None:
    """`chats.parquet` of one set of rows, with rules, facility and schema beside it."""
    rows = desk.rows[name]
    columns: dict[str, list[str]] = {
        "id": _ids(name, rows),
        "messages": [_messages(row.text, row.answer) for row in rows],
        "source": [PACKAGE] * len(rows),
        "license": [LICENCE] * len(rows),
        "cluster": [row.cluster for row in rows],
    }
    _write_table(folder / "chats.parquet", columns)
    _write_json(folder / SCHEMA, desk.schema)
    _write_json(folder / RULES, {"attribution": ATTRIBUTION, "languages": desk.rules})
    _write_json(folder / FACILITY, desk.facility.model_dump(mode="json"))


def write_evalset(folder: Path, name: str, desk: Desk) -> None:
    """`items.parquet`, `schema.json` and `evalset.json` of one set of rows."""
    rows = desk.rows[name]
    columns: dict[str, list[str]] = {
        "id": _ids(name, rows),
        "cluster": [row.cluster for row in rows],
        "messages": [_messages(row.text) for row in rows],
        "reference": [row.answer for row in rows],
        "lang": [row.language for row in rows],
        "kind": [row.kind for row in rows],
        "source": [PACKAGE] * len(rows),
        "license": [LICENCE] * len(rows),
    }
    _write_table(folder / "items.parquet", columns)
    _write_json(folder / "evalset.json", {"name": name, "scorer": "json_exact", "description": EVAL_SETS[name]})
    answers = {"type": "array", "minItems": 2, "items": desk.schema} if name == "compound" else desk.schema
    _write_json(folder / SCHEMA, answers)


def desk_effect(desk: Desk) -> Effect:
    """What the report says about the data of this task."""
    parts = Counter(desk.parts.values())
    sets = [name for name in ("train", "practice", *EVAL_SETS) if name in desk.rows]
    counts = {name: Counter(row.language for row in desk.rows[name]) for name in sets}
    kept = sum(sum(found.values()) for found in counts.values())
    dropped = sorted(desk.dropped.items(), key=lambda item: -item[1])
    return Effect(
        stage="data",
        title="Facility desk task",
        summary=(
            f"{len(desk.rows['train']):,} training rows from {parts['train']} sentence templates; "
            f"{parts['test']} templates are held out for test, {parts['dev']} for calibration and "
            f"{parts['practice']} for practice. {ATTRIBUTION}."
        ),
        blocks=(
            Table(
                title="Rows by set",
                columns=("set", "what it is", *LANGUAGES),
                rows=tuple(
                    (name, EVAL_SETS.get(name, "to learn from"), *(counts[name][language] for language in LANGUAGES))
                    for name in sets
                ),
            ),
            Bars(
                title="Drawn and left out, by reason",
                bars=(("kept", float(kept)), *((f"{reason} ({lang})", float(n)) for (lang, reason), n in dropped)),
                unit="sentences",
                note="A sentence stays only if hassil, knowing every template, reads it as it was meant.",
            ),
            Samples(
                title="Held-out test items",
                samples=tuple(
                    Sample(title=row.text, text=row.answer, note=f"{row.language}, {row.kind}")
                    for row in desk.rows["test"][:: max(1, len(desk.rows["test"]) // 12)]
                ),
            ),
        ),
    )


def _ids(name: str, rows: Sequence[Row]) -> list[str]:
    return [name + "-" + sha256_bytes(f"{row.text}\t{row.answer}".encode())[:16] for row in rows]


def _messages(text: str, answer: str | None = None) -> str:
    messages = [{"role": "user", "content": text}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def _write_table(path: Path, columns: dict[str, list[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema: pa.Schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd", compression_level=3)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
