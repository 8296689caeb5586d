"""What a stage has to show for itself: comparisons with intervals, and tables, bars, curves and samples to look at.

Any artifact may carry an `effect.json`; the report gathers them in the order of the recipe.

Units: numbers are plain (shares are 0 … 1) and `unit="%"` asks that a share be shown times a hundred, as Python's
own `%` format does. Infinite ends of an interval say that no interval could be made; they are strings in JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EFFECT_FILE = "effect.json"
Stage = Literal["data", "pretraining", "fine-tuning", "alignment", "inference", "application"]
Decision = Literal["promoted", "held", "reverted"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Comparison(_Part):
    """Before and after on the same items, with the paired difference and its interval."""

    metric: str
    unit: str = ""
    """`%` for shares, which are 0 … 1 here and shown times a hundred; differences of them are shown as points."""
    better: Literal["higher", "lower"] = "higher"
    before_name: str
    after_name: str
    before: float
    after: float
    delta: float
    """after − before, the mean over items of the paired differences."""
    low: float
    high: float
    level: float = 0.95
    p_value: float | None = None
    p_adjusted: float | None = None
    """After Holm's correction over the comparisons made together."""
    test: str
    items: int
    clusters: int
    minimum_detectable: float | None = None
    """The smallest true difference that this test would find with 80 % power."""
    subset: str = ""
    """Which items: a language, `clean` or `flagged`; empty for all."""

    def as_json(self) -> dict[str, Any]:
        """What `json.dumps` takes: a bound at infinity, as of one cluster, is a string, as in `effect.json`."""
        return dict(json.loads(self.model_dump_json()))


class Table(_Part):
    kind: Literal["table"] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int, ...], ...]
    note: str = ""


class Bars(_Part):
    kind: Literal["bars"] = "bars"
    title: str
    bars: tuple[tuple[str, float], ...]
    unit: str = ""
    """`%` for shares, which are 0 … 1 here and shown times a hundred."""
    note: str = ""


class Series(_Part):
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """With `high`, the edges of a band around `y`; empty where there is none."""
    high: tuple[float, ...] = ()
    dots: bool = False
    """Points by themselves in place of a line through them."""
    faint: bool = False
    """Behind the others, which stand for it."""


class Mark(_Part):
    """Something that happened at one place of the x axis."""

    x: float
    name: str


class Curves(_Part):
    kind: Literal["curves"] = "curves"
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    note: str = ""


class Sample(_Part):
    title: str
    text: str
    note: str = ""


class Samples(_Part):
    kind: Literal["samples"] = "samples"
    title: str
    samples: tuple[Sample, ...]


Block = Annotated[Table | Bars | Curves | Samples, Field(discriminator="kind")]


class Effect(_Part):
    """One stage's part of the effect report."""

    stage: Stage
    title: str
    summary: str
    """One or two sentences with the figures that matter."""
    comparisons: tuple[Comparison, ...] = ()
    decision: Decision | None = None
    blocks: tuple[Block, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `effect.json` into an artifact's folder."""
        (folder / EFFECT_FILE).write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Effect | None:
        """Read `effect.json`; None where the artifact has none."""
        path = folder / EFFECT_FILE
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None
