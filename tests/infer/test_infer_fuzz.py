"""Whatever body arrives, the answer is a completion or an error that says what was wrong; never a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from infer_support import LiveServer, backend_over, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\ud800", "<|im_end|>", "user", "tiny", "text", "object", "string", "#/a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(["f", "get-it", "", "a b", "厨", "x" * 70])
calls = st.fixed_dictionaries(
    {
        "id": st.text(max_size=10),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": names, "arguments": st.sampled_from(["", "{}", '{"a": "<|im_end|>"}', "[" * 5000, "no", "[1]"])}
        ),
    }
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"])},
        optional={
            "content": st.none()
            | st.text(max_size=30)
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
            "tool_calls": st.lists(calls, max_size=2),
            "tool_call_id": st.text(max_size=10),
            "name": st.text(max_size=5),
        },
    ),
    max_size=4,
)
schemas = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer"}, {"const": "厨"}, {"enum": []}, {"type": ["null", "x"]}]
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "number"]),
            "properties": st.dictionaries(st.text(max_size=4), inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=3),
            "required": st.lists(st.text(max_size=4), max_size=2),
            "additionalProperties": inner | st.booleans(),
            "pattern": st.sampled_from(["a+", "(", "^厨$", "\\d{1,3}"]),
            "minLength": st.integers(-1, 5),
            "maxItems": st.integers(0, 3),
            "$ref": st.sampled_from(["#", "#/properties/a", "http://example.com"]),
        },
    ),
    max_leaves=6,
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": names},
                optional={"description": st.text(max_size=9), "parameters": schemas, "strict": st.booleans()},
            ),
        }
    ),
    max_size=3,
)
fields: dict[str, Any] = {
    "model": st.just("tiny"),
    "messages": messages,
    "prompt": st.text(max_size=20)
    | st.lists(st.integers(-1, 500), max_size=5)
    | st.lists(st.text(max_size=9), max_size=3),
    "max_tokens": st.integers(0, 6),
    "min_tokens": st.integers(-1, 7),
    "max_completion_tokens": st.integers(1, 6),
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-2, 1000),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0, 3),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "logit_bias": st.dictionaries(st.integers(-1, 400).map(str), st.floats(-101, 101), max_size=4),
    "seed": st.integers(-(2**64), 2**64),
    "typical_p": st.floats(0, 1),
    "stop_token_ids": st.lists(st.integers(-1, 500), max_size=3),
    "ignore_eos": st.booleans(),
    "priority": st.integers(-(2**40), 2**40),
    "echo": st.booleans(),
    "best_of": st.integers(0, 4),
    "use_beam_search": st.booleans(),
    "length_penalty": st.floats(-11, 11),
    "tools": tools,
    "tool_choice": st.sampled_from(["none", "auto", "required", "x", {"type": "function", "function": {"name": "f"}}]),
    "parallel_tool_calls": st.booleans(),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["messages", "tools", "x", "bos_token"]), json_values),
    "structured_outputs": st.fixed_dictionaries(
        {}, optional={"json": schemas, "json_object": st.booleans(), "regex": st.sampled_from(["a+", "("])}
    ),
    "guided_json": schemas,
    "guided_regex": st.sampled_from(["a+", "("]),
    "guided_choice": st.lists(st.text(max_size=4), max_size=3),
    "guided_grammar": st.sampled_from(["start: /a/", "x"]),
    "user": st.text(max_size=4),
    "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "n": st.integers(0, 3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logprobs": st.booleans() | st.integers(0, 25),
    "top_logprobs": st.integers(0, 25),
    "response_format": st.one_of(
        st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "regex", "regex": "[ab]{1,3}"}]),
        schemas.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}),
    ),
}
JSON = {"content-type": "application/json"}
GOOD = {"model": "tiny", "max_tokens": 3}
good_bodies = {
    "chat/completions": GOOD | {"messages": [{"role": "user", "content": "打开"}]},
    "completions": GOOD | {"prompt": "turn on"},
}
changes = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
)
wild = st.dictionaries(st.sampled_from([*fields, "surprise"]), json_values, max_size=6)


@pytest.fixture(scope="module")
def fuzzed(model: Decoder, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=4))}) as live:
        yield live


@pytest.fixture(scope="module")
def http(fuzzed: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{fuzzed.url}/v1", timeout=30, headers=JSON) as client:
        yield client


fuzz = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@fuzz
@given(path=st.sampled_from(sorted(good_bodies)), changed=changes | wild)
def test_no_request_is_a_failure(http: httpx.Client, path: str, changed: dict[str, Any]) -> None:
    check(http.post(path, content=json.dumps(good_bodies[path] | changed).encode()))


@fuzz
@given(body=json_values)
def test_no_json_is_a_failure(http: httpx.Client, body: Any) -> None:
    check(http.post("chat/completions", content=json.dumps(body).encode()), fields_known=isinstance(body, dict))


def check(response: httpx.Response, *, fields_known: bool = True) -> None:
    """An answer, or an error that names the field to blame where the body is an object with fields."""
    event("status", response.status_code)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        assert response.json()["error"]["param"] or not fields_known
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n") or '"invalid_request_error"' in response.text
    else:
        assert response.json()["choices"]


token_fields: dict[str, Any] = {
    "input": fields["prompt"],
    "encoding_format": st.sampled_from(["float", "base64", "int8"]),
    "dimensions": st.integers(-1, 40),
    "prompt": st.text(max_size=20),
    "messages": messages,
    "tools": tools,
    "add_generation_prompt": st.booleans(),
    "return_token_strs": st.booleans(),
    "tokens": st.lists(st.integers(-1, 500), max_size=5),
}


@fuzz
@given(
    path=st.sampled_from(["v1/embeddings", "tokenize", "detokenize"]),
    body=st.fixed_dictionaries({"model": st.just("tiny")}, optional=token_fields)
    | st.dictionaries(st.sampled_from([*token_fields, "model", "surprise"]), json_values, max_size=4),
)
def test_no_request_about_tokens_is_a_failure(
    http: httpx.Client, fuzzed: LiveServer, path: str, body: dict[str, Any]
) -> None:
    response = http.post(f"{fuzzed.url}/{path}", content=json.dumps(body).encode())
    event("status", (path, response.status_code))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        assert response.json()["error"]["param"]


@fuzz
@given(content=st.binary(max_size=60))
def test_no_bytes_are_a_failure(http: httpx.Client, content: bytes) -> None:
    assert http.post("chat/completions", content=content).status_code == 400


def test_nothing_is_left_behind(fuzzed: LiveServer) -> None:
    eventually(lambda: not (fuzzed.backend.busy().running or fuzzed.backend.busy().waiting), "still busy")
    assert fuzzed.backend.busy().alive
