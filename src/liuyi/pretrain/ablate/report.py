"""What an ablation has to show: which differences are real, what would decide the rest, and curves with bands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liuyi.core.effect import Block, Curves, Decision, Effect, Series, Table
from liuyi.core.step import Staging
from liuyi.pretrain.ablate.decide import UNIT, Contest, Results
from liuyi.pretrain.ablate.heldout import HeldOut
from liuyi.pretrain.ablate.power import MOST_SEEDS, MOST_TEXT, POWER

VERDICT = "verdict.json"
LOSSES = "losses.parquet"
CURVES = "curves.parquet"


@dataclass(frozen=True)
class Setting:
    """What all proxies had in common, for the report."""

    parameters: int
    token_budget: int
    seeds: int
    arm_tokens: Mapping[str, int]
    """Tokens that each arm's data holds."""


def write_verdict(
    out: Staging,
    results: Results,
    heldout: Sequence[HeldOut],
    contests: Sequence[Contest],
    decision: Decision,
    chosen: str,
    setting: Setting,
    *,
    title: str,
    more: Sequence[Block] = (),
) -> Effect:
    """Write the verdict, its effect, and the tables of losses and curves."""
    said = summary(contests, decision, chosen)
    comparisons = tuple(one.comparison() for one in contests)
    verdict = {
        "stage": "data",
        "decision": decision,
        "chosen": chosen,
        "rule": rule(contests[0].level),
        "comparisons": [comparison.as_json() for comparison in comparisons],
        "needed": [_needed_facts(one) for one in contests if not one.decided],
    }
    text = json.dumps(verdict, indent=1, ensure_ascii=False, allow_nan=False)
    (out.path / VERDICT).write_text(text + "\n", encoding="utf-8")
    _write_losses(out.path / LOSSES, results, heldout)
    _write_curves(out.path / CURVES, results, heldout)
    blocks = [arms_table(results, heldout, setting), *needed_table(contests, setting), *curves(results, heldout), *more]
    effect = Effect(
        stage="data",
        title=title,
        summary=f"{said} {rule(contests[0].level)}",
        comparisons=comparisons,
        decision=decision,
        blocks=tuple(blocks),
    )
    effect.save(out.path)
    out.metrics["comparisons"] = len(contests)
    out.metrics["decided"] = sum(one.decided for one in contests)
    return effect


def rule(level: float) -> str:
    """How it is decided, in a sentence."""
    return (
        f"A difference counts where p < {1 - level:.2g} after Holm's correction, over seeds and clusters of documents."
    )


def summary(contests: Sequence[Contest], decision: Decision, chosen: str) -> str:
    """Which differences are real, in words."""
    real = [
        f"'{one.better}' beats '{one.after if one.better == one.before else one.before}' on {one.heldout.label} by "
        f"{abs(one.found.delta):.3f} {UNIT}"
        for one in contests
        if one.decided
    ]
    open_ = len(contests) - len(real)
    parts = [f"Use '{chosen}'." if decision == "promoted" else f"Nothing is proven better than '{chosen}'."]
    parts += [f"{'; '.join(real)}."] if real else []
    parts += [f"{open_} of {len(contests)} comparisons are undecided."] if open_ else []
    return " ".join(parts)


def arms_table(results: Results, heldout: Sequence[HeldOut], setting: Setting) -> Table:
    """Bits per byte of each arm, with the spread over its seeds."""
    rows = []
    for arm, measured in results.items():
        cells: list[str | float | int] = [arm]
        if setting.arm_tokens:
            cells += [setting.arm_tokens[arm], setting.token_budget / setting.arm_tokens[arm]]
        for at, text in enumerate(heldout):
            final = np.array([text.bits_per_byte(one.bits[at][-1]) for one in measured])
            cells.append(f"{final.mean():.4f} ± {final.std(ddof=1):.4f}")
        rows.append(tuple(cells))
    return Table(
        title="Arms",
        columns=("arm", *(("tokens", "passes") if setting.arm_tokens else ()), *(text.label for text in heldout)),
        rows=tuple(rows),
        note=(
            f"bits per byte, mean ± standard deviation over {setting.seeds} seeds; proxies of "
            f"{setting.parameters / 1e6:.2g}M parameters, {setting.token_budget:,} tokens each"
        ),
    )


def needed_table(contests: Sequence[Contest], setting: Setting) -> list[Table]:
    """What would decide the comparisons that are open; nothing where none is."""
    rows: list[tuple[str | float | int, ...]] = []
    for one in contests:
        if one.decided:
            continue
        pair = f"{one.before} → {one.after}"
        seen = one.comparison().minimum_detectable or 0.0
        if one.needed is None:
            cells: tuple[str, ...] = ("out of reach", "", "")
        else:
            more = 2 * (one.needed.seeds - setting.seeds) * setting.token_budget
            cells = (str(one.needed.seeds), f"× {one.needed.text}", f"{more / 1e6:,.2f}M")
        rows.append((pair, one.heldout.label, f"{one.found.delta:+.4f}", f"{seen:.4f}", *cells))
    if not rows:
        return []
    return [
        Table(
            title="What would decide the rest",
            columns=("arms", "text", "difference", "could see", "seeds", "held-out text", "more training tokens"),
            rows=tuple(rows),
            note=(
                f"for a true difference as large as the one seen, with {POWER:.0%} power, from the variances over "
                f"seeds and clusters; out of reach: not with {MOST_SEEDS} seeds and {MOST_TEXT} times the held-out text"
            ),
        )
    ]


def curves(results: Results, heldout: Sequence[HeldOut]) -> list[Curves]:
    """Held-out bits per byte over tokens trained on; the band is from the lowest to the highest seed."""
    shown = []
    for at, text in enumerate(heldout):
        series = []
        for arm, measured in results.items():
            values = np.stack([text.bits_per_byte(one.bits[at]) for one in measured])
            series.append(
                Series(
                    name=arm,
                    x=tuple(measured[0].tokens.tolist()),
                    y=tuple(values.mean(axis=0).tolist()),
                    low=tuple(values.min(axis=0).tolist()),
                    high=tuple(values.max(axis=0).tolist()),
                )
            )
        if len(series[0].x) > 1:
            shown.append(
                Curves(
                    title=f"Held-out {text.label}",
                    x_label="tokens",
                    y_label=UNIT,
                    series=tuple(series),
                    note="mean over seeds; the band is from the lowest to the highest of them",
                )
            )
    return shown


def _needed_facts(one: Contest) -> dict[str, object]:
    need = None if one.needed is None else {"seeds": one.needed.seeds, "times_the_text": one.needed.text}
    return {"before": one.before, "after": one.after, "heldout": one.heldout.label, "needed": need}


def _write_losses(path: Path, results: Results, heldout: Sequence[HeldOut]) -> None:
    """Bits of each document under each proxy at its end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [
        pa.table(
            {
                "arm": [arm] * len(text.documents.ids),
                "seed": pa.array([seed] * len(text.documents.ids), pa.int32()),
                "heldout": [text.label] * len(text.documents.ids),
                "item": text.documents.ids,
                "cluster": text.documents.clusters,
                "bits": one.bits[at][-1],
                "bytes": text.documents.bytes,
            }
        )
        for arm, measured in results.items()
        for seed, one in enumerate(measured)
        for at, text in enumerate(heldout)
    ]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _write_curves(path: Path, results: Results, heldout: Sequence[HeldOut]) -> None:
    """Bits per byte of each proxy at each point."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"arm": arm, "seed": seed, "heldout": text.label, "tokens": int(tokens), "bits_per_byte": float(value)}
        for arm, measured in results.items()
        for seed, one in enumerate(measured)
        for at, text in enumerate(heldout)
        for tokens, value in zip(one.tokens, text.bits_per_byte(one.bits[at]), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
