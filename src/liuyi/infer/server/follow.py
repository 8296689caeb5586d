"""Follows each answer from request to end: latencies, tokens, outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from liuyi.infer.server.backend import ChatBackend, Delta, Deltas
from liuyi.infer.server.errors import describe
from liuyi.infer.server.format import Answering
from liuyi.infer.server.metrics import FAST_SECONDS, Counter, Gauge, Histogram, render


class Observer:
    """The server's metrics."""

    def __init__(self) -> None:
        model = ("model",)
        self.requests = Counter("liuyi_requests_total", "Requests by HTTP status; 499: hung up.", ("model", "status"))
        self.prompt_tokens = Counter("liuyi_prompt_tokens_total", "Tokens of prompts answered.", model)
        self.completion_tokens = Counter("liuyi_completion_tokens_total", "Tokens generated in whole answers.", model)
        self.ttft = Histogram("liuyi_time_to_first_token_seconds", "From request to first token.", model)
        self.tpot = Histogram(
            "liuyi_time_per_output_token_seconds", "Mean time of the tokens after the first.", model, FAST_SECONDS
        )
        self.duration = Histogram("liuyi_request_seconds", "From request to the end of the answer.", model)
        self.running = Gauge("liuyi_requests_running", "Requests being decoded.", model)
        self.waiting = Gauge("liuyi_requests_waiting", "Requests admitted that wait for a slot.", model)
        self.slots = Gauge("liuyi_slots", "Requests that can be decoded at once.", model)

    def request(self, model: str) -> Follow:
        """Follow a request that has come in now."""
        return Follow(self, model)

    def render(self, models: Mapping[str, ChatBackend]) -> str:
        """All figures as Prometheus text."""
        for name, backend in models.items():
            load = backend.busy()
            self.running.set(load.running, name)
            self.waiting.set(load.waiting, name)
            self.slots.set(load.slots, name)
        return render(
            (
                self.requests,
                self.prompt_tokens,
                self.completion_tokens,
                self.ttft,
                self.tpot,
                self.duration,
                self.running,
                self.waiting,
                self.slots,
            )
        )


class Follow:
    """One request on its way."""

    def __init__(self, observer: Observer, model: str) -> None:
        self._observer = observer
        self._model = model
        self._began = perf_counter()
        self._first: dict[int, float] = {}
        self._ended = False

    def see(self, delta: Delta) -> None:
        """A delta has come."""
        now = perf_counter()
        if delta.index not in self._first:
            self._first[delta.index] = now
            self._observer.ttft.observe(now - self._began, self._model)
        if delta.finish_reason is not None and delta.completion_tokens > 1:
            spent = now - self._first[delta.index]
            self._observer.tpot.observe(spent / (delta.completion_tokens - 1), self._model)

    def end(self, status: int, answering: Answering | None = None) -> None:
        """The request is over; only the first call counts."""
        if self._ended:
            return
        self._ended = True
        self._observer.requests.add(1, self._model, str(status))
        if answering is not None:
            usage = answering.usage
            self._observer.prompt_tokens.add(usage["prompt_tokens"], self._model)
            self._observer.completion_tokens.add(usage["completion_tokens"], self._model)
            self._observer.duration.observe(perf_counter() - self._began, self._model)


class Followed:
    """A backend's deltas, noted as they pass; `finished` is called once the last of a whole answer has passed."""

    def __init__(self, deltas: Deltas, answering: Answering, follow: Follow, finished: Callable[[], None]) -> None:
        self._deltas = deltas
        self._answering = answering
        self._follow = follow
        self._finished = finished

    def __aiter__(self) -> Followed:
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await self._deltas.__anext__()
        except StopAsyncIteration:
            self._follow.end(200, self._answering)
            self._finished()
            raise
        except Exception as error:
            self._follow.end(describe(error)[0])
            raise
        self._answering.see(delta)
        self._follow.see(delta)
        return delta

    async def aclose(self) -> None:
        """The client has gone, or all is said."""
        self._follow.end(499)
        await self._deltas.aclose()
