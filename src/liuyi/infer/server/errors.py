"""Every error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuyi.core.errors import LiuyiError, ModelError, OutOfMemory, did_you_mean
from liuyi.infer.errors import DeadlinePassed, EngineError, Overloaded, RequestError, Unavailable

logger = logging.getLogger("liuyi.server")

REFUSALS = frozenset({400, 401, 403, 404, 405, 408, 413, 429, 503, 504})
"""Statuses of requests that were turned away, rather than failed on."""

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    403: "not_local",
    413: "request_too_large",
    429: "overloaded",
    503: "unavailable",
    504: "deadline_exceeded",
}


class UnknownModel(RequestError):
    """The request names a model that this server has not."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        message = f"the model '{model[:200]}' does not exist; {did_you_mean(model[:200], known)}"
        super().__init__(message, param="model", code="model_not_found")


class ErrorResponse(JSONResponse):
    """An error, whose code whoever stands further out finds in `scope["state"]["error_code"]`."""

    def __init__(self, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers=headers)
        self._code = body["error"]["code"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error response."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = code or _CODES.get(status)
    return {"error": {"message": _clean(message), "type": kind, "param": param and _clean(param), "code": code}}


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ErrorResponse:
    """An error response."""
    return ErrorResponse(error_body(status, message, param=param, code=code), status, headers)


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error that was met while answering."""
    if isinstance(error, UnknownModel):
        return 404, error_body(404, error.message, param=error.param, code=error.code)
    if isinstance(error, RequestError):
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        return 400, error_body(400, message, param=error.param, code=error.code)
    if isinstance(error, Overloaded):
        return 429, error_body(429, error.message)
    if isinstance(error, DeadlinePassed):
        return 504, error_body(504, error.message)
    if isinstance(error, EngineError | OutOfMemory):
        return 503, error_body(503, error.message)
    if isinstance(error, ModelError):
        return 400, error_body(400, str(error), param="messages")
    if isinstance(error, LiuyiError):
        return 500, error_body(500, str(error))
    return 500, error_body(500, "the server met an error that it did not expect; its log says more")


def install(app: FastAPI) -> None:
    """Answer every error of the app in OpenAI's shape."""

    async def known(request: Request, error: Exception) -> Response:
        status, body = describe(error)
        headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded | Unavailable) else None
        return ErrorResponse(body, status, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = _first_problem(error.errors())
        return error_response(400, message, param=param)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400 and error.__cause__ is not None:
            return error_response(400, _unread(error.__cause__))
        if error.status_code == 404:
            path = request.url.path[:200]
            known = any(getattr(route, "path", "") == f"/v1{path}" for route in request.app.routes)
            meant = f"; did you mean /v1{path}? a client's base URL ends in /v1" if known else ""
            return error_response(404, f"there is no {request.method} {path}{meant}")
        if error.status_code == 405:
            taken = (error.headers or {}).get("Allow", "another method")
            message = f"{request.url.path[:200]} takes {taken}, not {request.method}"
            return error_response(405, message, code="method_not_allowed", headers=error.headers)
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    app.add_exception_handler(LiuyiError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_middleware(_Unforeseen)


class _Unforeseen:
    """Answers an exception that nobody foresaw, so that it costs one response and not the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            logger.exception("a request failed")
            status, body = describe(error)
            await ErrorResponse(body, status)(scope, receive, send)


# Pydantic names the member of a union that it tried as if it were a part of the path.
_TYPE = re.compile(r"(constrained-)?(str|int|float|bool|list|dict|tuple|nullable|literal|function-after)(\W.*)?")


def _first_problem(problems: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Message and field of the first thing that is wrong with a body; what the client sent is not repeated."""
    # Where a field may be one of several things, those that are of another type are not what the client meant.
    problem = next((one for one in problems if not _is_of_another_type(one)), problems[0])
    if problem["type"] == "json_invalid":
        detail = str(problem.get("ctx", {}).get("error", "")) or "it cannot be parsed"
        return f"the body is not valid JSON: {detail}", None
    if problem["loc"] == ("body",) and not isinstance(problem["input"], dict):
        return "the body must be a JSON object, sent with 'Content-Type: application/json'", None
    place = [str(part) for part in _without_tag(problem["loc"]) if not _TYPE.fullmatch(str(part))]
    param = ".".join(place)[:200] or None
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "this parameter is not known"
    return (f"{param}: {message}" if param else message), param


def _is_of_another_type(problem: Mapping[str, Any]) -> bool:
    is_object = isinstance(problem.get("input"), dict | list)
    return problem["type"].endswith("_type") or (problem["type"] == "literal_error" and is_object)


def _without_tag(loc: Sequence[str | int]) -> list[str | int]:
    """The place of a problem without what pydantic adds: where it looked, and the kind of `response_format` it took."""
    place = [part for part in loc if part not in ("body", "[key]")]
    if "response_format" in place[:-1]:
        del place[place.index("response_format") + 1]
    return place


def _unread(cause: BaseException) -> str:
    """Why a body could not be read as JSON."""
    if isinstance(cause, UnicodeDecodeError):
        return "the body is not valid JSON: it is not UTF-8"
    if isinstance(cause, RecursionError):
        return "the body is not valid JSON: it is nested too deeply"
    return "the body could not be read"


def _clean(text: str) -> str:
    """Text that UTF-8 can carry: what a client sent may hold halves of surrogate pairs."""
    return text.encode("utf-8", errors="replace").decode()
