"""Many clients, clients that hang up, clients that never read, and a server that stops."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from infer_support import LONG, MESSAGES, LiveServer, SlowSteps, backend_over, client_of, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


class TestHangUp:
    @pytest.mark.parametrize("stream", [False, True])
    def test_cancels_the_work_and_frees_the_slot(
        self, live: LiveServer, live_engine: Engine, stream: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = SlowSteps(live_engine, monkeypatch)
        address = live.url.removeprefix("http://")
        host, port = address.split(":")
        # Several answers at once, so that some of them still wait for a slot.
        body = json.dumps(LONG | {"stream": stream, "n": 12}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: live_engine.running == 8 and live_engine.waiting == 4, "the request did not start")
        eventually(lambda: not live_engine.has_work, "the slots were not freed")
        assert steps.count < 200  # answering all would have taken 400
        assert live.backend.busy().waiting == 0
        metrics = httpx.get(f"{live.url}/metrics").text
        assert 'liuyi_requests_total{model="tiny",status="499"}' in metrics

    def test_of_a_streaming_client_in_the_middle(self, client: openai.OpenAI, live_engine: Engine) -> None:
        stream = client.chat.completions.create(**LONG, stream=True)
        for _ in range(5):
            next(stream)
        stream.close()
        eventually(lambda: not live_engine.has_work, "the slot was not freed")


class TestLoad:
    @pytest.mark.slow
    def test_fifty_clients_at_once(self, live: LiveServer) -> None:
        def ask(at: int) -> str:
            with client_of(live) as client:
                asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "seed": at % 5}
                if at % 2:
                    return client.chat.completions.create(**asked).choices[0].message.content or ""
                stream = client.chat.completions.create(**asked, stream=True)
                return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)

        with ThreadPoolExecutor(50) as pool:
            texts = list(pool.map(ask, range(50)))
        assert all(len({texts[at] for at in range(kind, 50, 5)}) == 1 for kind in range(5))
        eventually(lambda: live.backend.busy().running == live.backend.busy().waiting == 0, "not idle")
        assert live.backend.busy().queued_tokens == live.backend.busy().kv_used_tokens == 0

    def test_a_full_queue_refuses_with_retry_after(
        self, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = Engine(model, tokenizer, max_slots=1)
        steps = SlowSteps(engine, monkeypatch, rest_s=0.005)
        backend = backend_over(engine, max_queue=1)
        with live_server({"tiny": backend}) as live, ThreadPoolExecutor(2) as pool, client_of(live) as client:
            streams = [client.chat.completions.create(**LONG, stream=True) for _ in range(2)]
            refused = httpx.post(f"{live.url}/v1/chat/completions", json=LONG)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            with pytest.raises(openai.RateLimitError):
                client.chat.completions.create(**LONG)
            steps.rest_s = 0
            assert all(pool.map(lambda stream: len(list(stream)) > 10, streams))
            assert client.chat.completions.create(**(LONG | {"max_tokens": 1})).choices

    def test_a_client_that_never_reads_holds_up_nobody(
        self, client: openai.OpenAI, live: LiveServer, live_engine: Engine
    ) -> None:
        address = live.url.removeprefix("http://")
        host, port = address.split(":")
        body = json.dumps(LONG | {"stream": True, "n": 4, "logprobs": True, "top_logprobs": 20}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((host, int(port)))
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=50, seed=1)
            assert answer.choices[0].message.content
            eventually(lambda: not live_engine.has_work, "decoding waited for the reader")


def test_stopping_finishes_what_was_begun(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, max_slots=2)
    steps = SlowSteps(engine, monkeypatch)
    with live_server({"tiny": backend_over(engine)}) as live, client_of(live) as client:
        stream = client.chat.completions.create(**LONG, stream=True)
        next(stream)
        live.stop()
        steps.rest_s = 0
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        eventually(lambda: _refuses(live.url), "it still takes new calls")


def _refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return True
    except httpx.RemoteProtocolError:  # It came while the socket was being closed.
        pass
    return False
