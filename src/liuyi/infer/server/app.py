"""The HTTP application: OpenAI's chat completions, completions, embeddings and models, beside health and metrics.

app = create_app({"desk": backend}, record=lambda answer: ledger.add_answer(...))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import liuyi
from liuyi.infer.errors import RequestError
from liuyi.infer.server import adapter_routes, errors, guard, metrics, token_routes
from liuyi.infer.server.answers import Answer
from liuyi.infer.server.backend import ChatBackend, Served, TextBackend
from liuyi.infer.server.format import ChatFormat, TextFormat
from liuyi.infer.server.gate import Doorkeeper, Gate
from liuyi.infer.server.keys import KeyRing
from liuyi.infer.server.observer import Observer
from liuyi.infer.server.protocol import ChatCompletionBody, CompletionBody
from liuyi.infer.server.service import Service
from liuyi.infer.server.tracing import Tracing

MAX_BODY_BYTES = 4 * 2**20


def create_app(
    models: Mapping[str, ChatBackend],
    *,
    record: Callable[[Answer], None] | None = None,
    keys: KeyRing | None = None,
    gate: Gate | None = None,
    local_only: bool = True,
    max_body_bytes: int = MAX_BODY_BYTES,
    timeout_s: float | None = None,
    adapter_loading: bool = False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """An application that serves `models` by name, the first one being named first in `/v1/models`.

    `record` is called, in another thread, for each answer. With `keys` every call but `/health` needs one of them.
    The server closes `gate` before it stops. `local_only` refuses calls that name another host than this one.
    No answer may take longer than `timeout_s`; None lets them. `adapter_loading` lets callers load adapters from this
    machine's folders. `tracing` is told of every request.
    """
    gate = gate or Gate()
    observer = Observer(gate, tracing)
    service = Service(models, record, observer, timeout_s)
    app = FastAPI(title="Liuyi", version=liuyi.__version__, docs_url=None, redoc_url=None, lifespan=service.lifespan)
    protect(app, gate=gate, observer=observer, keys=keys, local_only=local_only, max_body_bytes=max_body_bytes)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionBody, request: Request) -> Response:
        """Continue a conversation."""
        target = service.find(body.model)
        chat = body.request()
        chat = replace(chat, options=replace(chat.options, adapter=target.adapter))
        return await service.answer(body, request, ChatFormat(), target.info, lambda: target.backend.chat(chat), 1)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        target = service.find(body.model)
        backend = target.backend
        if not isinstance(backend, TextBackend):
            raise RequestError(f"'{body.model}' takes conversations only", param="model", hint="/v1/chat/completions")
        text = body.request()
        text = replace(text, options=replace(text.options, adapter=target.adapter))
        prompts = len(text.prompts)
        return await service.answer(body, request, TextFormat(), target.info, lambda: backend.complete(text), prompts)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models and applications that are served, each with its adapters."""
        return {"object": "list", "data": [service.model_object(name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return service.model_object(name)

    if adapter_loading:
        adapter_routes.add(app, service)
    token_routes.add(app, service)
    add_health(app, models, observer, gate)
    return app


def protect(
    app: FastAPI,
    *,
    gate: Gate,
    observer: Observer,
    keys: KeyRing | None,
    local_only: bool,
    max_body_bytes: int,
) -> None:
    """Answer errors in OpenAI's shape, and put the guards before the routes; the last one added stands first."""
    errors.install(app)
    app.add_middleware(guard.BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(guard.ApiKeys, keys=keys or KeyRing())
    if local_only:
        app.add_middleware(guard.LocalHostsOnly)
    app.add_middleware(Doorkeeper, gate=gate, refused=observer.refused)


def add_health(app: FastAPI, backends: Mapping[str, Served], observer: Observer, gate: Gate) -> None:
    """`/health` and `/metrics`, which are answered while the server drains, too."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether all backends can answer: `ok`, `draining`, or `error` with the state of those that cannot."""
        loads = {name: backend.busy() for name, backend in backends.items()}
        stopped = {name: load.state for name, load in loads.items() if not load.alive}
        status = "draining" if gate.draining else "error" if stopped else "ok"
        return JSONResponse({"status": status, "stopped": stopped}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(observer.render(backends), media_type=metrics.CONTENT_TYPE)
