"""Applications behind the same API: a backend that is no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import openai
import pytest
from infer_support import LiveServer, client_of, eventually, live_server

from liuyi.infer.server.backend import BackendInfo, ChatRequest, Delta, Deltas, Load, Yielded


class Application:
    """A backend that is no model: it answers at once, slowly, or not at all."""

    info = BackendInfo(model_digest="m" * 64, app_digest="a" * 64)

    def __init__(self) -> None:
        self.closed_early = threading.Event()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def busy(self) -> Load:
        return Load()

    async def chat(self, request: ChatRequest) -> Deltas:
        return Yielded(self._answer(str(request.messages[-1]["content"])))

    async def _answer(self, text: str) -> AsyncGenerator[Delta, None]:
        if text == "fail":
            yield Delta(text="so far")
            raise ValueError("a secret detail")
        try:
            while text == "wait":
                await asyncio.sleep(0.01)
        except BaseException:
            self.closed_early.set()
            raise
        yield Delta(text=text.upper(), finish_reason="stop", completion_tokens=1, detail={"rung": "rules"})


@pytest.fixture(scope="module")
def app() -> Iterator[LiveServer]:
    with live_server({"desk": Application()}) as live:
        yield live


class TestApplications:
    def test_answer_under_the_same_api_and_are_recorded(self, app: LiveServer) -> None:
        with client_of(app) as client:
            answer = client.chat.completions.create(model="desk", messages=[{"role": "user", "content": "hi"}])
            assert answer.choices[0].message.content == "HI"
            eventually(lambda: bool(app.answers), "not recorded")
            recorded = app.answers[0]
            assert (recorded.id, recorded.app_digest, recorded.model_digest) == (answer.id, "a" * 64, "m" * 64)
            assert recorded.detail["choices"] == {"0": {"rung": "rules"}}
            with pytest.raises(openai.BadRequestError, match="conversations only"):
                client.completions.create(model="desk", prompt="hi")

    def test_that_fail_say_so_without_details(self, app: LiveServer) -> None:
        with client_of(app) as client:
            failing: Any = [{"role": "user", "content": "fail"}]
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="desk", messages=failing)
            assert "secret" not in str(caught.value)
            stream = client.chat.completions.create(model="desk", messages=failing, stream=True)
            with pytest.raises(openai.APIError) as broken:
                list(stream)
            assert "secret" not in str(broken.value)

    def test_stop_when_the_client_hangs_up(self, app: LiveServer) -> None:
        backend = app.backend
        assert isinstance(backend, Application)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{app.url}/v1/chat/completions",
                json={"model": "desk", "messages": [{"role": "user", "content": "wait"}]},
                timeout=0.3,
            )
        assert backend.closed_early.wait(60)
