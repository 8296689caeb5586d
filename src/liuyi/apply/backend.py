"""The application as a chat backend: the server's clients talk to it as to a model.

    backend = open_app(app, model)              # two artifacts
    serve({"desk": backend})

The last user message is the request; the reply is JSON (see `replies`). A reply that asks for a confirmation is
followed by "yes" or "no" in the same conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from liuyi.apply.app import AppConfig, Knowledge
from liuyi.apply.cascade import Cascade, Outcome
from liuyi.apply.model_rung import ModelRung
from liuyi.apply.replies import pending, reply, settle, yes_or_no
from liuyi.core.artifact import Artifact
from liuyi.core.errors import ArtifactError
from liuyi.infer.errors import Overloaded, RequestError
from liuyi.infer.grammar import ANY_JSON_OBJECT
from liuyi.infer.server.backend import BackendInfo, ChatRequest, Delta, Deltas, Load, Yielded

_MAX_CHARACTERS = 2000


def open_app(app: Artifact, model: Artifact, *, max_waiting: int = 64) -> AppBackend:
    """The backend of a published application and its model.

    Raises ArtifactError if the application was built with another model.
    """
    config, knowledge = AppConfig.load(app.path), Knowledge.load(app.path)
    check_model(config, model)
    rung = ModelRung.load(
        model.path, schema=knowledge.schema if config.constrained else None, max_tokens=config.max_tokens
    )
    info = BackendInfo(model_digest=model.digest, app_digest=app.digest)
    return AppBackend(config.cascade(knowledge, rung), info, max_waiting=max_waiting)


def check_model(config: AppConfig, model: Artifact) -> None:
    """Raises ArtifactError if the application was not built with this model: its confidences would mean nothing."""
    if config.model != model.digest:
        raise ArtifactError(
            f"the application was built with the model {config.model[:12]}, not {model.digest[:12]}",
            hint="build it again with this model, or give the one that it was built with",
        )


class AppBackend:
    """Answers one request after the other in a thread of its own."""

    def __init__(self, cascade: Cascade, info: BackendInfo, *, max_waiting: int = 64) -> None:
        self._cascade, self._info, self._max_waiting = cascade, info, max_waiting
        # One thread, and no lock: a request whose client leaves would give a lock back while its thread still works.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="application")
        self._unanswered = 0

    @property
    def info(self) -> BackendInfo:
        """Where its answers come from."""
        return self._info

    async def start(self) -> None:
        """Nothing is to be done: everything was loaded with the application."""

    async def chat(self, request: ChatRequest) -> Deltas:
        """The reply to the last user message.

        Raises RequestError for a request that is none, Overloaded if too many wait.
        """
        messages = request.messages
        if not messages or messages[-1].get("role") != "user":
            raise RequestError("the last message must be the user's", param="messages")
        text = str(messages[-1].get("content") or "").strip()
        if not text:
            raise RequestError("the last message is empty", param="messages")
        if len(text) > _MAX_CHARACTERS:
            raise RequestError(f"a request to the desk has at most {_MAX_CHARACTERS} characters", param="messages")
        if request.options.grammar not in (None, ANY_JSON_OBJECT):
            raise RequestError(
                "the application answers in its own format; leave out response_format", param="response_format"
            )
        if request.tools is not None:
            raise RequestError("the application calls no functions of its clients", param="tools")
        if self._unanswered >= self._max_waiting:
            raise Overloaded(f"{self._unanswered} requests are waiting", retry_after_s=1)
        return Yielded(self._reply(text, request))

    async def _reply(self, text: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        detail: dict[str, object]
        said = yes_or_no(text)
        waits = pending(request.messages) if said else []
        if said and waits:
            content = settle(waits, said, self._cascade.guard)
            outcome, detail = Outcome(()), {"rung": "confirmation", "said": said, "request": text, "reply": content}
        else:
            outcome = await self._respond(text)
            content, detail = reply(outcome), _detail(text, outcome)
        for index in range(request.options.n):
            yield Delta(
                index=index,
                text=content,
                finish_reason="stop",
                prompt_tokens=outcome.prompt_tokens,
                completion_tokens=outcome.completion_tokens if index == 0 else 0,
                detail=detail,
            )

    async def _respond(self, text: str) -> Outcome:
        self._unanswered += 1
        try:
            loop = asyncio.get_running_loop()
            (outcome,) = await loop.run_in_executor(self._thread, self._cascade.respond, [text])
            return outcome
        finally:
            self._unanswered -= 1

    def busy(self) -> Load:
        """How busy it is now."""
        running = min(1, self._unanswered)
        return Load(running=running, waiting=self._unanswered - running, slots=1)

    async def close(self) -> None:
        """Wait for the requests in work."""
        await asyncio.to_thread(self._thread.shutdown)


def _detail(text: str, outcome: Outcome) -> dict[str, object]:
    """What the ledger keeps of an answer: enough to look for mistakes and to learn from corrections."""
    return {
        "request": text,
        "reply": reply(outcome),
        "rungs": [answer.rung for answer in outcome.answers],
        "confidence": [round(answer.confidence, 4) for answer in outcome.answers],
        "confirmation_required": any(answer.confirmation_required for answer in outcome.answers),
        "hand_off": outcome.reason if outcome.hand_off else "",
    }
