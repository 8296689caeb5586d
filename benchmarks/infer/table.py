"""The results that the other scripts appended to a file, as a table in Markdown.

    python benchmarks/infer/decode.py PEERS --json results.jsonl    # and others, or all of them by all.sh
    python benchmarks/infer/table.py results.jsonl

Where a job was measured twice, the later result stands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    rows = {row["title"]: row for row in map(json.loads, lines)}
    print("| job | Liuyi | of the machine's limit | beside | measured | Liuyi is | bar |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for row in rows.values():
        for cells in _cells(row):
            print(f"| {' | '.join(cells)} |")
    for title, row in rows.items():
        for name, note in row["notes"].items():
            print(f"\n{title}: {name}: {note}", end="")
    print()


def _cells(row: dict[str, Any]) -> list[tuple[str, ...]]:
    ours, unit, lower = row["rates"]["Liuyi"], row["unit"], row.get("lower_is_better", False)
    first = (f"{row['title']}, {unit}", _number(ours), f"{ours / row['limit']:.0%}" if row["limit"] else "")
    cells = []
    for name, rate in row["rates"].items():
        if name != "Liuyi":
            ratio = rate / ours if lower else ours / rate
            bar = row["bars"].get(name)
            cells.append((*first, name, _number(rate), f"{ratio:.2f}×", f"{bar:g}×" if bar else ""))
            first = ("", "", "")
    if row.get("most") is not None:
        cells.append((*first, "", "", "", f"≤ {row['most']:g} {unit}"))
    return cells


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
