"""`--backend`: the same API, keys, metrics and lineage before an engine that is already running."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from infer_support import (
    LONG,
    MESSAGES,
    LiveServer,
    SlowSteps,
    backend_over,
    client_of,
    eventually,
    live_server,
    served,
)

from liuyi.core.errors import LiuyiError
from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError
from liuyi.infer.server import upstream as upstream_module
from liuyi.infer.server.keys import KeyRing
from liuyi.infer.server.proxy import create_proxy
from liuyi.infer.server.upstream import KEY_VARIABLE, KINDS, Place, Upstream, refusal
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def proxied(live: LiveServer) -> Iterator[LiveServer]:
    upstream = Upstream(Place.parse(f"openai:{live.url}/v1"), model_digest="e" * 64)
    with served(lambda record, gate: create_proxy(upstream, record=record, gate=gate)) as proxy:
        yield proxy


def test_places_are_kinds_with_urls() -> None:
    assert Place.parse("vllm") == Place("vllm", KINDS["vllm"])
    assert Place.parse("llama.cpp:http://10.0.0.1:1/v1/").url == "http://10.0.0.1:1/v1"
    for wrong in ("", "tgi", "openai", "openai:host/v1"):
        with pytest.raises(LiuyiError):
            Place.parse(wrong)


class TestAnswers:
    def test_are_those_of_the_engine(self, proxied: LiveServer, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 4, "max_tokens": 20, "n": 2}
        with client_of(proxied) as through:
            assert [model.id for model in through.models.list()] == ["tiny"]
            assert through.models.retrieve("tiny") == client.models.retrieve("tiny")
            with pytest.raises(openai.NotFoundError):
                through.models.retrieve("none")
            one, two = client.chat.completions.create(**asked), through.chat.completions.create(**asked)
            assert one.choices == two.choices
            assert one.usage == two.usage
            texts, usages = ["", ""], 0
            for chunk in through.chat.completions.create(**asked, stream=True):
                usages += chunk.usage is not None
                assert chunk.choices
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            assert texts == [choice.message.content for choice in one.choices]
            assert usages == 0
            last = list(through.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
            assert last[-1].usage == one.usage
            assert through.completions.create(model="tiny", prompt="turn on", max_tokens=3).usage
            assert len(through.embeddings.create(model="tiny", input=["a", "b"]).data) == 2

    def test_tokens_are_those_of_the_engine(self, proxied: LiveServer, live: LiveServer) -> None:
        for path, body in (
            ("tokenize", {"model": "tiny", "prompt": "turn on"}),
            ("tokenize", {"model": "tiny", "messages": MESSAGES, "return_token_strs": True}),
            ("detokenize", {"model": "tiny", "tokens": [5, 6, 7]}),
        ):
            through, direct = (httpx.post(f"{server.url}/{path}", json=body) for server in (proxied, live))
            assert through.status_code == 200
            assert through.json() == direct.json()
        wrong = httpx.post(f"{proxied.url}/detokenize", json={"model": "tiny", "tokens": "x"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")

    def test_are_recorded_and_counted(self, proxied: LiveServer) -> None:
        with client_of(proxied) as client:
            whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, seed=1)
            chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, stream=True))
        ids = {whole.id, chunks[0].id}
        eventually(lambda: {answer.id for answer in proxied.answers} >= ids, "not recorded")
        for answer in proxied.answers:
            if answer.id in ids:
                assert answer.model_digest == "e" * 64
                assert answer.detail["backend"] == "openai"
                assert answer.detail["usage"]["completion_tokens"] <= 5
                assert "turn on" not in str(answer.detail)
        metrics = httpx.get(f"{proxied.url}/metrics").text
        assert 'liuyi_requests_total{model="tiny",status="200"}' in metrics
        assert 'liuyi_time_to_first_token_seconds_count{model="tiny"}' in metrics
        assert 'liuyi_up{model="openai"} 1' in metrics

    def test_errors_are_clean(self, proxied: LiveServer) -> None:
        with client_of(proxied) as client:
            with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
                client.chat.completions.create(model="tinny", messages=MESSAGES)
            with pytest.raises(openai.BadRequestError, match="temperature"):
                client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
        odd = (b'"\\ud800"', b"NaN", b"1e999", b"[" * 100_000 + b"]" * 100_000)
        bodies = [b'{"model": "tiny", "prompt": "x", "user": %s}' % value for value in odd]
        for content in (b"", b"[", b"[1]", b"{}", b'{"model": 3}', *bodies):
            assert httpx.post(f"{proxied.url}/v1/chat/completions", content=content).status_code == 400

    def test_hanging_up_reaches_the_engine(
        self, proxied: LiveServer, live_engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        SlowSteps(live_engine, monkeypatch)
        with client_of(proxied) as client:
            stream = client.chat.completions.create(**LONG, stream=True)
            next(stream)
            stream.close()
        eventually(lambda: not live_engine.has_work, "the engine goes on")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{proxied.url}/v1/chat/completions", json=LONG, timeout=0.3)
        eventually(lambda: not live_engine.has_work, "the engine goes on with an answer in one")
        eventually(lambda: 'status="499"} 2' in httpx.get(f"{proxied.url}/metrics").text, "not counted")


def test_its_key_comes_from_the_environment(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_over(Engine(model, tokenizer, max_slots=1))
    with live_server({"tiny": backend}, keys=KeyRing(["inner"])) as inner:
        place = Place.parse(f"vllm:{inner.url}/v1")

        async def without() -> None:
            with pytest.raises(LiuyiError, match="401"):
                await Upstream(place).start()

        asyncio.run(without())
        monkeypatch.setenv(KEY_VARIABLE, "inner")
        upstream = Upstream(place)
        with served(lambda record, gate: create_proxy(upstream, gate=gate, keys=KeyRing(["outer"]))) as proxy:
            url = f"{proxy.url}/v1/chat/completions"
            assert httpx.post(url, json=LONG, headers={"authorization": "Bearer inner"}).status_code == 401
            body = LONG | {"max_tokens": 2}
            assert httpx.post(url, json=body, headers={"authorization": "Bearer outer"}).status_code == 200


def test_a_deadline_is_one_for_all_that_an_answer_takes() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        await asyncio.sleep(5)
        yield b"{}"

    async def engine(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m", "object": "model"}]})
        await asyncio.sleep(0.2)
        return httpx.Response(200, content=pieces())

    upstream = Upstream(Place.parse("vllm"), transport=httpx.MockTransport(engine))
    with served(lambda record, gate: create_proxy(upstream, gate=gate)) as proxy:
        for seconds in (0.1, 0.3):
            body = {"model": "m", "prompt": "x", "timeout": seconds}
            late = httpx.post(f"{proxy.url}/v1/completions", json=body)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        for nonsense in (True, "1", 0):
            refused = httpx.post(f"{proxy.url}/v1/completions", json={"model": "m", "prompt": "x", "timeout": nonsense})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "timeout")
        assert 'liuyi_requests_total{model="m",status="504"} 2' in httpx.get(f"{proxy.url}/metrics").text
        assert upstream.inside == 0


@contextlib.contextmanager
def before(*events: str, **headers: str) -> Iterator[LiveServer]:
    """A proxy before an engine that always answers with these events."""

    def engine(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m", "object": "model"}]})
        said = "".join(f"data: {event}\r\n\r\n" for event in events)
        return httpx.Response(200, text=said, headers={"content-type": "text/event-stream"} | headers)

    upstream = Upstream(Place.parse("vllm"), transport=httpx.MockTransport(engine))
    with served(lambda record, gate: create_proxy(upstream, record=record, gate=gate)) as proxy:
        yield proxy


HELLO = '{"id": "a", "choices": [{"index": 0, "delta": {"content": "x\u2028y\u0085"}}]}'


def test_answers_may_hold_what_other_texts_end_lines_with() -> None:
    with before(HELLO, "[DONE]") as proxy, client_of(proxy) as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["x\u2028y\u0085"]


@pytest.mark.parametrize("end", [['{"error": {"message": "out of memory"}}', "[DONE]"], []])
def test_a_stream_that_fails_or_just_ends_is_no_answer(end: list[str]) -> None:
    with before(HELLO, *end) as proxy, client_of(proxy) as client:
        with pytest.raises(openai.APIError, match="out of memory" if end else "broke off"):
            list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
        eventually(lambda: 'status="502"} 1' in httpx.get(f"{proxy.url}/metrics").text, "not counted")
    assert not proxy.answers


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "too hot", "code": 400}}, "too hot"),
        ({"message": "too hot"}, "too hot"),
        ({"detail": "Not Found"}, "Not Found"),
        ([], "[]"),
    ],
)
def test_refusals_come_in_the_shape_of_openai(said: Any, message: str) -> None:
    status, body = refusal(httpx.Response(400, json=said))
    assert (status, body["error"]["message"], body["error"]["code"]) == (400, message, None)


def test_what_is_no_stream_comes_as_it_is() -> None:
    with before("", **{"content-type": "application/json"}) as proxy:
        answer = httpx.post(f"{proxy.url}/v1/embeddings", json={"model": "m", "input": "x", "stream": True})
    assert answer.headers["content-type"] == "application/json"


def test_text_in_fields_of_the_engines_own_is_not_kept() -> None:
    with before(HELLO, "[DONE]") as proxy:
        asked = {"model": "m", "prompt": "x", "stream": True, "suffix": "secret", "input_prefix": "secret", "top_k": 5}
        httpx.post(f"{proxy.url}/v1/completions", json=asked)
    assert [answer.detail["parameters"] for answer in proxy.answers] == [{"stream": True, "top_k": 5}]


def test_an_engine_is_asked_for_its_models_until_it_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_CHECK_S", 0.01)
    answers = iter([b'{"data": [{"id": "old"}]}', httpx.ReadError("reset"), b"{", b'{"data": [{"id": "new"}]}'])

    async def body() -> AsyncIterator[bytes]:
        answer = next(answers, b'{"data": [{"id": "new"}]}')
        if isinstance(answer, Exception):
            raise answer
        yield answer

    async def ask() -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body()))
        upstream = Upstream(Place.parse("vllm"), transport=transport)
        await upstream.start()
        assert [model["id"] for model in upstream.models] == ["old"]
        async with asyncio.timeout(30):
            while upstream.models[0]["id"] != "new":
                await asyncio.sleep(0.01)
        await upstream.close()

    asyncio.run(ask())


def test_an_engine_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_MODELS_S", 0.05)

    async def silent(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200)

    with pytest.raises(EngineError, match="does not tell its models"):
        asyncio.run(Upstream(Place.parse("vllm"), transport=httpx.MockTransport(silent)).start())


def test_a_password_in_its_address_is_kept_nowhere() -> None:
    upstream = Upstream(Place.parse("openai:https://me:hunter2@host/v1"))
    assert upstream.info.made_with["backend_url"] == "https://me:***@host/v1"


def test_an_engine_that_breaks_off_or_goes_away_is_told_cleanly() -> None:
    broken = threading.Event()

    async def pieces() -> Any:
        yield b'data: {"id": "a", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
        raise httpx.ReadError("connection reset")

    def engine(request: httpx.Request) -> httpx.Response:
        if broken.is_set():
            raise httpx.ConnectError("refused")
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m", "object": "model"}]})
        if b"busy" in request.content:
            return httpx.Response(429, text="slow down", headers={"retry-after": "7"})
        return httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})

    upstream = Upstream(Place.parse("llama.cpp"), transport=httpx.MockTransport(engine))
    with served(lambda record, gate: create_proxy(upstream, gate=gate)) as proxy, httpx.Client() as http:
        url = f"{proxy.url}/v1/chat/completions"
        body = {"model": "m", "messages": MESSAGES}
        assert http.post(url, json=body).status_code == 503
        streamed = http.post(url, json=body | {"stream": True})
        assert '"content": "x"' in streamed.text
        assert "broke off" in streamed.text
        assert "[DONE]" not in streamed.text
        busy = http.post(url, json=body | {"user": "busy"})
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
        assert busy.json()["error"]["message"] == "slow down"
        broken.set()
        gone = http.post(url, json=body)
        assert gone.status_code == 503
        assert int(gone.headers["retry-after"]) >= 1
        assert http.get(f"{proxy.url}/health").status_code == 503
        assert upstream.inside == 0
