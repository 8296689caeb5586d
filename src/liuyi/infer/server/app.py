"""The HTTP application: OpenAI's chat completions, completions and models, beside health and metrics.

app = create_app({"desk": backend}, record=lambda answer: ledger.add_answer(...))
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import liuyi
from liuyi.core.digest import sha256_json
from liuyi.infer.errors import RequestError
from liuyi.infer.server import errors, guard, metrics
from liuyi.infer.server.answers import Answer, AnswerLog
from liuyi.infer.server.backend import ChatBackend, Deltas, TextBackend
from liuyi.infer.server.follow import Followed, Observer
from liuyi.infer.server.format import Answering, ChatFormat, TextFormat
from liuyi.infer.server.protocol import ChatCompletionBody, CompletionBody
from liuyi.infer.server.respond import EventStream, unless_gone, whole

MAX_BODY_BYTES = 4 * 2**20
CLIENT_GONE = 499


def create_app(
    models: Mapping[str, ChatBackend],
    *,
    record: Callable[[Answer], None] | None = None,
    keys: Sequence[str] = (),
    local_only: bool = True,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """An application that serves `models` by name, the first one being named first in `/v1/models`.

    `record` is called, in another thread, for each answer. With `keys` every call but `/health` needs one of them.
    `local_only` refuses calls that name another host than this one.
    """
    service = _Service(models, record)
    app = FastAPI(title="Liuyi", version=liuyi.__version__, docs_url=None, redoc_url=None, lifespan=service.lifespan)
    errors.install(app)
    app.add_middleware(guard.BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(guard.ApiKeys, keys=keys)
    if local_only:
        app.add_middleware(guard.LocalHostsOnly)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionBody, request: Request) -> Response:
        """Continue a conversation."""
        backend = service.backend(body.model)
        chat = body.request()
        return await service.answer(body, request, ChatFormat(), backend, lambda: backend.chat(chat), prompts=1)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        backend = service.backend(body.model)
        if not isinstance(backend, TextBackend):
            raise RequestError(f"'{body.model}' takes conversations only", param="model", hint="/v1/chat/completions")
        text = body.request()
        prompts = len(text.prompts)
        return await service.answer(body, request, TextFormat(), backend, lambda: backend.complete(text), prompts)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models and applications that are served."""
        return {"object": "list", "data": [service.model_object(name) for name in models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        service.backend(name)
        return service.model_object(name)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether all backends can answer."""
        stopped = [name for name, backend in models.items() if not backend.busy().alive]
        return JSONResponse({"status": "error" if stopped else "ok", "stopped": stopped}, 503 if stopped else 200)

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(service.observer.render(models), media_type=metrics.CONTENT_TYPE)

    return app


class _Service:
    """What the routes share."""

    def __init__(self, models: Mapping[str, ChatBackend], record: Callable[[Answer], None] | None) -> None:
        self.models = models
        self.created = int(time.time())
        self.observer = Observer()
        self._record = record
        self._answers: AnswerLog | None = None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._answers = AnswerLog(self._record) if self._record is not None else None
        for backend in self.models.values():
            await backend.start()
        try:
            yield
        finally:
            for backend in self.models.values():
                await backend.close()
            if self._answers is not None:
                await asyncio.to_thread(self._answers.close)

    def backend(self, name: str) -> ChatBackend:
        if name not in self.models:
            raise errors.UnknownModel(name, list(self.models))
        return self.models[name]

    def model_object(self, name: str) -> dict[str, Any]:
        info = self.models[name].info
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "liuyi",
            "model_digest": info.model_digest or None,
            "app_digest": info.app_digest,
            "max_model_len": info.max_tokens,
        }

    async def answer(
        self,
        body: ChatCompletionBody | CompletionBody,
        request: Request,
        form: ChatFormat | TextFormat,
        backend: ChatBackend,
        begin: Callable[[], Awaitable[Deltas]],
        prompts: int,
    ) -> Response:
        """Answer whole, or as a stream; either way a client that hangs up cancels the work."""
        options = body.options()
        answering = Answering(
            id=form.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            model=body.model,
            info=backend.info,
            choices=options.n,
        )
        follow = self.observer.request(body.model)
        try:
            deltas = await begin()
        except Exception as error:
            follow.end(errors.describe(error)[0])
            raise
        followed = Followed(deltas, answering, follow, lambda: self._keep(answering, body))
        if body.stream:
            return EventStream(followed, answering, form, prompts * options.n, body.includes_usage)
        answer = await unless_gone(request.receive, whole(followed, answering, form, options.logprobs))
        return JSONResponse(answer) if answer is not None else Response(status_code=CLIENT_GONE)

    def _keep(self, answering: Answering, body: ChatCompletionBody | CompletionBody) -> None:
        if self._answers is None:
            return
        asked = body.model_dump(mode="json", exclude_none=True, by_alias=True)
        detail = {
            "model": answering.model,
            "parameters": {name: value for name, value in asked.items() if name not in ("messages", "prompt", "model")},
            "usage": answering.usage,
            "finish_reasons": [reason for _, reason in sorted(answering.finish_reasons.items())],
            "choices": {str(index): dict(detail) for index, detail in sorted(answering.details.items())},
        }
        info = answering.info
        self._answers.add(Answer(answering.id, info.model_digest, info.app_digest, sha256_json(asked), detail))
