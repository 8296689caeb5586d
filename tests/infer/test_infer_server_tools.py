"""Tool calls through the official client: forced by grammars from a random model, and told from scripted answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import jsonschema
import openai
import pytest
from infer_support import MESSAGES, LiveServer, backend_over, client_of, live_server, tiny_model

from liuyi.infer.engine import Engine
from liuyi.infer.server.backend import BackendInfo, ChatRequest, Delta, Deltas, Load, Yielded
from liuyi.infer.server.calling import Called
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.infer.tools.formats import HERMES
from liuyi.model.chat import encode_chat
from liuyi.model.tokenizer import Tokenizer

LAMP = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "厨房"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["room", "level"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "lamp", "description": "Switch a lamp.", "parameters": LAMP}},
    {
        "type": "function",
        "function": {"name": "off", "strict": True, "parameters": {"type": "object", "maxProperties": 0}},
    },
]
TEMPLATES = {
    "hermes": "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}",
    "llama": '{% if tools %}{{ tools | tojson }} <|python_tag|> "parameters"{% endif %}',
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]{% endif %}",
    "plain": "",
}
CONVERSATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def tool_live(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    speaking = Tokenizer(tokenizer.backend, tokenizer.settings)
    speaking.chat_template = TEMPLATES[request.param] + CONVERSATION
    model = tiny_model(max_position_embeddings=2048)
    with live_server({"tiny": backend_over(Engine(model, speaking, max_slots=8))}) as live:
        yield live


@pytest.fixture(scope="module")
def client(tool_live: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(tool_live) as client:
        yield client


def streamed(client: openai.OpenAI, **asked: Any) -> list[Any]:
    """The messages that the client's own accumulation makes of a stream."""
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **asked) as stream:
        return [choice.message for choice in stream.get_final_completion().choices]


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def check(calls: Sequence[tuple[str, str]]) -> None:
    assert calls
    for name, arguments in calls:
        schema = next(tool["function"]["parameters"] for tool in TOOLS if tool["function"]["name"] == name)
        jsonschema.validate(json.loads(arguments), schema)


def test_calls_that_are_required_fit_their_schemas(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "seed": 4, "n": 3, "max_tokens": 150}
    # Random models go on calling; a call is enough.
    asked["parallel_tool_calls"] = False
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked)
    for choice, message in zip(answer.choices, streamed(client, **asked), strict=True):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = calls_of(choice.message)
        assert len(calls) == 1
        check(calls)
        assert calls_of(message) == calls
        assert not message.content


@pytest.mark.parametrize("form", ["hermes", "plain"])
def test_speculation_changes_no_call(tokenizer: Tokenizer, form: str) -> None:
    speaking = Tokenizer(tokenizer.backend, tokenizer.settings)
    speaking.chat_template = TEMPLATES[form] + CONVERSATION
    told: list[dict[tuple[int, Any], str]] = []
    for drafter in (None, PromptLookup()):
        engine = Engine(tiny_model(max_position_embeddings=2048), speaking, max_slots=8, drafter=drafter)
        with live_server({"tiny": backend_over(engine)}) as live, client_of(live) as client:
            told += [pieces(client, tool_choice=choice, seed=4, n=3, max_tokens=100) for choice in ("required", "auto")]
    assert told[:2] == told[2:]
    assert any(call is not None for _, call in told[0])
    assert engine.stats.drafted_tokens > 0


def pieces(client: openai.OpenAI, **asked: Any) -> dict[tuple[int, Any], str]:
    """What a stream says, by number of the answer and by number and name of the call, None for text."""
    told: dict[tuple[int, Any], str] = defaultdict(str)
    names: dict[tuple[int, int], str] = {}
    for chunk in client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, temperature=0.7, stream=True, **asked
    ):
        for choice in chunk.choices:
            told[choice.index, None] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                place = (choice.index, call.index)
                names[place] = call.function.name or names[place]
                told[choice.index, (call.index, names[place])] += call.function.arguments or ""
    return told


def test_a_named_function_is_called_and_no_other(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "lamp"}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=150, logprobs=True
        )
        [called] = calls_of(answer.choices[0].message)
        assert called[0] == "lamp"
        check([called])
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.choices[0].logprobs is not None
        assert len(answer.choices[0].logprobs.content or ()) == answer.usage.completion_tokens


def test_some_of_the_functions_may_be_allowed(client: openai.OpenAI) -> None:
    for name in ("lamp", "off"):
        only = [{"type": "function", "function": {"name": name}}]
        asked: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 150}
        for mode, seed in (("required", 0), ("required", 1), ("auto", 0)):
            choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": only}}
            answer = client.chat.completions.create(
                model="tiny", messages=MESSAGES, tool_choice=choice, seed=seed, **asked
            )
            calls = calls_of(answer.choices[0].message)
            assert {called for called, _ in calls} <= {name}
            assert (len(calls) == 1) == (mode == "required")
            free = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked)
            assert answer.usage is not None
            assert free.usage is not None
            # The model is told of all of them either way.
            assert answer.usage.prompt_tokens == free.usage.prompt_tokens


def test_a_cut_call_is_told_as_far_as_it_went(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "lamp"}},
        "temperature": 0,
    }
    [whole] = calls_of(client.chat.completions.create(model="tiny", messages=MESSAGES, **asked).choices[0].message)
    for most in (1, 20, 30, 35):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=most, **asked)
        message = answer.choices[0].message
        for name, arguments in calls_of(message):
            assert name == "lamp"
            assert whole[1].startswith(arguments)
        text, pieces = "", ""
        for chunk in client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, max_tokens=most, **asked
        ):
            text += chunk.choices[0].delta.content or ""
            for call in chunk.choices[0].delta.tool_calls or ():
                pieces += call.function.arguments or "" if call.function else ""
        assert (text or None) == message.content
        assert pieces == "".join(arguments for _, arguments in calls_of(message))


def test_tools_are_shown_to_the_model_and_results_too(
    client: openai.OpenAI, tool_live: LiveServer, tokenizer: Tokenizer
) -> None:
    plain = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    told = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, max_tokens=1)
    none = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="none", max_tokens=1
    )
    assert plain.usage is not None
    assert told.usage is not None
    assert none.usage is not None
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    first = (
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=150,
            seed=1,
        )
        .choices[0]
        .message
    )
    assert first.tool_calls
    result: Any = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "it is done"}
    # As the client gives it: with all fields that an answer has, and what the client made of its content.
    parsed = first.model_dump() | {"parsed": {"on": True}, "content": ""}
    parsed["tool_calls"][0]["function"]["parsed_arguments"] = {"room": "kitchen"}
    answer = client.chat.completions.create(
        model="tiny", messages=[*MESSAGES, parsed, result], tools=TOOLS, max_tokens=2
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > told.usage.prompt_tokens + 10


def test_the_format_may_be_chosen(tokenizer: Tokenizer) -> None:
    engine = Engine(tiny_model(max_position_embeddings=2048), tokenizer, max_slots=2)
    for name in ("llama", "hermes"):
        with live_server({"tiny": backend_over(engine, tool_format=name)}) as live, client_of(live) as client:
            asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "logprobs": True}
            answer = client.chat.completions.create(
                **asked, tool_choice="required", parallel_tool_calls=False, temperature=0
            ).choices[0]
            check(calls_of(answer.message))
            assert answer.logprobs is not None
            written = b"".join(bytes(token.bytes or []) for token in answer.logprobs.content or ()).decode()
            assert written.startswith('{"name": "' if name == "llama" else "<tool_call>\n")


SAID = 'Let me look.\n\n<tool_call>\n{"name": "lamp", "arguments": {"room": "厨房", "level": 3}}\n</tool_call>\n'
TWICE = SAID + '<tool_call>\n{"name": "off", "arguments": {}}\n</tool_call>'


class Script:
    """Says the last message, one character at a time."""

    info = BackendInfo()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def busy(self) -> Load:
        return Load()

    async def chat(self, request: ChatRequest) -> Deltas:
        answer = Yielded(self._say(str(request.messages[-1]["content"])))
        return Called(answer, request.tools, HERMES) if request.tools is not None else answer

    async def _say(self, text: str) -> AsyncGenerator[Delta, None]:
        for character in text:
            yield Delta(text=character)
        yield Delta(finish_reason="stop", prompt_tokens=1, completion_tokens=len(text))


@pytest.fixture(scope="module")
def scripted() -> Iterator[openai.OpenAI]:
    with live_server({"script": Script()}) as live, client_of(live) as client:
        yield client


def said(text: str) -> dict[str, Any]:
    return {"model": "script", "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("text", "content", "calls", "reason"),
    [
        (SAID, "Let me look.", [("lamp", '{"room": "厨房", "level": 3}')], "tool_calls"),
        (TWICE, "Let me look.", [("lamp", '{"room": "厨房", "level": 3}'), ("off", "{}")], "tool_calls"),
        (TWICE[14:], None, [("lamp", '{"room": "厨房", "level": 3}'), ("off", "{}")], "tool_calls"),
        ("No <tool_call> {", "No <tool_call> {", [], "stop"),
    ],
)
def test_answers_with_text_and_calls(
    scripted: openai.OpenAI, text: str, content: str | None, calls: list[tuple[str, str]], reason: str
) -> None:
    answer = scripted.chat.completions.create(**said(text), tools=TOOLS).choices[0]
    assert (answer.message.content, calls_of(answer.message), answer.finish_reason) == (content, calls, reason)
    with scripted.chat.completions.stream(**said(text), tools=TOOLS) as stream:
        final = stream.get_final_completion().choices[0]
    assert (final.message.content or None, calls_of(final.message), final.finish_reason) == (content, calls, reason)
    ids = [call.id for call in answer.message.tool_calls or ()]
    assert len(set(ids)) == len(calls)
    assert scripted.chat.completions.create(**said(text)).choices[0].message.content == text


def test_arguments_come_as_they_are_written(scripted: openai.OpenAI) -> None:
    pieces: list[str] = []
    named = []
    for chunk in scripted.chat.completions.create(**said(SAID), tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            assert call.function is not None
            named.append((call.id, call.type, call.function.name))
            pieces.append(call.function.arguments or "")
    assert named[0][0]
    assert named[0][1:] == ("function", "lamp")
    assert set(named[1:]) == {(None, None, None)}
    assert "".join(pieces) == '{"room": "厨房", "level": 3}'
    assert len(pieces) == len("".join(pieces))


def allowed(*names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": ""}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": allowed("off", "x")}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0.type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
    ],
)
def test_what_does_not_go_together_is_said(scripted: openai.OpenAI, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        scripted.chat.completions.create(**(said("x") | changes))
    assert caught.value.param == param


def test_strict_functions_that_cannot_be_enforced_are_refused(client: openai.OpenAI) -> None:
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": {"type": "strange"}}}}
    with pytest.raises(openai.BadRequestError, match="strange") as caught:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[*TOOLS, {"type": "function", "function": function}]
        )
    assert caught.value.param == "tools.2.function.parameters"


def test_arguments_reach_the_template_as_objects(tokenizer: Tokenizer) -> None:
    from liuyi.infer.server.protocol import ChatCompletionBody

    call = {"id": "1", "type": "function", "function": {"name": "lamp", "arguments": '{"level": 3}'}}
    body = ChatCompletionBody.model_validate(
        {"model": "m", "messages": [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]}
    )
    message = body.request().messages[1]
    assert message["tool_calls"][0]["function"]["arguments"] == {"level": 3}
    ids, _ = encode_chat(tokenizer, body.request().messages, template=CONVERSATION, add_generation_prompt=True)
    assert '{"name": "lamp", "arguments": {"level": 3}}<|im_end|>' in tokenizer.decode(ids)
