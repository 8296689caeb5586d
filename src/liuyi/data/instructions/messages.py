"""Messages as Liuyi keeps them, from OpenAI's and from sharegpt's, with calls of tools; and whether they are sound.

A message has `role` (system, user, assistant, tool) and `content` (text). An assistant's may have `tool_calls`, each
`{"id"?, "type": "function", "function": {"name", "arguments"}}` with the arguments as an object, which is what chat
templates take; a tool's may have `tool_call_id` and `name`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from liuyi.core.errors import did_you_mean
from liuyi.data.text import mend, mend_surrogates

Message = dict[str, Any]
Tools = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool")
_RENAMED = {"developer": "system", "function": "tool"}
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class WrongRow(Exception):
    """Why a row is nothing to learn from."""


def read_messages(value: Any, name: str) -> list[Message]:
    """A list of OpenAI messages or of sharegpt turns, told apart one by one. Raises WrongRow."""
    if not isinstance(value, list) or not value:
        raise WrongRow(f"'{name}' must be a list that is not empty")
    return [read_message(one, f"{_noun(one)} {number}") for number, one in enumerate(value, 1)]


def read_message(value: Any, where: str = "the message") -> Message:
    """One OpenAI message (`role`, `content`) or sharegpt turn (`from`, `value`). Raises WrongRow."""
    if not isinstance(value, dict):
        raise WrongRow(f"{where} must be an object, not {kind(value)}")
    return _turn(value, where) if "from" in value and "role" not in value else _message(value, where)


def said(role: str, content: str) -> Message:
    """A message of text."""
    return {"role": role, "content": mend(content)}


def read_tools(value: Any) -> Tools:
    """The functions that may be called, as OpenAI describes them, also as JSON text or without their `function`.

    Raises WrongRow.
    """
    value = _parsed(value, "'tools'")
    if not isinstance(value, list):
        raise WrongRow(f"'tools' must be a list, not {kind(value)}")
    tools = []
    for number, tool in enumerate(value, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise WrongRow(f"tool {number} must be an object with a name")
        tools.append({"type": "function", "function": _sound(_without_nulls(function), f"tool {number}")})
    return tools


def check_prompt(messages: Sequence[Message], tools: Tools) -> None:
    """Raise WrongRow unless the messages are one that an assistant can answer."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise WrongRow("there is no message of the user")
    if "system" in roles[1:]:
        raise WrongRow("a system message stands after the first place")
    if roles[-1] == "assistant":
        raise WrongRow("the last message before the answer is the assistant's")
    if roles[-1] == "system":
        raise WrongRow("the last message before the answer is the system's")
    for number, message in enumerate(messages, 1):
        if not message["content"].strip() and message["role"] == "user":
            raise WrongRow(f"message {number}, the user's, is empty")
        if not message["content"].strip() and message["role"] == "assistant" and not message.get("tool_calls"):
            raise WrongRow(f"message {number}, the assistant's, is empty")
    _check_calls(messages, tools)


def check_chat(messages: Sequence[Message], tools: Tools) -> None:
    """Raise WrongRow unless the messages end with an answer of the assistant that can be learnt."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise WrongRow("there is no message of the user")
    if roles[-1] != "assistant":
        raise WrongRow(f"the last message is the {roles[-1]}'s, so there is no answer to learn")
    if not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        raise WrongRow("the answer is empty")
    check_prompt(messages[:-1], tools)
    _check_calls(messages, tools)


def kind(value: Any) -> str:
    """What a JSON value is, for people."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _check_calls(messages: Sequence[Message], tools: Tools) -> None:
    known = {tool["function"]["name"] for tool in tools}
    open_calls: list[Message] = []
    for number, message in enumerate(messages, 1):
        if message["role"] == "tool":
            if not open_calls:
                raise WrongRow(f"message {number} is a tool's answer, but no call stands before it")
            _answer(open_calls, message, number)
            continue
        if open_calls and message["role"] != "system":
            name = open_calls[0]["function"]["name"]
            raise WrongRow(f"message {number} follows a call of '{name}' that no tool has answered")
        open_calls = list(message.get("tool_calls", ()))
        for call in open_calls:
            name = call["function"]["name"]
            if known and name not in known:
                raise WrongRow(
                    f"message {number} calls '{name}', which is not among its tools; {did_you_mean(name, known)}"
                )


def _answer(open_calls: list[Message], message: Message, number: int) -> None:
    id = message.get("tool_call_id")
    ids = [call.get("id") for call in open_calls]
    if id is not None and all(ids):
        if id not in ids:
            raise WrongRow(
                f"message {number} answers the call {id!r}, but the open calls are {', '.join(map(repr, ids))}"
            )
        del open_calls[ids.index(id)]
    else:
        del open_calls[0]


def _message(value: Mapping[str, Any], where: str) -> Message:
    role = value.get("role")
    role = _RENAMED.get(str(role), role)
    if role not in ROLES:
        raise WrongRow(f"{where} has the role {role!r}; {did_you_mean(str(role), ROLES)}")
    calls = value.get("tool_calls") or ([value["function_call"]] if value.get("function_call") else [])
    if calls and role != "assistant":
        raise WrongRow(f"{where} is the {role}'s, but only the assistant calls tools")
    content = value.get("content")
    if content is None and calls:
        content = ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if role == "tool" and isinstance(content, dict | list):
        content = json.dumps(_sound(content, f"the content of {where}"), ensure_ascii=False)
    if not isinstance(content, str):
        raise WrongRow(f"the content of {where} must be text, not {kind(content)}")
    message = said(role, content)
    if calls:
        message["tool_calls"] = _calls(calls, where)
    for name in ("tool_call_id", "name"):
        if role == "tool" and isinstance(value.get(name), str):
            message[name] = mend_surrogates(value[name])
    return message


def _turn(value: Mapping[str, Any], where: str) -> Message:
    speaker, text = value.get("from"), value.get("value")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise WrongRow(f"{where} is from {speaker!r}; {did_you_mean(str(speaker), _SPEAKERS)}")
    if not isinstance(text, str):
        raise WrongRow(f"the value of {where} must be text, not {kind(text)}")
    if speaker == "function_call":
        calls = _parsed(text, f"the call in {where}")
        return {**said("assistant", ""), "tool_calls": _calls(calls if isinstance(calls, list) else [calls], where)}
    return said(_SPEAKERS[speaker], text)


def _calls(calls: Any, where: str) -> list[Message]:
    if not isinstance(calls, list):
        raise WrongRow(f"the tool calls of {where} must be a list, not {kind(calls)}")
    found = []
    for number, call in enumerate(calls, 1):
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise WrongRow(f"tool call {number} of {where} must be an object with a name")
        arguments = function.get("arguments", {})
        arguments = _parsed(arguments or {}, f"the arguments of tool call {number} of {where}")
        if not isinstance(arguments, dict):
            raise WrongRow(f"the arguments of tool call {number} of {where} must be an object, not {kind(arguments)}")
        id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made = {**id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        found.append(_sound(made, f"tool call {number} of {where}"))
    return found


def _parsed(value: Any, what: str) -> Any:
    """A JSON value that may be given as its text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise WrongRow(f"{what} must be JSON: {error}") from None


def _sound(value: Any, what: str) -> Any:
    """A JSON value that every reader of JSON takes: no NaN, no infinity, nothing that UTF-8 cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:  # a table may hold dates and bytes
        raise WrongRow(f"{what} must be JSON: {error}") from None
    mended = mend_surrogates(text)
    return value if mended == text else json.loads(mended)


def _without_nulls(value: Any) -> Any:
    """Without the empty fields that a table gives to every row because another has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _noun(value: Any) -> str:
    return "turn" if isinstance(value, dict) and "from" in value and "role" not in value else "message"
