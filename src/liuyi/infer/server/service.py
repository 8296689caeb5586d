"""What the routes share: the backends by name, how a request becomes an answer, and what is kept of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from liuyi.core.digest import sha256_json
from liuyi.infer.server import errors
from liuyi.infer.server.answers import Answer, AnswerLog
from liuyi.infer.server.backend import AdapterBackend, BackendInfo, ChatBackend, Deltas
from liuyi.infer.server.deadline import HEADER, timeout_of, within
from liuyi.infer.server.follow import Followed
from liuyi.infer.server.format import Answering, ChatFormat, TextFormat
from liuyi.infer.server.guard import Charge
from liuyi.infer.server.observer import Observer
from liuyi.infer.server.protocol import ChatCompletionBody, CompletionBody
from liuyi.infer.server.respond import REQUEST_ID, EventStream, unless_gone, whole

CLIENT_GONE = 499
UNSAID = frozenset({"messages", "prompt", "model", "tools", "input"})
"""What the ledger keeps only the digest of, or keeps elsewhere."""


@dataclass(frozen=True)
class Target:
    """Who answers to a model's name: a backend, with one of its adapters or without."""

    backend: ChatBackend
    info: BackendInfo
    adapter: str | None = None
    parent: str | None = None
    """Name of the model that the adapter changes."""


class Service:
    """The backends, and all that is done for each request."""

    def __init__(
        self,
        models: Mapping[str, ChatBackend],
        record: Callable[[Answer], None] | None,
        observer: Observer,
        timeout_s: float | None = None,
    ) -> None:
        """`record` is called, in another thread, for each answer; `timeout_s` is the most that one may take."""
        self.models = models
        self.created = int(time.time())
        self.observer = observer
        self.timeout_s = timeout_s
        self._record = record
        self._answers: AnswerLog | None = None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the backends, and close them in the end."""
        self._answers = AnswerLog(self._record) if self._record is not None else None
        started = []
        try:
            for backend in self.models.values():
                await backend.start()
                started.append(backend)
            yield
        finally:
            for backend in started:
                await backend.close()
            if self._answers is not None:
                await asyncio.to_thread(self._answers.close)
            await asyncio.to_thread(self.observer.close)

    @property
    def names(self) -> list[str]:
        """What requests may name: the models, and the adapters of each."""
        return [name for model in self.models for name in (model, *self._adapters(model))]

    def find(self, name: str) -> Target:
        """Who answers to that name. Raises UnknownModel if nobody does."""
        if name in self.models:
            return Target(self.models[name], self.models[name].info)
        for model, backend in self.models.items():
            if name in (adapters := self._adapters(model)):
                return Target(backend, replace(backend.info, adapter_digest=adapters[name]), name, model)
        raise errors.UnknownModel(name, self.names)

    def model_object(self, name: str) -> dict[str, Any]:
        """What `/v1/models` says of it."""
        target = self.find(name)
        info = target.info
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "liuyi",
            "parent": target.parent,
            "model_digest": info.model_digest or None,
            "adapter_digest": info.adapter_digest,
            "app_digest": info.app_digest,
            "max_model_len": info.max_tokens,
        }

    def _adapters(self, model: str) -> Mapping[str, str]:
        backend = self.models[model]
        return backend.adapters if isinstance(backend, AdapterBackend) else {}

    async def answer(
        self,
        body: ChatCompletionBody | CompletionBody,
        request: Request,
        form: ChatFormat | TextFormat,
        info: BackendInfo,
        begin: Callable[[], Awaitable[Deltas]],
        prompts: int,
    ) -> Response:
        """Answer whole, or as a stream; either way a client that hangs up cancels the work."""
        options = body.options()
        timeout_s = timeout_of(request.headers.get(HEADER), body.timeout, self.timeout_s)
        answering = Answering(
            id=form.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            model=body.model,
            info=info,
            choices=options.n,
        )
        follow = self.observer.request(body.model, request.headers)
        charge: Charge | None = getattr(request.state, "charge", None)
        try:
            deltas = await within(timeout_s, begin)
        except Exception as error:
            follow.end(errors.describe(error)[0])
            raise
        followed = Followed(deltas, answering, follow, charge, lambda: self._keep(answering, body, charge))
        if body.stream:
            return EventStream(followed, answering, form, prompts * options.n, body.includes_usage)
        answer = await unless_gone(request.receive, whole(followed, answering, form, options.logprobs))
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer, headers={REQUEST_ID: answering.id})

    def _keep(self, answering: Answering, body: ChatCompletionBody | CompletionBody, charge: Charge | None) -> None:
        if self._answers is None:
            return
        asked = body.model_dump(mode="json", exclude_none=True, by_alias=True)
        info = answering.info
        detail = {
            "model": answering.model,
            **({"key": charge.key} if charge is not None else {}),
            **({"adapter_digest": info.adapter_digest} if info.adapter_digest else {}),
            **info.made_with,
            "parameters": {name: value for name, value in asked.items() if name not in UNSAID},
            "usage": answering.usage,
            "finish_reasons": [reason for _, reason in sorted(answering.finish_reasons.items())],
            "choices": {str(index): dict(detail) for index, detail in sorted(answering.details.items())},
        }
        self._answers.add(Answer(answering.id, info.model_digest, info.app_digest, sha256_json(asked), detail))
