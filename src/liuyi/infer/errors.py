"""Errors of inference: what a request did wrong, and why an engine cannot take it now."""

from __future__ import annotations

from liuyi.core.errors import LiuyiError


class RequestError(LiuyiError):
    """A request asks for what cannot be done; `param` names the field, `code` the reason, as OpenAI's API does."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


def context_exceeded(what: str, context: int, *, param: str) -> RequestError:
    """What is longer than the model's context, in the words of OpenAI's API: by them, more than by `code`, clients
    find out that they have to shorten a conversation (LiteLLM's `ContextWindowExceededError`)."""
    message = f"{what}; this model's maximum context length is {context} tokens, at least one of them for the answer"
    return RequestError(message, param=param, code="context_length_exceeded")


class Overloaded(LiuyiError):
    """The queue is full; nothing was done for the request. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(LiuyiError):
    """The engine failed, or has stopped, while the request was in it."""


class Unavailable(EngineError):
    """There is no engine just now, or it was lost with the request in it. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlinePassed(EngineError):
    """The answer was not there in time; the work was stopped."""
