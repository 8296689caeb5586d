"""Conversations as tokens: the model's own chat template, one function for training and serving."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import ModelError
from liuyi.model.template import SAID_BEGINS, SAID_ENDS, render_template
from liuyi.model.turn_memory import Turn, TurnMemory, keys_of

if TYPE_CHECKING:
    from liuyi.model.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""A message as OpenAI writes it: role, content, and what else the template knows."""

CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""The template of models born here: <|im_start|>role\\ncontent<|im_end|>\\n."""

_TRIED = "Hello"


def render(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """The text of a conversation, as `transformers` renders it with the same template.

    `variables` are further names that the template may use, such as `bos_token`. Raises ModelError if the template
    is not valid, refuses the conversation, or does what a template must not.
    """
    text = _marked(template, messages, tools, add_generation_prompt, variables)
    return text.replace(SAID_BEGINS, "").replace(SAID_ENDS, "")


def read_template(path: Path) -> str:
    """The chat template in a file, tried on a message. Raises ModelError, naming the file, if it cannot be used."""
    try:
        template = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"the chat template cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ModelError("the chat template is not UTF-8 text", where=str(path)) from error
    try:
        text = render(template, [{"role": "user", "content": _TRIED}], add_generation_prompt=True)
    except ModelError as error:
        raise ModelError(error.message, where=", ".join(filter(None, (str(path), error.where)))) from error
    if _TRIED not in text:
        raise ModelError("the chat template leaves out what the user says", where=str(path))
    return template


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant says: its content and the token that closes it.

    What the assistant says is encoded apart from what stands before it, as when the model itself says it: the ids of
    a prompt are a prefix of the ids of the conversation that goes on from it. The names of special tokens are plain
    text where a message holds them: nobody can end a turn from within. (Tokenizers that are not byte-level take the
    text as a whole, and promise neither.) `template` replaces the tokenizer's own; `variables`
    are further names that it may use.

    Raises ModelError if there is no template or it refuses the conversation. A conversation that ends with what was
    said, such as one to learn from, must come through whole: ModelError too if the template leaves out or changes a
    message, or shows an earlier one differently once others follow. With `add_generation_prompt` that may be, and
    then no more is marked than can be told.
    """
    template = template or tokenizer.chat_template
    if not template:
        raise ModelError(
            "the model has no chat template",
            hint="put a chat_template.jinja into its folder, or train it on conversations",
        )
    named = (("bos_token", tokenizer.bos_token), ("eos_token", tokenizer.eos_token), ("pad_token", tokenizer.pad_token))
    control = _control_tokens(tokenizer)
    given = _each_text(dict(variables or {}), lambda text: control.sub(_as_text, text))
    variables = {**given, **{name: token for name, token in named if token}}
    plain_messages = [_each_text(message, lambda text: control.sub(_as_text, text)) for message in messages]
    plain_tools = _each_text(list(tools), lambda text: control.sub(_as_text, text)) if tools else None
    conversation = _Conversation(template, plain_messages, plain_tools, variables)
    whole = conversation.text(len(messages), add_generation_prompt)
    if SAID_BEGINS in whole:
        pieces = list(_split_at_marks(whole))
    else:
        pieces = list(_split_at_prefixes(conversation, whole, tokenizer, strict=not add_generation_prompt))
    if not add_generation_prompt:
        _check_nothing_lost(plain_messages, pieces)
    if not tokenizer.is_byte_level:
        return _encode_whole(tokenizer, pieces)
    ids: list[int] = []
    said: list[bool] = []
    for text, by_assistant in pieces:
        piece = _encode(tokenizer, control, text)
        ids += piece
        said += [by_assistant] * len(piece)
    return ids, said


_TURNS = TurnMemory()


@dataclass(frozen=True)
class _Conversation:
    """A conversation and what renders it, as far as any message."""

    template: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: Mapping[str, Any]

    def text(self, count: int, add_generation_prompt: bool) -> str:
        """The first `count` messages, the assistant's words between marks if the template has them."""
        return _marked(self.template, self.messages[:count], self.tools, add_generation_prompt, self.variables)


def _marked(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    names = {
        "messages": [dict(message) for message in messages],
        "tools": list(tools) if tools else None,
        "add_generation_prompt": add_generation_prompt,
    }
    return render_template(template, {**variables, **names})


def _split_at_marks(text: str) -> Iterator[tuple[str, bool]]:
    for part in text.split(SAID_BEGINS):
        said, mark, rest = part.partition(SAID_ENDS)
        if mark:
            yield said, True
            yield rest, False
        else:
            yield said, False


def _split_at_prefixes(
    conversation: _Conversation, whole: str, tokenizer: Tokenizer, strict: bool
) -> Iterator[tuple[str, bool]]:
    """A template without marks: an assistant's turn is what it adds to the prompt for it."""
    done = 0
    ends = [tokenizer.backend.id_to_token(token) or "" for token in tokenizer.stop_ids]
    keys = keys_of(conversation.messages, conversation.template, conversation.tools, conversation.variables, ends)
    for at, (message, key) in enumerate(zip(conversation.messages, keys, strict=True)):
        if message.get("role") != "assistant":
            continue
        turn = _TURNS.find(key, whole, partial(_look_at, conversation, at, ends))
        if turn is None:
            if not strict:
                continue
            raise ModelError(
                f"the chat template renders message {at + 1} differently once others follow it",
                hint="train on conversations of one turn, or give the template {% generation %} marks",
            )
        yield whole[done : turn.begins], False
        yield whole[turn.begins : turn.ends], True
        done = turn.ends
    yield whole[done:], False


def _look_at(conversation: _Conversation, at: int, ends: Sequence[str]) -> tuple[Turn | None, str]:
    """What an assistant's message adds to the prompt for it, and the text as far as that message."""
    prompt = conversation.text(at, add_generation_prompt=True) if at else ""
    through = conversation.text(at + 1, add_generation_prompt=False)
    if not through.startswith(prompt):
        return None, through
    said = _length_of_turn(through[len(prompt) :], conversation.messages[at], ends)
    return Turn(len(prompt), len(prompt) + said), through


def _length_of_turn(turn: str, message: Message, ends: Sequence[str]) -> int:
    """How much of a turn the assistant says: its content and the first token after it that ends a turn."""
    content_to = 0
    for text in _texts(message):
        at = turn.find(text, content_to)
        content_to = at + len(text) if at >= 0 else content_to
    found = [(at, end) for end in ends if (at := turn.find(end, content_to)) >= 0]
    if not found:
        return content_to
    at, end = min(found)
    return at + len(end)


def _check_nothing_lost(messages: Sequence[Message], pieces: Sequence[tuple[str, bool]]) -> None:
    said = iter([text for text, by_assistant in pieces if by_assistant])
    everything = "".join(text for text, _ in pieces)
    for at, message in enumerate(messages):
        shown = next(said, "") if message.get("role") == "assistant" else everything
        for text in _texts(message):
            if text not in shown:
                raise ModelError(
                    f"the chat template changes or leaves out what message {at + 1} ({message.get('role')}) says",
                    hint=f"it is not found as written: {text[:80]!r}",
                )


def _texts(message: Message) -> list[str]:
    """What a message says, in parts; templates trim it, so spaces at its ends do not count."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return [text.strip() for text in texts if isinstance(text, str)]


_BROKEN = "\ufdd2"
"""A noncharacter put into the name of a special token that stands in a message, so that it is no token."""


def _control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _as_text(token: re.Match[str]) -> str:
    return token[0][0] + _BROKEN + token[0][1:]


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each_text(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return value


def _encode(tokenizer: Tokenizer, control: re.Pattern[str], text: str) -> list[int]:
    """Token ids of a rendered piece; what holds a broken token is encoded as plain text."""
    if _BROKEN not in text:
        return tokenizer.encode(text)
    ids: list[int] = []
    done = 0
    for token in control.finditer(text):
        ids += tokenizer.encode_ordinary(text[done : token.start()].replace(_BROKEN, ""))
        ids += tokenizer.encode(token[0])
        done = token.end()
    return ids + tokenizer.encode_ordinary(text[done:].replace(_BROKEN, ""))


def _encode_whole(tokenizer: Tokenizer, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    """For tokenizers whose ids depend on where a text begins: all in one, a token belongs to where it begins."""
    pieces = [(text.replace(_BROKEN, ""), by_assistant) for text, by_assistant in pieces]
    speaker = [by_assistant for text, by_assistant in pieces for _ in text]
    encoding = tokenizer.backend.encode("".join(text for text, _ in pieces), add_special_tokens=False)
    return list(encoding.ids), [begin < end and speaker[begin] for begin, end in encoding.offsets]
