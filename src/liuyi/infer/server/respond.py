"""Answers on the wire: whole, or as server-sent events; either way a client that hangs up ends the work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from liuyi.infer.server.backend import Delta, Deltas, in_turn
from liuyi.infer.server.errors import describe
from liuyi.infer.server.format import Answering, ChatFormat, TextFormat, encode, event

logger = logging.getLogger("liuyi.server")
T = TypeVar("T")

REQUEST_ID = "x-request-id"
"""The header in which OpenAI's clients look for the id of an answer, whatever they make of its body."""
WRITE = "liuyi.write"
"""An extension of ASGI: its `send` is a function that sends a further piece of a body and never waits. What the client
does not take is kept in the meantime, and a client that leaves too much is hung up on."""


async def whole(
    deltas: Deltas, answering: Answering, form: ChatFormat | TextFormat, asked_logprobs: bool
) -> dict[str, Any]:
    """The response object, once every answer is there."""
    answers: dict[int, list[Delta]] = {}
    async with aclosing(deltas):
        await deltas.tell(lambda delta: answers.setdefault(delta.index, []).append(delta))
    choices = [form.choice(index, answers[index], asked_logprobs) for index in sorted(answers)]
    return answering.object(form.kind, choices, usage=answering.usage)


class EventStream(Response):
    """The deltas as server-sent events, ended by `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(
        self, deltas: Deltas, answering: Answering, form: ChatFormat | TextFormat, choices: int, with_usage: bool
    ) -> None:
        self._deltas = deltas
        self._answering = answering
        self._form = form
        self._choices = choices
        self._with_usage = with_usage
        self._before, self._after = answering.around(form.chunk_kind, **({"usage": None} if with_usage else {}))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", REQUEST_ID: answering.id}
        super().__init__(headers=headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send, scope.get("extensions", {}).get(WRITE, {}).get("send")))

    async def _send_all(self, send: Send, write: Callable[[bytes], None] | None) -> None:
        async with aclosing(self._deltas):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            openings = [self._form.opening(index) for index in range(self._choices)]
            events = self._events([opening for opening in openings if opening is not None])
            await send({"type": "http.response.body", "body": events, "more_body": True})
            try:
                if write is not None:
                    await self._deltas.tell(lambda delta: write(self._events(self._form.pieces(delta))))
                else:
                    async for delta in in_turn(self._deltas):
                        events = self._events(self._form.pieces(delta))
                        await send({"type": "http.response.body", "body": events, "more_body": True})
                last = self._end()
            except Exception as error:
                status, body = describe(error)
                if status == 500:
                    logger.exception("an answer broke off")
                last = event(body)
            await send({"type": "http.response.body", "body": last, "more_body": False})

    def _events(self, choices: Sequence[Mapping[str, Any]]) -> bytes:
        """An event for each, in one piece, so that they reach the socket in one call."""
        events = b""
        for choice in choices:
            events += self._before + encode(choice) + self._after
        return events

    def _end(self) -> bytes:
        answering = self._answering
        usage = event(answering.object(self._form.chunk_kind, [], usage=answering.usage)) if self._with_usage else b""
        return usage + event("[DONE]")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if the client hangs up before; the work is cancelled then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
