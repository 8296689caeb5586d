"""Conversations as tokens: the model's own chat template, one function for training and serving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import ModelError
from liuyi.model.template import SAID_BEGINS, SAID_ENDS, render_template

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


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant says: its content and the token that closes it.

    What the assistant says is encoded apart from what stands before it, as when the model itself says it: the ids of
    a prompt are a prefix of the ids of the conversation that goes on from it. `template` replaces the tokenizer's
    own. Raises ModelError if there is no template, or if it leaves out or changes what a message says.
    """
    template = template or tokenizer.chat_template
    if not template:
        raise ModelError("the model has no chat template", hint="name one, or train it on conversations first")
    named = (("bos_token", tokenizer.bos_token), ("eos_token", tokenizer.eos_token), ("pad_token", tokenizer.pad_token))
    variables = {name: token for name, token in named if token}
    whole = _marked(template, messages, tools, add_generation_prompt, variables)
    if SAID_BEGINS in whole:
        pieces = list(_split_at_marks(whole))
    else:
        pieces = list(_split_at_prefixes(template, messages, tools, variables, whole, tokenizer))
    _check_nothing_lost(messages, pieces)
    ids: list[int] = []
    said: list[bool] = []
    for text, by_assistant in pieces:
        piece = tokenizer.encode(text)
        ids += piece
        said += [by_assistant] * len(piece)
    return ids, said


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
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    whole: str,
    tokenizer: Tokenizer,
) -> Iterator[tuple[str, bool]]:
    """A template without marks: an assistant's turn is what it adds to the prompt for it."""
    done = 0
    ends = [tokenizer.backend.id_to_token(token) or "" for token in tokenizer.stop_ids]
    for at, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        prompt = _marked(template, messages[:at], tools, True, variables) if at else ""
        through = _marked(template, messages[: at + 1], tools, False, variables)
        if not (whole.startswith(through) and through.startswith(prompt)):
            raise ModelError(
                f"the chat template renders message {at + 1} differently once others follow it",
                hint="train on conversations of one turn, or give the template {% generation %} marks",
            )
        turn = through[len(prompt) :]
        begin = turn.find(_content(message))
        closing = turn[begin + len(_content(message)) :] if begin >= 0 else turn
        found = [closing.find(end) + len(end) for end in ends if end in closing]
        length = len(turn) - len(closing) + (min(found) if found else 0)
        yield whole[done : len(prompt)], False
        done = len(prompt) + length
        yield whole[len(prompt) : done], True
    yield whole[done:], False


def _check_nothing_lost(messages: Sequence[Message], pieces: Sequence[tuple[str, bool]]) -> None:
    said = iter([text for text, by_assistant in pieces if by_assistant])
    everything = "".join(text for text, _ in pieces)
    for at, message in enumerate(messages):
        content = _content(message)
        if content not in (next(said, "") if message.get("role") == "assistant" else everything):
            raise ModelError(
                f"the chat template changes or leaves out what message {at + 1} ({message.get('role')}) says",
                hint=f"it is not found as written: {content[:80]!r}",
            )


def _content(message: Message) -> str:
    """What a message says; templates trim it, so spaces at its ends do not count."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""
