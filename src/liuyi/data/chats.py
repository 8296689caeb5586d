"""Conversations from files: which format a row is in, whether it is sound, and what became of each row.

Formats are told apart row by row: OpenAI `messages`, `prompt`/`completion`, alpaca, sharegpt.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liuyi.core.digest import canonical_json
from liuyi.core.errors import DataError, did_you_mean
from liuyi.data.corpus import Rejected
from liuyi.data.text import decode, mend

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
_FORMATS = "messages, prompt and completion, instruction and output (alpaca), or conversations (sharegpt)"
_HEAD_CHARS = 200


class WrongRow(Exception):
    """Why a row is no conversation to learn from."""


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with an answer of the assistant."""

    id: str
    messages: tuple[Message, ...]
    source: str
    license: str
    cluster: str
    """The conversation's prompt: those that ask the same are held out together."""
    line: int


def read_chats(path: Path, *, license: str) -> tuple[list[Chat], list[Rejected]]:
    """The conversations of a JSONL file or of a JSON file that holds an array, and every row that is none.

    Raises DataError where the file as a whole cannot be read.
    """
    chats: list[Chat] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    for line, raw in _rows(path):
        try:
            messages = _sound(to_messages(_parsed(raw)))
        except WrongRow as error:
            rejected.append(Rejected(path.name, line, str(error), _head(raw)))
            continue
        text = canonical_json(messages)
        if text in seen:
            rejected.append(Rejected(path.name, line, f"the same conversation as line {seen[text]}", _head(raw)))
            continue
        seen[text] = line
        prompt = canonical_json([message["content"] for message in messages if message["role"] != "assistant"])
        chats.append(Chat(_digest(text), tuple(messages), path.stem, license, _digest(prompt)[:16], line))
    return chats, rejected


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row in any known format.

    Raises WrongRow where the format is unknown or a field is missing or of the wrong type.
    """
    if "messages" in row:
        return [_message(number, one) for number, one in enumerate(_listed(row, "messages"), 1)]
    if "conversations" in row:
        messages = [_turn(number, one) for number, one in enumerate(_listed(row, "conversations"), 1)]
        return _with_system(row, messages)
    if "chosen" in row or "rejected" in row:
        raise WrongRow("this is a preference pair, not a conversation")
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return [_message(number, one) for number, one in enumerate([*prompt, *completion], 1)]
        return _with_system(row, [_said("user", _text(row, "prompt")), _said("assistant", _text(row, "completion"))])
    if "instruction" in row and "output" in row:
        return _with_system(row, _alpaca(row))
    raise WrongRow(f"unknown format with the fields {sorted(row)}; known are {_FORMATS}")


def split(chats: list[Chat], fraction: float, seed: int) -> tuple[list[Chat], list[Chat]]:
    """(train, held out): whole clusters are held out until about `fraction` of the conversations are.

    Raises DataError where a fraction is asked for and all conversations ask the same.
    """
    if fraction <= 0:
        return chats, []
    sizes: dict[str, int] = {}
    for chat in chats:
        sizes[chat.cluster] = sizes.get(chat.cluster, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            "all conversations have the same prompt, so none can be held out", hint="set heldout_fraction: 0"
        )
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    held: set[str] = set()
    count = 0
    for name in names[:-1]:
        if held and count + sizes[name] > fraction * len(chats):
            break
        held.add(name)
        count += sizes[name]
    return [chat for chat in chats if chat.cluster not in held], [chat for chat in chats if chat.cluster in held]


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row): the text of each line of JSONL, or each element of a JSON array with its number."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        text = mend(decode(data))
    except DataError as error:
        raise DataError(error.message, where=str(path)) from None
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise DataError(f"is not JSON: {error}", where=str(path)) from None
        return
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            yield line, row


def _parsed(raw: Any) -> Mapping[str, Any]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise WrongRow(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise WrongRow(f"a row must be an object, not {_kind(raw)}")
    return raw


def _sound(messages: list[Message]) -> list[Message]:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise WrongRow("there is no message of the user")
    if roles[-1] != "assistant":
        raise WrongRow(f"the last message is the {roles[-1]}'s, so there is no answer to learn")
    if "system" in roles[1:]:
        raise WrongRow("a system message stands after the first place")
    if not messages[-1]["content"].strip():
        raise WrongRow("the answer is empty")
    return messages


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise WrongRow(f"message {number} must be an object, not {_kind(message)}")
    role = message.get("role")
    if message.get("tool_calls") or role in ("tool", "function"):
        raise WrongRow(f"message {number} calls tools; only messages of text are read")
    if role not in ROLES:
        raise WrongRow(f"message {number} has the role {role!r}; {did_you_mean(str(role), ROLES)}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise WrongRow(f"the content of message {number} must be text, not {_kind(content)}")
    return _said(role, content)


def _turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise WrongRow(f"turn {number} must be an object, not {_kind(turn)}")
    speaker = turn.get("from")
    if speaker not in _SHAREGPT_ROLES:
        raise WrongRow(f"turn {number} is from {speaker!r}; {did_you_mean(str(speaker), _SHAREGPT_ROLES)}")
    if not isinstance(turn.get("value"), str):
        raise WrongRow(f"the value of turn {number} must be text, not {_kind(turn.get('value'))}")
    return _said(_SHAREGPT_ROLES[speaker], turn["value"])


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    messages = []
    for number, pair in enumerate(row.get("history") or [], 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            raise WrongRow(f"turn {number} of the history must be a pair of texts")
        messages += [_said("user", pair[0]), _said("assistant", pair[1])]
    asked = _text(row, "instruction")
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise WrongRow(f"'input' must be text, not {_kind(given)}")
    return [*messages, _said("user", f"{asked}\n{given}" if given else asked), _said("assistant", _text(row, "output"))]


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system")
    return [_said("system", system), *messages] if isinstance(system, str) and system.strip() else messages


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": mend(content)}


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise WrongRow(f"'{name}' must be text, not {_kind(row[name])}")
    return str(row[name])


def _listed(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row[name]
    if not isinstance(value, list) or not value:
        raise WrongRow(f"'{name}' must be a list that is not empty")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _head(raw: Any) -> str:
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    return mend(text[:_HEAD_CHARS])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
