"""The server's figures for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from liuyi.infer.server.backend import Load, Served
from liuyi.infer.server.follow import Follow
from liuyi.infer.server.gate import Gate
from liuyi.infer.server.metrics import FAST_SECONDS, Counter, Family, Gauge, Histogram, render
from liuyi.infer.server.tracing import Tracing

_LOADS: tuple[tuple[str, type[Counter], str, str], ...] = (
    ("running", Gauge, "liuyi_requests_running", "Requests being decoded."),
    ("waiting", Gauge, "liuyi_requests_waiting", "Requests admitted that wait to be decoded."),
    ("queued_tokens", Gauge, "liuyi_admitted_tokens", "Tokens that admitted requests read and may write."),
    ("slots", Gauge, "liuyi_slots", "Requests that can be decoded at once."),
    ("kv_tokens", Gauge, "liuyi_kv_cache_tokens", "Tokens whose keys and values fit into the cache."),
    ("kv_used_tokens", Gauge, "liuyi_kv_cache_used_tokens", "Room for tokens that running requests hold there."),
    ("prefix_queried_tokens", Counter, "liuyi_prefix_queried_tokens_total", "Tokens that requests began with."),
    ("prefix_hit_tokens", Counter, "liuyi_prefix_hit_tokens_total", "Those of them that were in the cache already."),
    ("drafted_tokens", Counter, "liuyi_drafted_tokens_total", "Tokens that speculation drafted."),
    ("accepted_tokens", Counter, "liuyi_accepted_tokens_total", "Those of them that the model said, too."),
    ("preemptions", Counter, "liuyi_preemptions_total", "Requests that gave up their room, to go on later."),
    ("engine_restarts", Counter, "liuyi_engine_restarts_total", "Engine processes that replaced a lost one."),
    ("alive", Gauge, "liuyi_up", "1 while the backend can answer."),
)
"""Field of `Load`, kind, name and help of what a backend tells of itself. Counters of the engine begin again
with each process of it, as Prometheus expects of a restart."""


class Observer:
    """Counts what the server does, and asks the backends how they are."""

    def __init__(self, gate: Gate, tracing: Tracing | None = None) -> None:
        """`tracing` is told of every request, too."""
        model = ("model",)
        self._gate = gate
        self._tracing = tracing
        self.requests = Counter("liuyi_requests_total", "Requests by HTTP status; 499: hung up.", ("model", "status"))
        self.rejections = Counter("liuyi_rejections_total", "Requests turned away, by code or status.", ("reason",))
        self.inside = Gauge("liuyi_http_requests_inside", "Requests that are being answered over HTTP.")
        self.prompt_tokens = Counter("liuyi_prompt_tokens_total", "Tokens of prompts answered.", model)
        self.completion_tokens = Counter("liuyi_completion_tokens_total", "Tokens generated in whole answers.", model)
        self.ttft = Histogram("liuyi_time_to_first_token_seconds", "From request to first token.", model)
        self.tpot = Histogram(
            "liuyi_time_per_output_token_seconds", "Mean time of the tokens after the first.", model, FAST_SECONDS
        )
        self.itl = Histogram(
            "liuyi_inter_token_latency_seconds", "Time between two pieces of an answer.", model, FAST_SECONDS
        )
        self.duration = Histogram("liuyi_request_seconds", "From request to the end of the answer.", model)
        self._loads = [(field, kind(name, help, model)) for field, kind, name, help in _LOADS]

    def request(self, model: str, headers: Mapping[str, str]) -> Follow:
        """Follow a request that has come in now."""
        return Follow(self, model, self._tracing.begin(model, headers) if self._tracing is not None else None)

    def close(self) -> None:
        """Send what tracing has left to send."""
        if self._tracing is not None:
            self._tracing.close()

    def refused(self, reason: str) -> None:
        """A request was turned away."""
        self.rejections.add(1, reason)

    def render(self, models: Mapping[str, Served]) -> str:
        """All figures as Prometheus text."""
        self.inside.set(self._gate.inside)
        for name, backend in models.items():
            load: Load = backend.busy()
            for field, family in self._loads:
                family.values[(name,)] = float(getattr(load, field))
        families: list[Family] = [
            self.requests,
            self.rejections,
            self.inside,
            self.prompt_tokens,
            self.completion_tokens,
            self.ttft,
            self.tpot,
            self.itl,
            self.duration,
            *(family for _, family in self._loads),
        ]
        return render(families)
