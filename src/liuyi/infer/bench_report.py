"""A benchmark as an `evaluation` artifact: a row per prompt, the figures, and the effect that the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from liuyi.core.effect import Bars, Effect, Table
from liuyi.core.machine import Machine
from liuyi.infer.bench import Figures, Limits, Single, fractions


@dataclass(frozen=True)
class Measured:
    """One model's part of a benchmark."""

    label: str
    digest: str
    stored_bytes: int
    """Bytes of the weights' files."""
    runner: str
    """How it was computed, such as `native int8, kv bf16`."""
    figures: Figures
    limits: Limits
    prompts: Sequence[Single]


def write_bench(
    folder: Path, measured: Sequence[Measured], items: Sequence[Mapping[str, str]], machine: Machine, streams: int
) -> None:
    """Write `items.parquet`, `evaluation.json` and `effect.json` for the first model, beside which stand the others.

    `items` say id, cluster, lang and kind of each prompt.
    """
    first = measured[0]
    columns: dict[str, list[Any]] = {
        name: [item.get(key, "") for item in items]
        for name, key in (("item", "id"), ("cluster", "cluster"), ("lang", "lang"), ("kind", "kind"))
    }
    columns["output"] = [""] * len(items)
    columns["prompt_tokens"] = [float(single.prompt_tokens) for single in first.prompts]
    columns["ttft_ms"] = [1000 * single.ttft_s for single in first.prompts]
    columns["tokens_per_s"] = [single.tokens_per_s for single in first.prompts]
    pq.write_table(pa.table(columns), folder / "items.parquet")
    summary = {
        "name": "inference",
        "label": first.label,
        "subject": first.digest,
        "evalset": "",
        "runner": first.runner,
        "metrics": {
            "ttft_ms": _metric("time to first token", "ms", "lower", columns["ttft_ms"]),
            "tokens_per_s": _metric("decoding, one stream", "tokens/s", "higher", columns["tokens_per_s"]),
        },
        "models": {
            one.label: asdict(one.figures)
            | {"stored_bytes": one.stored_bytes, "runner": one.runner, "of_limit": fractions(one.figures, one.limits)}
            for one in measured
        },
        "streams": streams,
        "machine": machine.fingerprint,
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    effect(measured, machine, streams).save(folder)


def effect(measured: Sequence[Measured], machine: Machine, streams: int) -> Effect:
    """What the report shows."""
    first = measured[0]
    figures, of_limit = first.figures, fractions(first.figures, first.limits)
    summary = (
        f"{first.label}: {figures.decode_tokens_per_s:,.0f} tokens/s in one stream, {figures.batch_tokens_per_s:,.0f} "
        f"in {streams}, first token after {1000 * figures.ttft_p50_s:.1f} ms (95 % within "
        f"{1000 * figures.ttft_p95_s:.1f} ms), {first.stored_bytes / 1e6:,.1f} MB on disk."
    )
    for other in measured[1:]:
        ratio = figures.decode_tokens_per_s / other.figures.decode_tokens_per_s
        summary += (
            f" Against {other.label} in the same run: {ratio:.2f}× in one stream, "
            f"{figures.batch_tokens_per_s / other.figures.batch_tokens_per_s:.2f}× in {streams}, "
            f"{other.stored_bytes / first.stored_bytes:.2f}× smaller on disk."
        )
    rows = [_row(one) for one in measured]
    names = (
        "model",
        "computed in",
        "MB on disk",
        "TTFT p50",
        "TTFT p95",
        "1 stream",
        "of limit",
        f"{streams} streams",
        "of limit",
        "prefill",
    )
    table = Table(
        title="Speed, in tokens/s and ms",
        columns=(*names, "of limit "),
        rows=tuple(rows),
        note=(
            f"Limits of {machine.fingerprint}: decoding reads all weights once a token from memory "
            f"({machine.memory_bytes_per_s / 1e9:.1f} GB/s), prefill takes two operations a weight "
            f"({', '.join(f'{name} {flops / 1e9:,.0f} GFLOP/s' for name, flops in machine.gemm_flops.items())}). "
            "Weights that fit into the processor's cache may pass the memory's limit."
            + (" The machine was busy when its limits were measured." if machine.busy else "")
        ),
    )
    bars = Bars(
        title="Fraction of this machine's limit",
        bars=tuple((name.removesuffix("_tokens_per_s"), value) for name, value in of_limit.items()),
    )
    return Effect(stage="inference", title="Speed", summary=summary, blocks=(table, bars) if of_limit else (table,))


def _row(one: Measured) -> tuple[str | float | int, ...]:
    figures, of_limit = one.figures, fractions(one.figures, one.limits)

    def share(name: str) -> str:
        return f"{of_limit[name]:.0%}" if name in of_limit else "–"

    return (
        one.label,
        one.runner,
        round(one.stored_bytes / 1e6, 1),
        round(1000 * figures.ttft_p50_s, 1),
        round(1000 * figures.ttft_p95_s, 1),
        round(figures.decode_tokens_per_s),
        share("decode_tokens_per_s"),
        round(figures.batch_tokens_per_s),
        share("batch_tokens_per_s"),
        round(figures.prefill_tokens_per_s),
        share("prefill_tokens_per_s"),
    )


def _metric(title: str, unit: str, better: str, values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval over prompts, by the normal approximation."""
    mean, spread = float(np.mean(values)), 1.96 * float(np.std(values, ddof=min(1, len(values) - 1)))
    half = spread / len(values) ** 0.5
    return {
        "title": title,
        "kind": "real",
        "unit": unit,
        "better": better,
        "per": "",
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
    }
