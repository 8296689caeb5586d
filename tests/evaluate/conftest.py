"""Steps run in this process, and a tiny model with an eval set for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import in_process
from liuyi.core.artifact import Artifact, Kind
from liuyi.core.home import Home

Publish = Callable[..., Artifact]
RunStep = Callable[..., dict[str, Artifact]]


@pytest.fixture
def publish(home: Home) -> Publish:
    """Publish files (name → bytes, text or JSON-able) as an artifact."""

    def make(kind: Kind, step: str = "", **files: Any) -> Artifact:
        staging = home.store.stage(kind)
        for name, content in files.items():
            path = staging.path / name.replace("__", ".")
            if isinstance(content, pa.Table):
                pq.write_table(content, path)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return home.store.publish(staging, step=step)

    return make


@pytest.fixture
def run_step(home: Home, tmp_path: Path) -> RunStep:
    """Run a registered step on artifacts and publish its outputs."""

    def run(name: str, inputs: Mapping[str, Artifact | Sequence[Artifact]], **params: Any) -> dict[str, Artifact]:
        return in_process.run_step(home, tmp_path, name, inputs, **params)

    return run


@pytest.fixture
def evaluated(publish: Publish) -> Callable[..., Artifact]:
    """An evaluation with right/wrong `exact` and `valid_json`, two items a cluster, in two languages."""

    def make(
        exact: Sequence[int], *, subject: str = "", label: str = "", evalset: str = "e" * 64, **columns: Any
    ) -> Artifact:
        count = len(exact)
        table = {
            "item": [f"i{n}" for n in range(count)],
            "cluster": [f"c{n // 2}" for n in range(count)],
            "lang": ["en" if n % 2 else "zh" for n in range(count)],
            "prompt": [f"question number {n} about the kitchen lights" for n in range(count)],
            "reference": ["yes"] * count,
            "output": ["yes" if right else "no" for right in exact],
            "exact": [float(value) for value in exact],
            "valid_json": [1.0] * count,
        } | columns
        summary = {
            "name": "quiz",
            "label": label,
            "subject": subject,
            "evalset": evalset,
            "metrics": {"exact": {"title": "exact match", "kind": "binary", "unit": "%"}, "valid_json": {}},
        }
        return publish("evaluation", items__parquet=pa.table(table), evaluation__json=summary)

    return make
