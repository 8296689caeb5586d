"""A real server with the OpenAI API for tests of synthesis: answers by a function, a log, faults on purpose."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """A response, byte for byte."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    delay_s: float = 0.0
    send_bytes: int | None = None
    """Close the connection after so many bytes of the body."""
    hang: bool = False
    """Never answer."""


@dataclass
class Asked:
    """A request."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What is asked: the last message, or the raw prompt."""
        return str(self.body["messages"][-1]["content"] if "messages" in self.body else self.body["prompt"])


Model = Callable[[Asked], "str | Reply"]


@dataclass
class ModelServer:
    """Where it listens, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    connections: int = 0

    def prompts(self) -> list[str]:
        return [asked.prompt for asked in self.asked]


def completion(text: str | None, asked: Asked | None = None, finish: str = "stop", **changes: Any) -> Reply:
    """A good response; tokens are counted as words."""
    words = len((text or "").split())
    raw = asked is not None and asked.path.endswith("/completions") and "chat" not in asked.path
    choice: dict[str, Any] = {"text": text} if raw else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(asked.prompt.split()) if asked else 0, "completion_tokens": words}
    body = {"model": "tiny-1", "choices": [choice | {"index": 0, "finish_reason": finish}], "usage": usage} | changes
    return Reply(json.dumps(body).encode())


@contextmanager
def model_server(model: Model) -> Iterator[ModelServer]:
    """Serve a model on a loopback address; each request is answered in a task of its own."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    served = ModelServer("")
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _serve(served, model, reader, writer), "127.0.0.1", 0
        )
        host, port = server.sockets[0].getsockname()
        served.url = f"http://{host}:{port}/v1"
        ready.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(120)
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(120)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert not thread.is_alive()


async def _serve(served: ModelServer, model: Model, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    served.connections += 1
    try:
        await _answer_all(served, model, reader, writer)
    finally:
        served.connections -= 1


async def _answer_all(
    served: ModelServer, model: Model, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while True:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines if line)
            headers = {name.lower(): value for name, value in pairs}
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(len(served.asked), first.split()[1], headers, json.loads(data or b"{}"))
            if asked.path.endswith("/models"):
                reply = Reply(json.dumps({"data": [{"id": "tiny"}]}).encode())
            else:
                served.asked.append(asked)
                answer = model(asked)
                reply = completion(answer, asked) if isinstance(answer, str) else answer
            served.open_now += 1
            served.most_open = max(served.most_open, served.open_now)
            try:
                if reply.hang:
                    await asyncio.sleep(3600)
                await asyncio.sleep(reply.delay_s)
            finally:
                served.open_now -= 1
            head = f"HTTP/1.1 {reply.status} Status\r\ncontent-length: {len(reply.body)}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items()) + "\r\n"
            writer.write(head.encode() + reply.body[: reply.send_bytes])
            await writer.drain()
            if reply.send_bytes is not None:
                break
