"""Who may come in: limits of requests and tokens, deadlines, and a server that drains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from infer_support import LONG, MESSAGES, LiveServer, SlowSteps, backend_over, client_of, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.infer.errors import Overloaded, RequestError
from liuyi.infer.server import model_backend
from liuyi.infer.server.admission import Admission
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


class TestAdmission:
    def test_counts_requests_and_tokens_until_they_leave(self) -> None:
        admission = Admission(max_requests=2, max_tokens=1000)
        first = admission.enter(requests=1, prompt_tokens=100, answer_tokens=100)
        second = admission.enter(requests=1, prompt_bytes=1000)
        with pytest.raises(Overloaded):
            admission.enter(requests=1)
        second.leave()
        second.leave()
        with pytest.raises(Overloaded):
            admission.enter(requests=1, prompt_tokens=801)
        third = admission.enter(requests=1, prompt_tokens=800)
        first.leave(done_tokens=200)
        third.leave(done_tokens=800)
        assert (admission.requests, admission.tokens) == (0, 0)
        with pytest.raises(RequestError):
            admission.enter(requests=3)

    def test_an_estimate_is_settled_and_learnt_from(self) -> None:
        admission = Admission(max_requests=9, max_tokens=1000)
        place = admission.enter(requests=1, prompt_bytes=1_000_000)  # an estimate shuts nobody out for good
        place.settle(300, 1_000_000, 250)
        assert admission.tokens == 300
        assert admission.tokens_per_byte < 0.3
        other = admission.enter(requests=1, prompt_bytes=10)
        with pytest.raises(Overloaded):
            other.settle(701)
        assert (admission.requests, admission.tokens) == (1, 300)
        with pytest.raises(RequestError):
            admission.enter(requests=1).settle(1001)
        place.leave()
        assert (admission.requests, admission.tokens) == (0, 0)

    def test_says_when_to_come_back_by_what_was_done_of_late(self) -> None:
        now = 0.0
        admission = Admission(max_requests=100, max_tokens=10_000, clock=lambda: now)
        for _ in range(50):
            place = admission.enter(requests=1, prompt_tokens=1000)
            now += 10
            place.leave(done_tokens=1000)
        assert admission.tokens_per_s == pytest.approx(100, rel=0.02)
        admission.enter(requests=1, prompt_tokens=10_000)
        with pytest.raises(Overloaded) as caught:
            admission.enter(requests=1, prompt_tokens=1500)
        assert 14 <= caught.value.retry_after_s <= 16
        with pytest.raises(Overloaded) as caught:
            admission.enter(requests=1, prompt_tokens=9000)
        assert caught.value.retry_after_s == 60


def test_too_many_tokens_are_refused_before_any_is_made(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, max_slots=2)
    steps = SlowSteps(engine, monkeypatch)
    backend = backend_over(engine, max_queue_tokens=100)
    with live_server({"tiny": backend}) as live, client_of(live) as client:
        streams = [client.chat.completions.create(**LONG, stream=True) for _ in range(2)]
        monkeypatch.setattr(model_backend, "encode_chat", lambda *args, **options: pytest.fail("it was tokenised"))
        refused = httpx.post(f"{live.url}/v1/chat/completions", json=LONG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "overloaded"
        steps.rest_s = 0
        assert all(len(list(stream)) > 10 for stream in streams)
        eventually(lambda: backend.admission.tokens == 0, "tokens are still held")
        assert 'reason="overloaded"} 1' in httpx.get(f"{live.url}/metrics").text


@pytest.fixture(scope="module")
def slow(model: Decoder, tokenizer: Tokenizer) -> Iterator[tuple[LiveServer, Engine]]:
    engine = Engine(model, tokenizer, max_slots=2)
    with pytest.MonkeyPatch.context() as patch:
        SlowSteps(engine, patch, rest_s=0.02)
        with live_server({"tiny": backend_over(engine)}, timeout_s=30) as live:
            yield live, engine


class TestDeadline:
    @pytest.mark.parametrize("how", ["body", "header"])
    def test_stops_the_work_and_says_so(self, slow: tuple[LiveServer, Engine], how: str) -> None:
        live, engine = slow
        body, headers = (LONG | {"timeout": 0.3}, {}) if how == "body" else (LONG, {"X-Request-Timeout": "0.3"})
        response = httpx.post(f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=20)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert "0.3 s" in response.json()["error"]["message"]
        eventually(lambda: not engine.has_work and engine.pool.used == 0, "the work goes on")

    def test_ends_a_stream_with_an_error(self, slow: tuple[LiveServer, Engine]) -> None:
        live, engine = slow
        with client_of(live) as client:
            stream = client.chat.completions.create(**LONG, stream=True, extra_body={"timeout": 1.5})
            seen: list[Any] = []
            with pytest.raises(openai.APIError, match="within"):
                seen.extend(stream)
            assert len(seen) > 2
        eventually(lambda: not engine.has_work, "the work goes on")

    @pytest.mark.parametrize("header", ["0", "-1", "soon", "nan", "inf"])
    def test_has_to_be_a_time(self, slow: tuple[LiveServer, Engine], header: str) -> None:
        response = httpx.post(
            f"{slow[0].url}/v1/chat/completions", json=LONG, headers={"X-Request-Timeout": header}, timeout=20
        )
        assert (response.status_code, response.json()["error"]["param"]) == (400, "timeout")


def test_a_draining_server_finishes_and_refuses(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, max_slots=1)
    steps = SlowSteps(engine, monkeypatch)
    with live_server({"tiny": backend_over(engine)}) as live, client_of(live) as client, httpx.Client() as http:
        stream = client.chat.completions.create(**LONG, stream=True)
        next(stream)
        live.stop()
        refused = http.post(f"{live.url}/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        health = http.get(f"{live.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        steps.rest_s = 0
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"


def test_a_request_may_not_name_a_time_beyond_the_servers(live: LiveServer) -> None:
    body = json.dumps(LONG | {"max_tokens": 1, "timeout": 1e12}).encode()
    response = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
