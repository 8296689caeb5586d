"""Follows each answer from request to end: latencies, tokens, outcome."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from liuyi.infer.server.backend import Delta, Deltas
from liuyi.infer.server.errors import describe
from liuyi.infer.server.format import Answering
from liuyi.infer.server.guard import Charge
from liuyi.infer.server.tracing import RequestSpan

if TYPE_CHECKING:
    from liuyi.infer.server.observer import Observer


class Follow:
    """One request on its way."""

    def __init__(self, observer: Observer, model: str, span: RequestSpan | None = None) -> None:
        self._observer = observer
        self._model = model
        self._span = span
        self._ttft = observer.ttft.of(model)
        self._itl = observer.itl.of(model)
        self._began = perf_counter()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._ended = False

    def piece(self, index: int) -> None:
        """A piece of an answer has come."""
        now = perf_counter()
        before = self._last.get(index)
        self._last[index] = now
        if before is None:
            self._first[index] = now
            self._ttft.observe(now - self._began)
            if self._span is not None and len(self._first) == 1:
                self._span.first_token()
        else:
            self._itl.observe(now - before)

    def answered(self, index: int, tokens: int) -> None:
        """That piece was the last of an answer of so many tokens."""
        if tokens > 1:
            spent = self._last[index] - self._first[index]
            self._observer.tpot.of(self._model).observe(spent / (tokens - 1))

    def end(self, status: int, answering: Answering | None = None) -> None:
        """The request is over; only the first call counts."""
        usage = answering.usage if answering is not None else {"prompt_tokens": 0, "completion_tokens": 0}
        self.finish(status, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])

    def finish(self, status: int, *, prompt_tokens: int, completion_tokens: int) -> None:
        """The request is over; only the first call counts. Tokens count where it was answered."""
        if self._ended:
            return
        self._ended = True
        self._observer.requests.add(1, self._model, str(status))
        if self._span is not None:
            self._span.end(status, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        if status == 200:
            self._observer.prompt_tokens.add(prompt_tokens, self._model)
            self._observer.completion_tokens.add(completion_tokens, self._model)
            self._observer.duration.of(self._model).observe(perf_counter() - self._began)


class Followed:
    """A backend's deltas, noted as they pass; `finished` is called once the last of a whole answer has passed."""

    def __init__(
        self,
        deltas: Deltas,
        answering: Answering,
        follow: Follow,
        charge: Charge | None,
        finished: Callable[[], None],
    ) -> None:
        self._deltas = deltas
        self._answering = answering
        self._follow = follow
        self._charge = charge
        self._finished = finished
        self._seen = 0

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each delta. Raises as the backend's."""

        piece = self._follow.piece

        def see(delta: Delta) -> None:
            self._seen += 1
            piece(delta.index)
            if delta.finish_reason is not None:
                self._answering.end(delta)
                self._follow.answered(delta.index, delta.completion_tokens)
            take(delta)

        try:
            await self._deltas.tell(see)
        except Exception as error:
            self._follow.end(describe(error)[0])
            raise
        self._follow.end(200, self._answering)
        if self._charge is not None:
            self._charge.used_tokens = self._answering.usage["total_tokens"]
        self._finished()

    async def aclose(self) -> None:
        """The client has gone, or all is said."""
        if self._charge is not None and self._charge.used_tokens is None:
            # Every piece was a token at least.
            self._charge.used_tokens = self._charge.estimated_tokens + self._seen
        self._follow.end(499)
        await self._deltas.aclose()
