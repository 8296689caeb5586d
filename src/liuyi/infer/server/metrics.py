"""Counters, gauges and histograms, written as Prometheus text (exposition format 0.0.4).

requests = Counter("liuyi_requests_total", "Requests by outcome.", ("model", "status"))
requests.add(1, "desk", "200")
text = render([requests])
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Family:
    """Figures of one name, told apart by labels."""

    kind = "untyped"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)

    def lines(self) -> Iterator[str]:
        """The figures, a line each."""
        raise NotImplementedError

    def _labelled(self, values: Sequence[str], suffix: str = "", **more: str) -> str:
        pairs = [*zip(self.labels, values, strict=True), *more.items()]
        inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
        return f"{self.name}{suffix}{{{inside}}}" if inside else f"{self.name}{suffix}"


class Counter(Family):
    """What only grows."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, amount: float, *labels: str) -> None:
        """Grow by `amount`."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def lines(self) -> Iterator[str]:
        for labels, value in sorted(self.values.items()):
            yield f"{self._labelled(labels)} {_number(value)}"


class Gauge(Counter):
    """What goes up and down."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        """Be `value` now."""
        self.values[labels] = value


class Series:
    """The values of one set of labels."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = buckets
        self.counts = [0] * len(buckets)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


class Histogram(Family):
    """How often a value fell into each bucket."""

    kind = "histogram"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS) -> None:
        super().__init__(name, help, labels)
        self.buckets = (*sorted(buckets), math.inf)
        self._series: dict[tuple[str, ...], Series] = {}

    def of(self, *labels: str) -> Series:
        """The values with these labels, to which more can be added."""
        if labels not in self._series:
            self._series[labels] = Series(self.buckets)
        return self._series[labels]

    def lines(self) -> Iterator[str]:
        for labels, series in sorted(self._series.items()):
            total = 0
            for bound, count in zip(self.buckets, series.counts, strict=True):
                total += count
                yield f"{self._labelled(labels, '_bucket', le=_number(bound))} {total}"
            yield f"{self._labelled(labels, '_sum')} {_number(series.sum)}"
            yield f"{self._labelled(labels, '_count')} {total}"


def render(families: Iterable[Family]) -> str:
    """The text that Prometheus reads."""
    lines = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *family.lines()]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
