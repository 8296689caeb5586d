"""The server through the official client, over a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from infer_support import LiveServer, StepCounter, live_server

from liuyi.infer.engine import Engine
from liuyi.infer.server.backend import BackendInfo, ChatRequest, Delta, Deltas, Load
from liuyi.infer.server.model_backend import ModelBackend
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

MESSAGES: list[Any] = [{"role": "user", "content": "turn on the lights"}]
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "厨房"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
LONG = {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "logit_bias": {"0": -100, "2": -100}}


def client_of(live: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(live) as client:
        yield client


def engine_of(live: LiveServer) -> Engine:
    assert isinstance(live.backend, ModelBackend)
    return live.backend.engine


def eventually(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.01)


class TestChat:
    def test_is_the_engines_answer_to_the_rendered_conversation(
        self, client: openai.OpenAI, live: LiveServer, model: Decoder, tokenizer: Tokenizer
    ) -> None:
        from liuyi.infer.request import Request

        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=12)
        ids, _ = encode_chat(tokenizer, MESSAGES, add_generation_prompt=True)
        expected = Engine(model, tokenizer).generate([Request(prompt_ids=ids, max_tokens=12)])[0]
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(expected.token_ids))
        assert answer.system_fingerprint == "liuyi-" + "d" * 12

    def test_streams_what_it_would_answer_whole(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 5, "max_tokens": 30, "n": 3}
        whole = client.chat.completions.create(**asked)
        texts, reasons, usage, roles = [""] * 3, [""] * 3, None, [""] * 3
        for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                roles[choice.index] = choice.delta.role or roles[choice.index]
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == [choice.message.content for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert roles == ["assistant"] * 3
        assert usage == whole.usage
        assert len(set(texts)) == 3

    def test_a_seed_gives_the_same_answer_again(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20}
        one, two, other = (client.chat.completions.create(**asked, seed=seed) for seed in (7, 7, 8))
        assert one.choices == two.choices != other.choices

    def test_answers_follow_a_json_schema(self, client: openai.OpenAI) -> None:
        for stream in (False, True):
            answer = client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
                stream=stream,
            )
            if isinstance(answer, openai.Stream):
                text = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
            else:
                text = answer.choices[0].message.content or ""
                assert answer.choices[0].finish_reason == "stop"
            assert json.loads(text).keys() == {"room", "on"}
            assert " " not in text

    def test_json_objects_and_regular_expressions(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=200,
            seed=1,
            logit_bias={"95": 20},
            response_format={"type": "json_object"},
        )
        assert (answer.choices[0].message.content or "").startswith("{")
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"response_format": {"type": "regex", "regex": "(yes|no)!"}}
        )
        assert answer.choices[0].message.content in ("yes!", "no!")

    def test_logprobs_have_a_place_for_each_token(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "seed": 2, "logprobs": True}
        answer = client.chat.completions.create(**asked, top_logprobs=4)
        assert answer.usage is not None
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 4 for token in logprobs.content)
        assert all(token.logprob <= token.top_logprobs[0].logprob for token in logprobs.content)
        written = b"".join(bytes(token.bytes or []) for token in logprobs.content)
        assert written.decode(errors="replace") == answer.choices[0].message.content
        streamed = [
            token
            for chunk in client.chat.completions.create(**asked, top_logprobs=4, stream=True)
            for choice in chunk.choices
            for token in (choice.logprobs and choice.logprobs.content) or []
        ]
        assert streamed == logprobs.content

    def test_stop_strings_end_the_answer(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 60, "temperature": 0}
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
        stop = text[8:10]
        cut = client.chat.completions.create(**asked, stop=[stop, "never there"]).choices[0]
        assert cut.message.content == text[: text.index(stop)]
        assert cut.finish_reason == "stop"

    def test_content_may_come_in_parts_and_from_the_developer(self, client: openai.OpenAI) -> None:
        def ask(messages: Any) -> str | None:
            answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
            return answer.choices[0].message.content

        parts = [{"type": "text", "text": "turn on"}, {"type": "text", "text": " the lights"}]
        assert ask([{"role": "user", "content": parts}]) == ask(MESSAGES)
        assert ask([{"role": "developer", "content": "be brief"}, *MESSAGES]) == ask(
            [{"role": "system", "content": "be brief"}, *MESSAGES]
        )

    def test_no_part_of_a_character_is_streamed(self, client: openai.OpenAI, tokenizer: Tokenizer) -> None:
        regex = "(厨房|卧室|打开灯|😀){20}"
        stream = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=240,
            stream=True,
            extra_body={"response_format": {"type": "regex", "regex": regex}},
        )
        pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
        assert "\ufffd" not in "".join(pieces)
        assert re.match("[厨房卧室打开灯😀]{12}", "".join(pieces))
        assert len([piece for piece in pieces if piece]) > 12

    def test_each_answer_is_recorded_with_its_model(self, client: openai.OpenAI, live: LiveServer) -> None:
        first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, seed=1)
        again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, seed=1)
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, seed=1, stream=True)
        ids = [first.id, again.id, next(chunk.id for chunk in stream)]
        eventually(lambda: {answer.id for answer in live.answers} >= set(ids), "not recorded")
        one, two, three = ([answer for answer in live.answers if answer.id == id] for id in ids)
        assert len(one) == len(two) == len(three) == 1
        assert one[0].model_digest == "d" * 64
        assert one[0].request_digest == two[0].request_digest != three[0].request_digest
        assert one[0].detail["usage"]["completion_tokens"] == 2
        assert "turn on" not in json.dumps(one[0].detail)


class TestCompletions:
    def test_continue_each_prompt(self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
        from liuyi.infer.request import Request

        prompts = ["turn on", "打开厨房"]
        answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=7, temperature=0, logprobs=2)
        requests = [Request(prompt_ids=tokenizer.encode(prompt), max_tokens=7) for prompt in prompts]
        expected = Engine(model, tokenizer).generate(requests)
        assert [choice.text for choice in answer.choices] == [one.text for one in expected]
        assert answer.choices[1].logprobs is not None
        assert len(answer.choices[1].logprobs.tokens or []) == len(expected[1].token_ids)
        ids = client.completions.create(
            model="tiny", prompt=[tokenizer.encode(prompt) for prompt in prompts], max_tokens=7, temperature=0
        )
        assert [choice.text for choice in ids.choices] == [one.text for one in expected]

    def test_stream(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "prompt": "turn", "seed": 3, "n": 2}
        whole = client.completions.create(**asked)
        texts = ["", ""]
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 2 * 16


class TestModels:
    def test_are_listed(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "liuyi"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("none")


class TestErrors:
    def post(self, live: LiveServer, path: str = "chat/completions", **body: Any) -> httpx.Response:
        if "content" in body:
            body["headers"] = {"content-type": "application/json"}
        return httpx.post(f"{live.url}/v1/{path}", timeout=30, **body)

    @pytest.mark.parametrize(
        ("change", "status", "param", "code"),
        [
            ({"model": "none"}, 404, "model", "model_not_found"),
            ({"messages": []}, 400, "messages", None),
            ({"messages": "hello"}, 400, "messages", None),
            ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", None),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None, None),
            ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, 400, "messages", "context_length_exceeded"),
            ({"messages": [{"role": "user", "content": "x y " * 200}]}, 400, "prompt", "context_length_exceeded"),
            ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None, None),
            ({"temperature": "hot"}, 400, "temperature", None),
            ({"temperature": 3}, 400, "temperature", None),
            ({"max_tokens": 0}, 400, "max_tokens", None),
            ({"n": 17}, 400, "n", None),
            ({"seed": 2**70}, 400, "seed", None),
            ({"stop": [""]}, 400, None, None),
            ({"topp": 0.5}, 400, "topp", None),
            ({"tools": [{"type": "function"}]}, 400, "tools", None),
            ({"top_logprobs": 3}, 400, None, None),
            ({"stream_options": {"include_usage": True}}, 400, None, None),
            ({"logit_bias": {"99999": 1}}, 400, "logit_bias", None),
            ({"response_format": {"type": "xml"}}, 400, "response_format", None),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "odd"}}}},
                400,
                "response_format",
                "invalid_json_schema",
            ),
            ({"response_format": {"type": "regex", "regex": "("}}, 400, "response_format", "invalid_grammar"),
        ],
    )
    def test_say_what_was_wrong(
        self, live: LiveServer, change: dict[str, Any], status: int, param: str | None, code: str | None
    ) -> None:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1} | change
        response = self.post(live, content=json.dumps(body).encode())
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["code"] == code
        if param is not None:
            assert error["param"] == param

    @pytest.mark.parametrize("content", [b"{", b"", b"null", b"[1]", b"\xff\xfe", b'{"model": NaN}', b"9" * 5000])
    def test_bodies_that_are_no_requests(self, live: LiveServer, content: bytes) -> None:
        response = self.post(live, content=content)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"

    def test_bodies_that_are_too_large_are_not_read(self, live: LiveServer) -> None:
        response = self.post(live, content=b" " * (5 * 2**20))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")

        def pieces() -> Iterator[bytes]:
            for _ in range(6):
                yield b" " * 2**20

        response = self.post(live, content=pieces())
        assert response.status_code == 413

    def test_paths_and_methods_that_are_not_there(self, live: LiveServer) -> None:
        for response in (httpx.get(f"{live.url}/v1/nothing"), httpx.get(f"{live.url}/v1/chat/completions")):
            assert response.status_code in (404, 405)
            assert response.json()["error"]["message"]

    def test_a_web_page_cannot_call_a_local_server(self, live: LiveServer) -> None:
        body = json.dumps({"model": "tiny", "messages": MESSAGES})
        rebound = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"host": "evil.example"})
        assert rebound.status_code == 403
        simple = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
        assert simple.status_code == 400
        assert httpx.get(f"{live.url}/health", headers={"host": "localhost:1"}).status_code == 200

    def test_completions_have_no_empty_prompts(self, live: LiveServer) -> None:
        for prompt in ("", [], [""], [[]], [5, "x"]):
            assert self.post(live, "completions", json={"model": "tiny", "prompt": prompt}).status_code == 400

    def test_raise_the_right_exceptions_in_the_client(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
            client.chat.completions.create(model="tinny", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)


class TestHangUp:
    @pytest.mark.parametrize("stream", [False, True])
    def test_cancels_the_work_and_frees_the_slot(
        self, live: LiveServer, stream: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = engine_of(live)
        counter = StepCounter(engine, monkeypatch)
        address = live.url.removeprefix("http://")
        host, port = address.split(":")
        # Several answers at once, so that some of them still wait for a slot.
        body = json.dumps(LONG | {"stream": stream, "n": 12}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: engine.running == 8 and engine.waiting == 4, "the request did not start")
        eventually(lambda: not engine.has_work, "the slots were not freed")
        assert counter.steps < 200  # answering all would have taken 400
        assert live.backend.busy().waiting == 0
        metrics = httpx.get(f"{live.url}/metrics").text
        assert 'liuyi_requests_total{model="tiny",status="499"}' in metrics

    def test_of_a_streaming_client_in_the_middle(self, client: openai.OpenAI, live: LiveServer) -> None:
        stream = client.chat.completions.create(**LONG, stream=True)
        for _ in range(5):
            next(stream)
        stream.close()
        eventually(lambda: not engine_of(live).has_work, "the slot was not freed")


class TestLoad:
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
        assert live.backend.busy() == Load(0, 0, 8)

    def test_a_full_queue_refuses_with_retry_after(self, model: Decoder, tokenizer: Tokenizer) -> None:
        backend = ModelBackend(Engine(model, tokenizer, max_slots=1), max_queue=1)
        with live_server({"tiny": backend}) as live, ThreadPoolExecutor(2) as pool, client_of(live) as client:
            streams = [client.chat.completions.create(**LONG, stream=True) for _ in range(2)]
            refused = httpx.post(f"{live.url}/v1/chat/completions", json=LONG)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            with pytest.raises(openai.RateLimitError):
                client.chat.completions.create(**LONG)
            assert all(pool.map(lambda stream: len(list(stream)) > 10, streams))
            assert client.chat.completions.create(**(LONG | {"max_tokens": 1})).choices

    def test_a_client_that_never_reads_holds_up_nobody(self, client: openai.OpenAI, live: LiveServer) -> None:
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
            eventually(lambda: not engine_of(live).has_work, "decoding waited for the reader")


class TestKeys:
    def test_are_asked_for_and_not_told(
        self, model: Decoder, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = ["sk-first-secret", "sk-second-secret"]
        with live_server({"tiny": ModelBackend(Engine(model, tokenizer, max_slots=1))}, keys=keys) as live:
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {keys[0]}"}):
                response = httpx.get(f"{live.url}/v1/models", headers=header)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            for key in keys:
                assert httpx.get(f"{live.url}/metrics", headers={"authorization": f"Bearer {key}"}).status_code == 200
            assert httpx.get(f"{live.url}/health").json()["status"] == "ok"
            with client_of(live) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
        assert not any(key in caplog.text for key in keys)


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
        return self._answer(str(request.messages[-1]["content"]))

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
        assert backend.closed_early.wait(5)


def test_metrics_are_prometheus_text_and_add_up(model: Decoder, tokenizer: Tokenizer) -> None:
    with live_server({"tiny": ModelBackend(Engine(model, tokenizer, max_slots=2))}) as live, client_of(live) as client:
        answers = [client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=6) for _ in range(3)]
        response = httpx.get(f"{live.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in response.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) liuyi_\w+ .+", line)
        else:
            name, value = line.rsplit(" ", 1)
            assert re.fullmatch(r'liuyi_\w+\{(\w+="[^"]*",?)+\}', name)
            values[name] = float(value)
    written = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    assert values['liuyi_completion_tokens_total{model="tiny"}'] == written
    assert values['liuyi_requests_total{model="tiny",status="200"}'] == 3
    assert values['liuyi_time_to_first_token_seconds_count{model="tiny"}'] == 3
    assert values['liuyi_time_to_first_token_seconds_bucket{model="tiny",le="+Inf"}'] == 3
    assert values['liuyi_requests_running{model="tiny"}'] == 0
    assert values['liuyi_slots{model="tiny"}'] == 2


def test_stopping_finishes_what_was_begun(model: Decoder, tokenizer: Tokenizer) -> None:
    with live_server({"tiny": ModelBackend(Engine(model, tokenizer, max_slots=2))}) as live, client_of(live) as client:
        stream = client.chat.completions.create(**LONG, stream=True)
        next(stream)
        live.stop()
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        eventually(lambda: _refuses(live.url), "it still takes new calls")


def _refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return True
    return False
