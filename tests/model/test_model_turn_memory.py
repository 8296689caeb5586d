"""Turns of a conversation that goes on are known from before, and nothing else changes by that."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from chat_templates import QWEN3, SMOLLM2, every_byte_tokenizer

from liuyi.model import chat, template, turn_memory
from liuyi.model.chat import encode_chat
from liuyi.model.turn_memory import Turn, TurnMemory, keys_of


def conversation(count: int, said: str = "yes") -> list[dict[str, Any]]:
    talk = [{"role": role, "content": f"{said} {at}"} for at in range(count) for role in ("user", "assistant")]
    return [*talk, {"role": "user", "content": "on"}]


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each rendering had."""
    counts: list[int] = []
    render = chat.render_template

    def counted(template: str, variables: dict[str, Any]) -> str:
        counts.append(len(variables["messages"]))
        return render(template, variables)

    monkeypatch.setattr(chat, "render_template", counted)
    monkeypatch.setattr(chat, "_TURNS", TurnMemory())
    return counts


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3])
def test_only_what_is_new_is_rendered_again(renderings: list[int], template: str) -> None:
    tokenizer = every_byte_tokenizer()
    encode_chat(tokenizer, conversation(20), add_generation_prompt=True, template=template)
    assert len(renderings) == 41
    renderings.clear()
    warm = encode_chat(tokenizer, conversation(21), add_generation_prompt=True, template=template)
    assert renderings == [43, 41, 42]
    chat._TURNS = TurnMemory()
    assert encode_chat(tokenizer, conversation(21), add_generation_prompt=True, template=template) == warm


class Clock(datetime.datetime):
    at = datetime.datetime(2026, 1, 1, 10, 0)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
        return cls.fromisoformat(cls.at.isoformat())


def test_another_conversation_tool_variable_or_day_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(count: int = 2, said: str = "yes", *rendered_with: Any) -> bytes:
        return list(keys_of(conversation(count, said), "template", *rendered_with))[-1]

    monkeypatch.setattr(turn_memory, "datetime", Clock)
    keys = {last(), last(3), last(2, "no"), last(2, "yes", ["tool"]), last(2, "yes", ["tool"], {"a": 1})}
    monkeypatch.setattr(Clock, "at", Clock.at.replace(hour=23))
    assert last() in keys
    monkeypatch.setattr(Clock, "at", Clock.at.replace(day=2))
    keys.add(last())
    assert len(keys) == 6


def test_a_template_may_tell_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (turn_memory, template):
        monkeypatch.setattr(module, "datetime", Clock)
    telling = "{{ strftime_now('%d %b %H:%M') }}" + SMOLLM2
    ids = []
    for minute in (0, 1):
        monkeypatch.setattr(Clock, "at", Clock.at.replace(minute=minute))
        ids.append(encode_chat(every_byte_tokenizer(), conversation(2)[:-1], template=telling))
    assert ids[0][1] == ids[1][1]
    assert ids[0][0] != ids[1][0]


def test_the_text_has_to_begin_as_it_did_and_the_oldest_are_forgotten() -> None:
    memory = TurnMemory(most=2)
    asked: list[bytes] = []

    def find(key: bytes, whole: str) -> Turn | None:
        def look() -> tuple[Turn, str]:
            asked.append(key)
            return Turn(1, 2), "abc"

        return memory.find(key, whole, look)

    assert find(b"1", "abcd") == Turn(1, 2)
    assert find(b"1", "abd") is None
    assert asked == [b"1"]
    for key in (b"2", b"3", b"1"):
        assert find(key, "abc") == Turn(1, 2)
    assert asked == [b"1", b"2", b"3", b"1"]
