"""The events of a stream: as if each chunk were encoded whole, whatever server the application runs in."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_support import live_server
from starlette.types import Message

from liuyi.infer.server import connection
from liuyi.infer.server.app import create_app
from liuyi.infer.server.backend import (
    BackendInfo,
    CallDelta,
    ChatRequest,
    Delta,
    Deltas,
    Load,
    TokenLogprob,
    Yielded,
)
from liuyi.infer.server.format import Answering, ChatFormat, TextFormat
from liuyi.infer.server.respond import EventStream

TEXT = st.text(max_size=8) | st.just('","choices":[')
TOKENS = st.builds(
    TokenLogprob,
    st.binary(max_size=4),
    st.floats(-20, 0),
    st.tuples(st.builds(TokenLogprob, st.binary(), st.floats(-9, 0))),
)
DELTAS = st.builds(
    Delta,
    index=st.integers(0, 3),
    text=TEXT,
    tokens=st.lists(TOKENS, max_size=2).map(tuple),
    calls=st.lists(st.builds(CallDelta, st.integers(0, 2), name=st.none() | TEXT, arguments=TEXT), max_size=2).map(
        tuple
    ),
    finish_reason=st.none() | st.just("stop"),
)


async def sent(response: EventStream) -> bytes:
    """What a server would send of it."""
    body = b""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal body
        body += message.get("body", b"")

    await response({"type": "http"}, receive, send)
    return body


@settings(max_examples=50, deadline=None)
@given(
    deltas=st.lists(DELTAS, max_size=5),
    model=TEXT,
    with_usage=st.booleans(),
    form=st.sampled_from([ChatFormat, TextFormat]),
)
def test_every_chunk_is_what_its_object_says(
    deltas: list[Delta], model: str, with_usage: bool, form: type[ChatFormat | TextFormat]
) -> None:
    async def said() -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    answering = Answering("id", 1, model, BackendInfo(model_digest="d" * 64), choices=4)
    response = EventStream(Yielded(said()), answering, form(), 4, with_usage)
    *events, done, rest = asyncio.run(sent(response)).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")

    told = form()
    openings = [opening for index in range(4) if (opening := told.opening(index)) is not None]
    choices = [[choice] for choice in openings + [piece for delta in deltas for piece in told.pieces(delta)]]
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    expected = [answering.object(told.chunk_kind, choice, **more) for choice in choices]
    if with_usage:
        expected.append(answering.object(told.chunk_kind, [], usage=answering.usage))
    assert [json.loads(event.removeprefix(b"data: ")) for event in events] == json.loads(json.dumps(expected))


class Speaker:
    """Says the question word by word; breaks off at "stop", and goes on with "ever" until the client has gone."""

    def __init__(self) -> None:
        self.left = threading.Event()

    info = BackendInfo(model_digest="d" * 64)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def busy(self) -> Load:
        return Load()

    async def chat(self, request: ChatRequest) -> Deltas:
        return Yielded(self._say(str(request.messages[-1]["content"]).split()))

    async def _say(self, words: list[str]) -> AsyncGenerator[Delta, None]:
        for word in words:
            if word == "stop":
                raise ValueError("a secret detail")
            try:
                while word == "ever":
                    yield Delta(text="x" * 100_000)
                    await asyncio.sleep(0.002)
            finally:
                self.left.set()
            yield Delta(text=word)
        yield Delta(finish_reason="stop", prompt_tokens=1, completion_tokens=len(words))


@pytest.mark.parametrize("question", ["turn on the lights", "turn stop", "厨房 的 灯"])
def test_other_servers_send_the_same(question: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "stream": True}
    with live_server({"m": Speaker()}) as live:
        ours = httpx.post(f"{live.url}/v1/chat/completions", json=body)

    async def elsewhere() -> httpx.Response:
        transport = httpx.ASGITransport(create_app({"m": Speaker()}))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/v1/chat/completions", json=body)

    def said(response: httpx.Response) -> list[Any]:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        chunks = [line if line == "[DONE]" else json.loads(line) for line in lines]
        return [chunk if chunk == "[DONE]" else chunk.get("choices") or chunk for chunk in chunks]

    theirs = asyncio.run(elsewhere())
    assert said(ours) == said(theirs)
    assert len(said(ours)) == len(question.split()) + (1 if "stop" in question else 3)
    assert "secret" not in ours.text


@pytest.mark.parametrize(("limit", "value"), [("TAKEN_S", 0.3), ("LEFT_BYTES", 100_000)])
def test_a_client_that_takes_nothing_of_its_stream_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(connection, "TAKEN_S", 1000.0)
    monkeypatch.setattr(connection, limit, value)
    speaker = Speaker()
    content = json.dumps({"model": "m", "messages": [{"role": "user", "content": "ever"}], "stream": True}).encode()
    with live_server({"m": speaker}) as live:
        address = live.url.removeprefix("http://")
        host, port = address.split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as sleeper:
            sleeper.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            assert speaker.left.wait(60)
        assert 'status="499"} 1' in httpx.get(f"{live.url}/metrics").text
