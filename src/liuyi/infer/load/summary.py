"""What became of all requests of one measurement: latencies, throughput, goodput, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.slo import Slo
from liuyi.infer.load.strain import Strain


@dataclass(frozen=True)
class Latency:
    """A latency over requests, or over the pieces of all answers; seconds, percentiles interpolated linearly."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @staticmethod
    def of(values: Iterable[float | None]) -> Latency | None:
        """From measured values, leaving out what was not measured; None where nothing was."""
        known = np.array([value for value in values if value is not None])
        if not len(known):
            return None
        p50, p90, p99 = (float(value) for value in np.percentile(known, (50, 90, 99)))
        return Latency(len(known), float(known.mean()), p50, p90, p99, float(known.max()))


@dataclass(frozen=True)
class Summary:
    """Requests that the server was offered and what it made of them; rates per second of `duration_s`."""

    label: str
    """The load: `rate 4`, `concurrency 16`, a trace's name."""
    offered: int
    completed: int
    rejected: int
    failed: int
    reasons: dict[str, int]
    """Why requests were not answered, with how many of each."""
    duration_s: float
    """From the first request sent to the last end of one."""
    asked_input_tokens: int
    """What made-up prompts were meant to have; 0 where prompts were given."""
    input_tokens: int
    """What the server counted; 0 where it counts none."""
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Tokens of prompts and of answers."""
    slo: str
    good: int | None
    """Answers within all objectives; None without objectives."""
    goodput: float | None
    """Their share of the requests *offered*: what is refused or fails counts against it."""
    goodput_per_s: float | None
    lag_max_s: float
    """How late the client sent a request at most: where this is much, the client is the bottleneck."""
    client_core: float
    """The share of one core that the client took."""
    client_late: Latency | None
    """How late the client was at appointments that it had with itself, as it may have been for any piece."""
    ttft: Latency | None
    tpot: Latency | None
    itl: Latency | None
    """Over all pieces of all answers."""
    worst_itl: Latency | None
    e2e: Latency | None


def summarise(label: str, outcomes: Sequence[Outcome], slo: Slo, strain: Strain | None = None) -> Summary:
    """Latencies and tokens are those of whole answers; `strain` says how the client bore it."""
    strain = strain or Strain()
    whole = [outcome for outcome in outcomes if outcome.status == "ok"]
    statuses = Counter(outcome.status for outcome in outcomes)
    began = min((outcome.sent_s for outcome in outcomes), default=0.0)
    duration = max((outcome.ended_s for outcome in outcomes), default=0.0) - began
    per_s = 1 / duration if duration > 0 else 0.0
    inputs = sum(outcome.prompt_tokens for outcome in whole)
    outputs = sum(outcome.completion_tokens for outcome in whole)
    good = sum(map(slo.kept, outcomes)) if slo.bounds else None
    return Summary(
        label=label,
        offered=len(outcomes),
        completed=len(whole),
        rejected=statuses["rejected"],
        failed=statuses["failed"],
        reasons=dict(Counter(outcome.reason for outcome in outcomes if outcome.reason).most_common()),
        duration_s=duration,
        asked_input_tokens=sum(outcome.asked_prompt_tokens for outcome in whole),
        input_tokens=inputs,
        cached_tokens=sum(outcome.cached_tokens for outcome in whole),
        output_tokens=outputs,
        requests_per_s=len(whole) * per_s,
        output_tokens_per_s=outputs * per_s,
        total_tokens_per_s=(inputs + outputs) * per_s,
        slo=str(slo),
        good=good,
        goodput=None if good is None or not outcomes else good / len(outcomes),
        goodput_per_s=None if good is None else good * per_s,
        lag_max_s=max((outcome.lag_s for outcome in outcomes), default=0.0),
        client_core=strain.core,
        client_late=Latency.of(strain.late_s),
        ttft=Latency.of(outcome.ttft_s for outcome in whole),
        tpot=Latency.of(outcome.tpot_s for outcome in whole),
        itl=Latency.of(gap for outcome in whole for gap in outcome.itl_s),
        worst_itl=Latency.of(outcome.worst_itl_s for outcome in whole),
        e2e=Latency.of(outcome.e2e_s for outcome in whole),
    )
