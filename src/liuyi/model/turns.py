"""A chat template as pieces around each message, for programs that have no Jinja: found by asking the template.

    form = turn_format(tokenizer)
    form.render(messages)                      # what the template writes, for texts of user, assistant and system
    form.go_template()                         # the same in Go's template language, as Ollama takes it

Most templates write a conversation as one piece after the other: what stands before and after a message depends on who
says it. Which pieces those are is read off a few rendered conversations; others are rendered to see that it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from liuyi.core.errors import ModelError
from liuyi.model.chat import Message, render
from liuyi.model.gguf_vocabulary import adds_bos
from liuyi.model.tokenizer import Tokenizer

_SAID = {"system": "Be brief.", "user": "What is it?", "assistant": "It is a lamp."}
_USER, _ANSWERED = ("user",), ("user", "assistant", "user")


@dataclass(frozen=True)
class TurnFormat:
    """What stands around messages, by role."""

    begin: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    answer: str
    """What makes the assistant speak."""
    default_system: str = ""
    """What the template says for the system if nobody else does."""

    @property
    def has_system(self) -> bool:
        """Whether messages of the system have a place."""
        return "system" in self.before

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation that the assistant is to continue."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        turns = (self.before[each["role"]] + each["content"] + self.after[each["role"]] for each in messages)
        return f"{self.begin}{''.join(turns)}{self.answer}"

    def go_template(self) -> str:
        """The format in Go's template language, over `.Messages` with `.Role` and `.Content`."""
        cases = "{{ else }}".join(
            f'{{{{ if eq .Role "{role}" }}}}{_go(self.before[role])}{{{{ .Content }}}}{_go(self.after[role])}'
            for role in self.before
        ).replace("{{ else }}{{ if", "{{ else if")
        return f"{_go(self.begin)}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_go(self.answer)}"


def turn_format(tokenizer: Tokenizer) -> TurnFormat:
    """The pieces of a tokenizer's chat template, without the first token where the tokenizer itself adds it.

    Raises ModelError if there is no template, or if it is no sequence of such pieces.
    """
    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template")
    asked = _Asked(tokenizer)
    # A system message that the template refuses, or writes elsewhere, has no place of its own.
    for roles in (("system", "user", "assistant"), ("user", "assistant")):
        try:
            form = _read_off(asked, "system" in roles)
        except (ModelError, ValueError):
            continue
        if all(form.render(asked.messages(order)) == asked.text(order) for order in _orders(form)):
            return form
    raise ModelError(
        "the chat template is not one piece after the other", hint="use a program that reads Jinja templates"
    )


class _Asked:
    """A template, asked for conversations by the roles in them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._template = tokenizer.chat_template
        named = (("bos_token", tokenizer.bos_token), ("eos_token", tokenizer.eos_token))
        self._variables: dict[str, Any] = {name: token for name, token in named if token}
        self._first = tokenizer.bos_token if adds_bos(tokenizer) else ""

    @staticmethod
    def messages(order: Sequence[str]) -> list[dict[str, str]]:
        return [{"role": role, "content": f"{_SAID[role]} {at}"} for at, role in enumerate(order)]

    def text(self, order: Sequence[str], *, answer: bool = True) -> str:
        """The conversation, without the first token if the tokenizer adds it anyway."""
        text = render(self._template, self.messages(order), add_generation_prompt=answer, **self._variables)
        return text.removeprefix(self._first)

    def around(self, order: Sequence[str]) -> list[str]:
        """What stands before, between and after the messages. Raises ValueError if they are not all there."""
        rest, pieces = self.text(order, answer=False), []
        for message in self.messages(order):
            piece, found, rest = rest.partition(message["content"])
            if not found:
                raise ValueError(message["content"])
            pieces.append(piece)
        return [*pieces, rest]


def _read_off(asked: _Asked, with_system: bool) -> TurnFormat:
    head, to_assistant, to_user, end = asked.around(_ANSWERED)
    answer = asked.text(_USER)[len(asked.text(_USER, answer=False)) :]
    before = {"assistant": _without(to_assistant, end)}
    # What ends the user's turn mostly ends the assistant's; else the user's begins with what it has in common.
    before["user"] = _without(to_user, end) if to_user.startswith(end) else _common_end(head, to_user)
    after = {"user": end, "assistant": to_user.removesuffix(before["user"])}
    begin, default = head.removesuffix(before["user"]), ""
    if not with_system:
        return TurnFormat(begin, before, after, answer)
    system_head, from_system, *_ = asked.around(("system", *_USER))
    after["system"] = from_system.removesuffix(before["user"])
    if len(begin) > len(system_head):
        # There is more before a first user than before a system: a message that the template has of its own.
        default = _without(begin, system_head).removesuffix(after["system"])
        begin = ""
    before["system"] = _without(system_head, begin)
    return TurnFormat(begin, {role: before[role] for role in _SAID}, after, answer, default)


def _orders(form: TurnFormat) -> list[tuple[str, ...]]:
    """Conversations that a format has to get right."""
    plain = [_USER, _ANSWERED, (*_ANSWERED, "assistant", "user")]
    return [*plain, *(("system", *order) for order in plain)] if form.has_system else plain


def _common_end(first: str, second: str) -> str:
    same = 0
    while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
        same += 1
    return first[len(first) - same :]


def _without(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ValueError(text)
    return text[len(beginning) :]


def _go(text: str) -> str:
    """Literal text in a Go template; a string of its own where it could be taken for more."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text else text
