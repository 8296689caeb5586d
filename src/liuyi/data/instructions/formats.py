"""Which format a row is in, and what it says: a conversation, a preference between two answers, or a labelled answer.

    messages      {"messages": [{"role", "content"}, …], "tools"?}
    sharegpt      {"conversations": [{"from", "value"}, …], "system"?, "tools"?}
    prompt        {"prompt", "completion"}, texts or lists of messages
    alpaca        {"instruction", "input"?, "output", "history"?, "system"?}

With `chosen` and `rejected` in place of the answer a row of any of them is a preference (`chosen` and `rejected` may
also be whole conversations that begin alike), and with `label` (or `kto_tag`) true or false a labelled answer (KTO,
Ethayarajh et al. 2024, arXiv 2402.01306).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from liuyi.data.instructions.messages import (
    Message,
    Tools,
    WrongRow,
    check_chat,
    check_prompt,
    kind,
    read_message,
    read_messages,
    read_tools,
    said,
)

_TURNS = ("conversations", "conversation")
_LABELS = ("label", "kto_tag")
_KNOWN = (
    "messages, conversations (sharegpt), prompt and completion, instruction and output (alpaca), each also with chosen "
    "and rejected, or with a label"
)


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with an answer of the assistant."""

    format: str
    messages: list[Message]
    tools: Tools = field(default_factory=list)


@dataclass(frozen=True)
class Preference:
    """A prompt with a chosen and a rejected answer; a labelled answer has only the one that its label says."""

    format: str
    prompt: list[Message]
    chosen: str | None
    rejected: str | None
    tools: Tools = field(default_factory=list)


def to_chat(row: Mapping[str, Any]) -> Chat:
    """The conversation of a row. Raises WrongRow."""
    if "messages" not in row and _has(row, "chosen", "rejected"):
        raise WrongRow("this is a preference, not a conversation; data.preferences_file reads it")
    if _label(row) is False:
        raise WrongRow("this answer is labelled as bad, so it is not to be learnt; data.preferences_file reads labels")
    chat = _conversation(row)
    check_chat(chat.messages, chat.tools)
    return chat


def to_preference(row: Mapping[str, Any]) -> Preference:
    """The preference or the labelled answer of a row. Raises WrongRow."""
    if _has(row, "chosen", "rejected"):
        found = _pair(row)
    else:
        label = _label(row)
        if label is None:
            raise WrongRow(
                f"neither 'chosen' and 'rejected' nor a 'label' among the fields {', '.join(sorted(map(str, row)))}"
            )
        chat = _conversation(row)
        check_chat(chat.messages, chat.tools)
        answer = _text_of(chat.messages[-1], "the answer")
        chosen, rejected = (answer, None) if label else (None, answer)
        found = Preference(f"{chat.format} with labels", chat.messages[:-1], chosen, rejected, chat.tools)
    check_prompt(found.prompt, found.tools)
    return found


def _conversation(row: Mapping[str, Any]) -> Chat:
    tools = read_tools(row["tools"]) if row.get("tools") else []
    if "messages" in row:
        return Chat("messages", read_messages(row["messages"], "messages"), tools)
    for name in _TURNS:
        if name in row:
            return Chat("sharegpt", _with_system(row, read_messages(row[name], name)), tools)
    if "prompt" in row and "completion" in row:
        prompt, answer = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(answer, list):
            return Chat("prompt", read_messages([*prompt, *answer], "prompt"), tools)
        return Chat(
            "prompt", _with_system(row, [_asked(row, "prompt"), said("assistant", _text(row, "completion"))]), tools
        )
    if "instruction" in row and "output" in row:
        return Chat("alpaca", _with_system(row, [*_alpaca(row), said("assistant", _text(row, "output"))]), tools)
    raise WrongRow(f"unknown format with the fields {', '.join(sorted(map(str, row)))}; known are {_KNOWN}")


def _pair(row: Mapping[str, Any]) -> Preference:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise WrongRow(f"'{name}' is missing")
    tools = read_tools(row["tools"]) if row.get("tools") else []
    given = _prompt(row)
    chosen_turns, chosen = _answer(row, "chosen")
    rejected_turns, rejected = _answer(row, "rejected")
    if chosen_turns != rejected_turns:
        raise WrongRow("chosen and rejected answer different conversations")
    format, prompt = given or ("conversations", [])
    if chosen_turns and prompt and chosen_turns[-len(prompt) :] != prompt:
        raise WrongRow("'prompt' is not what chosen and rejected answer")
    if not prompt and not chosen_turns:
        raise WrongRow("there is no prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise WrongRow(f"the {name} answer is empty")
    if chosen == rejected:
        raise WrongRow("chosen and rejected are the same")
    return Preference(f"{format} with chosen and rejected", chosen_turns or prompt, chosen, rejected, tools)


def _prompt(row: Mapping[str, Any]) -> tuple[str, list[Message]] | None:
    """(format, messages) of what a preference's answers answer, unless they say it themselves."""
    for name in _TURNS:
        if name in row:
            return "sharegpt", _with_system(row, read_messages(row[name], name))
    for name in ("prompt", "question"):
        if isinstance(row.get(name), list):
            return "prompt", read_messages(row[name], name)
        if row.get(name) is not None:
            return "prompt", _with_system(row, [_asked(row, name)])
    if "instruction" in row:
        return "alpaca", _with_system(row, _alpaca(row))
    return None


def _answer(row: Mapping[str, Any], name: str) -> tuple[list[Message], str]:
    """(turns before it, text) of an answer given as text, as a message, or as a conversation."""
    value = row[name]
    if isinstance(value, str):
        return [], said("assistant", value)["content"]
    if isinstance(value, dict):
        return [], _text_of(read_message(value, f"'{name}'"), f"'{name}'")
    turns = read_messages(value, name)
    return turns[:-1], _text_of(turns[-1], f"the last message of '{name}'")


def _text_of(message: Message, what: str) -> str:
    if message["role"] != "assistant":
        raise WrongRow(f"{what} must be the assistant's, not the {message['role']}'s")
    if message.get("tool_calls"):
        raise WrongRow(f"{what} calls tools; only answers of text are compared")
    return str(message["content"])


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    messages = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise WrongRow(f"'history' must be a list, not {kind(history)}")
    for number, pair in enumerate(history, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            raise WrongRow(f"turn {number} of the history must be a pair of texts")
        messages += [said("user", pair[0]), said("assistant", pair[1])]
    asked = _text(row, "instruction")
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise WrongRow(f"'input' must be text, not {kind(given)}")
    return [*messages, said("user", f"{asked}\n{given}" if given else asked)]


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system") or row.get("system_prompt")
    return [said("system", system), *messages] if isinstance(system, str) and system.strip() else messages


def _asked(row: Mapping[str, Any], name: str) -> Message:
    return said("user", _text(row, name))


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise WrongRow(f"'{name}' must be text, not {kind(row[name])}")
    return str(row[name])


def _label(row: Mapping[str, Any]) -> bool | None:
    """The label of an answer; None where there is none. A label of another type is another thing."""
    for name in _LABELS:
        value = row.get(name)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    return None


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return any(row.get(name) is not None for name in names)
