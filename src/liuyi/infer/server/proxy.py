"""The same API, keys, limits, metrics and lineage before an engine that is already running.

    app = create_proxy(Upstream(Place.parse("vllm")), record=...)

Bodies and answers pass as they are, so that whatever the engine understands can be asked; what the server keeps of
them is read on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import liuyi
from liuyi.core.digest import sha256_json
from liuyi.infer.errors import DeadlinePassed, EngineError, RequestError
from liuyi.infer.server import errors
from liuyi.infer.server.admission import Admission, Place
from liuyi.infer.server.answers import Answer, AnswerLog
from liuyi.infer.server.app import MAX_BODY_BYTES, add_health, protect
from liuyi.infer.server.deadline import HEADER, limited, timeout_of
from liuyi.infer.server.format import event
from liuyi.infer.server.gate import Gate
from liuyi.infer.server.guard import Charge
from liuyi.infer.server.keys import KeyRing
from liuyi.infer.server.observer import Observer
from liuyi.infer.server.passing import Passing
from liuyi.infer.server.respond import unless_gone
from liuyi.infer.server.service import CLIENT_GONE
from liuyi.infer.server.tracing import Tracing
from liuyi.infer.server.upstream import Upstream, as_object, refusal
from liuyi.infer.sse import lines_of

_PATHS = ("chat/completions", "completions", "embeddings")
_TOKEN_PATHS = ("tokenize", "detokenize")
"""As vLLM has them, beside `/v1`. Those of llama.cpp have other bodies, so they are not passed on."""
_BROKEN_OFF = "the backend broke off its answer"


def create_proxy(
    upstream: Upstream,
    *,
    record: Callable[[Answer], None] | None = None,
    keys: KeyRing | None = None,
    gate: Gate | None = None,
    local_only: bool = True,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_queue: int = 256,
    timeout_s: float | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """An application that passes requests on; `max_queue` may be inside at once. Else as `create_app`."""
    gate = gate or Gate()
    observer = Observer(gate, tracing)
    proxy = _Proxy(upstream, observer, record, Admission(max_requests=max_queue, max_tokens=1 << 40), timeout_s)
    app = FastAPI(title="Liuyi", version=liuyi.__version__, docs_url=None, redoc_url=None, lifespan=proxy.lifespan)
    protect(app, gate=gate, observer=observer, keys=keys, local_only=local_only, max_body_bytes=max_body_bytes)

    for path in _PATHS:
        app.add_api_route(f"/v1/{path}", proxy.route(path), methods=["POST"], name=path)

    for path in _TOKEN_PATHS if upstream.place.kind != "llama.cpp" else ():
        app.add_api_route(f"/{path}", proxy.route(upstream.place.beside(path)), methods=["POST"], name=path)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The engine's models."""
        return {"object": "list", "data": upstream.models}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return upstream.model(name)

    add_health(app, {upstream.place.kind: upstream}, observer, gate)
    return app


class _Proxy:
    def __init__(
        self,
        upstream: Upstream,
        observer: Observer,
        record: Callable[[Answer], None] | None,
        admission: Admission,
        timeout_s: float | None,
    ) -> None:
        self._upstream = upstream
        self._observer = observer
        self._record = record
        self._admission = admission
        self._timeout_s = timeout_s
        self._answers: AnswerLog | None = None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._answers = AnswerLog(self._record) if self._record is not None else None
        try:
            await self._upstream.start()
            yield
        finally:
            await self._upstream.close()
            if self._answers is not None:
                await asyncio.to_thread(self._answers.close)
            await asyncio.to_thread(self._observer.close)

    def route(self, path: str) -> Callable[[Request], Any]:
        async def passed_on(request: Request) -> Response:
            return await self._pass_on(path, request)

        return passed_on

    async def _pass_on(self, path: str, request: Request) -> Response:
        body = as_object(await request.body())
        if not isinstance(body.get("model"), str):
            raise RequestError("the body must be a JSON object that names a model", param="model")
        self._upstream.model(body["model"])
        asked = body.pop("timeout", None)
        if asked is not None and not (type(asked) in (int, float) and asked > 0):
            raise RequestError("timeout must be a number of seconds above 0", param="timeout")
        timeout_s = timeout_of(request.headers.get(HEADER), asked, self._timeout_s)
        follow = self._observer.request(body["model"], request.headers)
        passing = Passing(body, follow, getattr(request.state, "charge", None))
        place = self._admission.enter(requests=1)
        began = asyncio.get_running_loop().time()
        try:
            sent = limited(timeout_s, self._upstream.send("POST", path, passing.body))
            # Many engines say nothing, not even a status, before an answer that is not streamed is whole.
            response = await unless_gone(request.receive, sent)
        except BaseException as error:
            place.leave()
            passing.end(errors.describe(error)[0] if isinstance(error, Exception) else CLIENT_GONE)
            raise
        if response is None:
            place.leave()
            passing.end(CLIENT_GONE)
            return Response(status_code=CLIENT_GONE)
        answer = _Answer(self, passing, response, place, timeout_s, began)
        if response.status_code == 200 and passing.streams and answer.is_stream:
            return _Stream(answer)
        return await unless_gone(request.receive, answer.whole()) or Response(status_code=CLIENT_GONE)

    def keep(self, passing: Passing, charge: Charge | None) -> None:
        """Enter an answer into the record."""
        if self._answers is None or not passing.id:
            return
        info = self._upstream.info
        detail = passing.detail() | dict(info.made_with) | ({"key": charge.key} if charge is not None else {})
        self._answers.add(Answer(passing.id, info.model_digest, None, sha256_json(passing.asked), detail))


class _Answer:
    """What the engine says to one request, and the place that it holds meanwhile."""

    def __init__(
        self,
        proxy: _Proxy,
        passing: Passing,
        response: httpx.Response,
        place: Place,
        timeout_s: float | None,
        began: float,
    ) -> None:
        """The answer has to be whole `timeout_s` after `began`, a time of the event loop."""
        self._proxy = proxy
        self.passing = passing
        self._response = response
        self._place = place
        self._timeout_s = timeout_s
        self._began = began
        proxy._upstream.inside += 1

    @property
    def is_stream(self) -> bool:
        """Whether it comes as events, which not every engine sends wherever it is asked to."""
        return str(self._response.headers.get("content-type", "")).startswith("text/event-stream")

    async def whole(self) -> Response:
        """The answer, or the refusal, in one."""
        status = CLIENT_GONE
        try:
            await limited(self._timeout_s, self._response.aread(), self._began)
            status = self._response.status_code
            if status != 200:
                status, body = refusal(self._response)
                retry = self._response.headers.get("retry-after")
                return errors.ErrorResponse(body, status, {"Retry-After": retry} if retry else None)
            found = as_object(self._response.content)
            self.passing.see_whole(found)
            self._proxy.keep(self.passing, self.passing.charge)
            return Response(self._response.content, media_type="application/json")
        except DeadlinePassed:
            status = 504
            raise
        except httpx.HTTPError as error:
            status = 502
            raise EngineError(_BROKEN_OFF) from error
        finally:
            await self.leave(status)

    async def events(self) -> AsyncIterator[bytes]:
        """The events of a stream, as they come; an error in the end if it breaks off."""
        status = CLIENT_GONE
        try:
            async with asyncio.timeout_at(None if self._timeout_s is None else self._began + self._timeout_s):
                async for line in lines_of(self._response):
                    passed = self.passing.see_line(line) if line else b""
                    if self.passing.has_failed:
                        status = 502
                    elif self.passing.is_complete and status != 200:
                        # Before the client hears of the end: it may hang up as soon as it does.
                        status = 200
                        self._proxy.keep(self.passing, self.passing.charge)
                    if passed:
                        yield passed
            if status == CLIENT_GONE:
                status = 502
                yield event(errors.error_body(status, _BROKEN_OFF))
        except (httpx.HTTPError, TimeoutError) as error:
            status = 504 if isinstance(error, TimeoutError) else 502
            message = "the answer was not there in time" if status == 504 else _BROKEN_OFF
            yield event(errors.error_body(status, message))
        finally:
            await self.leave(status)

    async def leave(self, status: int) -> None:
        """All is over."""
        self.passing.end(status)
        self._proxy._upstream.inside -= 1
        self._place.leave()
        await self._response.aclose()


class _Stream(Response):
    media_type = "text/event-stream"

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._answer.events()) as events:  # type: ignore[type-var]
            async for passed in events:
                await send({"type": "http.response.body", "body": passed, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
