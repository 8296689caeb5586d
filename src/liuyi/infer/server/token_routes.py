"""`/v1/embeddings`, as OpenAI has it, and `/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from liuyi.infer.errors import RequestError
from liuyi.infer.server import errors
from liuyi.infer.server.backend import TokenBackend
from liuyi.infer.server.deadline import HEADER, limited, timeout_of
from liuyi.infer.server.respond import unless_gone
from liuyi.infer.server.service import CLIENT_GONE, Service
from liuyi.infer.server.token_protocol import (
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    embeddings_answer,
    tokens_answer,
)


def add(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    def backend_of(model: str) -> TokenBackend:
        backend = service.find(model).backend
        if not isinstance(backend, TokenBackend):
            raise RequestError(f"'{model}' is an application, which shows no tokens", param="model")
        return backend

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, request: Request) -> Response:
        """The mean of the final hidden states over each text's tokens, scaled to length 1."""
        backend = backend_of(body.model)
        if service.find(body.model).adapter is not None:
            raise RequestError("embeddings are made by the model without adapters", param="model")
        timeout_s = timeout_of(request.headers.get(HEADER), None, service.timeout_s)
        follow = service.observer.request(body.model, request.headers)
        try:
            embedded = await unless_gone(request.receive, limited(timeout_s, backend.embed(body.texts)))
            if embedded is not None:
                body.check_dimensions(embedded[0].shape[1])
        except Exception as error:
            follow.end(errors.describe(error)[0])
            raise
        if embedded is None:
            follow.end(CLIENT_GONE)
            return Response(status_code=CLIENT_GONE)
        vectors, tokens = embedded
        follow.finish(200, prompt_tokens=tokens, completion_tokens=0)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if (charge := getattr(request.state, "charge", None)) is not None:
            charge.used_tokens = tokens
        return JSONResponse(embeddings_answer(body.model, list(vectors), encoding=body.encoding_format, tokens=tokens))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The tokens of a text, or of a conversation through the chat template."""
        backend = backend_of(body.model)
        if body.prompt is not None:
            ids = await backend.tokenize(body.prompt, begin=body.add_special_tokens)
        else:
            ids = await backend.tokenize_chat(body.conversation(), answer_begins=body.add_generation_prompt)
        pieces = [backend.token_text(id) for id in ids] if body.return_token_strs else None
        return tokens_answer(ids, max_tokens=backend.info.max_tokens, token_strs=pieces)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of tokens."""
        return {"prompt": await backend_of(body.model).detokenize(body.tokens)}
