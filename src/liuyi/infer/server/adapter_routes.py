"""`/v1/adapters`: load and drop LoRA adapters at run time; each answers to a model's name of its own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import StringConstraints

from liuyi.core.errors import ModelError
from liuyi.infer.errors import RequestError
from liuyi.infer.server.backend import AdapterBackend
from liuyi.infer.server.messages import Body
from liuyi.infer.server.service import Service


class AdapterBody(Body):
    """The body of `POST /v1/adapters`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """A folder in PEFT's layout, on the server's machine."""
    model: str | None = None
    """The model that it changes; the first that takes adapters when None."""


def add(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    def backend_of(model: str | None) -> AdapterBackend:
        names = [model] if model is not None else list(service.models)
        for name in names:
            backend = service.find(name).backend
            if isinstance(backend, AdapterBackend):
                return backend
        raise RequestError("no model here takes adapters", param="model")

    @app.get("/v1/adapters")
    async def list_adapters() -> dict[str, Any]:
        """The adapters that there are."""
        found = [service.model_object(name) for name in service.names if name not in service.models]
        return {"object": "list", "data": found}

    @app.post("/v1/adapters")
    async def load_adapter(body: AdapterBody) -> dict[str, Any]:
        """Load an adapter; one of that name is replaced, and requests in work end with the one they began with."""
        if body.name in service.models:
            raise RequestError(f"'{body.name}' is the name of a model", param="name")
        try:
            await backend_of(body.model).load_adapter(body.name, body.path)
        except ModelError as error:
            raise RequestError(str(error), param="path") from error
        return service.model_object(body.name)

    @app.delete("/v1/adapters/{name:path}")
    async def drop_adapter(name: str) -> dict[str, Any]:
        """Drop an adapter; requests in work end with it."""
        target = service.find(name)
        if target.adapter is None or not isinstance(target.backend, AdapterBackend):
            raise RequestError(f"'{name[:200]}' is no adapter", param="name")
        await target.backend.drop_adapter(name)
        return {"id": name, "object": "model", "deleted": True}
