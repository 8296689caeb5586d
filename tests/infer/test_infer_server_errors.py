"""What is wrong with a request is said in OpenAI's shape, by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from infer_support import MESSAGES, LiveServer


def nested(levels: int) -> Any:
    """An empty list within so many more."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


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
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                400,
                "messages.0.content.0.type",
                None,
            ),
            ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, 400, "messages", "context_length_exceeded"),
            (
                {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "x" * 1_000_000}]},
                400,
                "messages",
                "context_length_exceeded",
            ),
            ({"messages": [{"role": "user", "content": "x y " * 200}]}, 400, "prompt", "context_length_exceeded"),
            ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None, None),
            ({"temperature": "hot"}, 400, "temperature", None),
            ({"temperature": 3}, 400, "temperature", None),
            ({"max_tokens": 0}, 400, "max_tokens", None),
            ({"n": 17}, 400, "n", None),
            ({"timeout": 0}, 400, "timeout", None),
            ({"seed": 2**70}, 400, "seed", None),
            ({"stop": [""]}, 400, "stop.0", None),
            ({"stop": ["x"] * 17}, 400, "stop", None),
            ({"stop": 5}, 400, "stop", None),
            ({"topp": 0.5}, 400, "topp", None),
            ({"tools": [{"type": "function"}]}, 400, "tools.0.function", None),
            ({"top_logprobs": 3}, 400, "top_logprobs", None),
            ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
            ({"logit_bias": {"99999": 1}}, 400, "logit_bias", None),
            ({"response_format": {"type": "xml"}}, 400, "response_format", None),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
                400,
                "response_format.json_schema.schema",
                None,
            ),
            ({"chat_template_kwargs": {"a": nested(101)}}, 400, "chat_template_kwargs", None),
            ({"reasoning_effort": "endless"}, 400, "reasoning_effort", None),
            ({"functions": []}, 400, "functions", None),
            ({"verbosity": "low"}, 400, "verbosity", None),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages.0.content.0", None),
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "refusal": "y"}]}]},
                400,
                "messages.0.content.0",
                None,
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]},
                400,
                "messages.0.content",
                None,
            ),
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

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "must be a JSON object"),
            (b"[1]", "must be a JSON object"),
            (b'{"model": "\xff"}', "not UTF-8"),
            (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        ],
    )
    def test_bodies_that_cannot_be_read_are_told_why(self, live: LiveServer, content: bytes, says: str) -> None:
        assert says in self.post(live, content=content).json()["error"]["message"]

    def test_arguments_nested_without_end_are_text_to_the_template(self, live: LiveServer) -> None:
        arguments = json.dumps({"a": nested(700)})
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        said = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
        response = self.post(live, json={"model": "tiny", "messages": said})
        assert response.json()["error"]["code"] == "context_length_exceeded"

    def test_a_body_that_does_not_say_that_it_is_json_is_told_so(self, live: LiveServer) -> None:
        body = json.dumps({"model": "tiny", "messages": MESSAGES})
        refused = httpx.post(
            f"{live.url}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
        assert "Content-Type: application/json" in refused.json()["error"]["message"]

    def test_null_asks_for_nothing(self, live: LiveServer) -> None:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
        unasked = dict.fromkeys(("functions", "audio", "verbosity", "stop", "tools", "stream_options", "n"))
        assert self.post(live, json=body | unasked).status_code == 200

    def test_bodies_that_are_too_large_are_not_read(self, live: LiveServer) -> None:
        response = self.post(live, content=b" " * (5 * 2**20))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")

        def pieces() -> Iterator[bytes]:
            for _ in range(6):
                yield b" " * 2**20

        response = self.post(live, content=pieces())
        assert response.status_code == 413

    def test_paths_and_methods_that_are_not_there(self, live: LiveServer) -> None:
        missing = httpx.get(f"{live.url}/v1/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"]["message"] == "there is no GET /v1/nothing"
        for path in ("/v1/chat/completions", "/tokenize"):
            wrong = httpx.get(live.url + path)
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
            error = {"type": "invalid_request_error", "param": None, "code": "method_not_allowed"}
            assert wrong.json()["error"] == error | {"message": f"{path} takes POST, not GET"}
        without = httpx.post(f"{live.url}/chat/completions", json={}).json()["error"]["message"]
        assert without.startswith("there is no POST /chat/completions; did you mean /v1/chat/completions?")

    def test_a_web_page_cannot_call_a_local_server(self, live: LiveServer) -> None:
        body = json.dumps({"model": "tiny", "messages": MESSAGES})
        rebound = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"host": "evil.example"})
        assert rebound.status_code == 403
        simple = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
        assert simple.status_code == 400
        assert httpx.get(f"{live.url}/health", headers={"host": "localhost:1"}).status_code == 200
        assert httpx.head(f"{live.url}/health").status_code == 200

    def test_completions_have_no_empty_prompts(self, live: LiveServer) -> None:
        for prompt in ("", [], [""], [[]], [5, "x"]):
            assert self.post(live, "completions", json={"model": "tiny", "prompt": prompt}).status_code == 400

    def test_images_are_told_not_to_be_read(self, live: LiveServer) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        response = self.post(live, json={"model": "tiny", "messages": [{"role": "user", "content": [image]}]})
        assert "only parts of the type 'text' can be read" in response.json()["error"]["message"]

    def test_raise_the_right_exceptions_in_the_client(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
            client.chat.completions.create(model="tinny", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
