"""What the desk says back, as JSON: answers, requests for a confirmation, hand-offs.

{"intent":…,"slots":{…}}                                  may be carried out
{"confirmation_required":true,"intent":…,"slots":{…}}     waits for a yes
{"confirmed":true,"intent":…,"slots":{…}}                 after the yes
[{…},{…}]                                                 several requests in one
{"hand_off":true,"reason":"…"}                            a person takes it
{"cancelled":true}                                        after a no
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from liuyi.apply.cascade import Answer, Outcome
from liuyi.apply.guard import Guard
from liuyi.core.digest import canonical_json

_YES = frozenset(
    (
        *("yes", "y", "yes please", "confirm", "confirmed", "ok", "okay", "sure", "do it", "go ahead"),
        *("是", "是的", "好", "好的", "确认", "确定", "可以", "对", "嗯", "行"),
    )
)
_NO = frozenset(
    (
        *("no", "n", "no thanks", "cancel", "stop", "don't", "do not", "abort"),
        *("不", "不要", "不用", "取消", "算了", "否", "别"),
    )
)


def reply(outcome: Outcome) -> str:
    """The reply to one request."""
    if outcome.hand_off:
        return canonical_json({"hand_off": True, "reason": outcome.reason})
    said = [_answer(answer) for answer in outcome.answers]
    return canonical_json(said[0] if len(said) == 1 else said)


def _answer(answer: Answer) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(answer.text)
    return value | {"confirmation_required": True} if answer.confirmation_required else value


def yes_or_no(text: str) -> Literal["yes", "no"] | None:
    """Whether a message does nothing but confirm or refuse."""
    plain = text.strip().strip(".!?。！？,，").strip().casefold()
    return "yes" if plain in _YES else "no" if plain in _NO else None


def pending(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers that the desk's last message asked to confirm; empty if it asked nothing."""
    if len(messages) < 2 or messages[-2].get("role") != "assistant":
        return []
    try:
        value = json.loads(str(messages[-2].get("content") or ""))
    except (ValueError, RecursionError):
        return []
    answers = value if isinstance(value, list) else [value]
    if not all(isinstance(answer, dict) and "intent" in answer and "slots" in answer for answer in answers):
        return []
    return answers if any(answer.get("confirmation_required") for answer in answers) else []


def settle(answers: Sequence[Mapping[str, Any]], said: Literal["yes", "no"], guard: Guard) -> str:
    """The reply once a person has said yes or no to what was pending.

    Everything in it passes the guard's release; what needed no confirmation was given before and is left out.
    """
    if said == "no":
        return canonical_json({"cancelled": True})
    confirmed = []
    for answer in answers:
        if answer.get("confirmation_required"):
            plain = {"intent": answer["intent"], "slots": answer["slots"]}
            released = guard.release(canonical_json(plain), confirmed=True)
            confirmed.append(json.loads(released.answer) | {"confirmed": True})
    return canonical_json(confirmed[0] if len(confirmed) == 1 else confirmed)
