"""Tools of a conversation: how the model is told of them, held to their schemas, and its calls read as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from liuyi.infer.grammar import ControlTokens
from liuyi.infer.request import Grammar
from liuyi.infer.server.backend import CallDelta, ChatRequest, Delta, Deltas, ToolUse
from liuyi.infer.tools.calls import CallPiece, Text
from liuyi.infer.tools.formats import ToolFormat
from liuyi.infer.tools.grammar import tool_grammar
from liuyi.infer.tools.plain import told
from liuyi.infer.tools.reader import ToolReader


def as_template_knows(
    request: ChatRequest, form: ToolFormat
) -> tuple[Sequence[Mapping[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools for the model's chat template."""
    functions = request.tools.functions if request.tools is not None else ()
    tools = [
        {
            "type": "function",
            "function": {
                "name": function.name,
                **({"description": function.description} if function.description else {}),
                "parameters": function.parameters,
            },
        }
        for function in functions
    ]
    if form.template_knows:
        return [_with_fitting_ids(message, form) for message in request.messages], tools or None
    return told(request.messages, tools), None


def _with_fitting_ids(message: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    changed = dict(message)
    if "tool_call_id" in message:
        changed["tool_call_id"] = form.fitting_id(message["tool_call_id"])
    if "tool_calls" in message:
        changed["tool_calls"] = [{**call, "id": form.fitting_id(call["id"])} for call in message["tool_calls"]]
    return changed


def grammar_of(use: ToolUse, form: ToolFormat, control: ControlTokens, content: Grammar | None) -> Grammar:
    """What an answer has to match, calls or `content`. Raises RequestError as `tool_grammar` does."""
    parallel = use.parallel and use.only is None
    return tool_grammar(form, use.choices, control, required=use.required, parallel=parallel, content=content)


class Called:
    """A model's deltas with its calls told apart from its text."""

    def __init__(self, deltas: Deltas, use: ToolUse, form: ToolFormat) -> None:
        self._deltas = deltas
        self._use = use
        self._form = form
        self._names = {function.name for function in use.choices}
        self._readers: dict[int, ToolReader] = {}
        self._called: set[int] = set()

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each delta. Raises as the model's."""
        await self._deltas.tell(lambda delta: take(self._read(delta)))

    async def aclose(self) -> None:
        """Cancel what is left."""
        await self._deltas.aclose()

    def _read(self, delta: Delta) -> Delta:
        reader = self._readers.setdefault(delta.index, self._form.reader(self._names))
        pieces = reader.push(delta.text)
        if delta.finish_reason is not None:
            pieces += reader.finish()
        calls = tuple(self._call(piece) for piece in pieces if isinstance(piece, CallPiece))
        if calls:
            self._called.add(delta.index)
        reason = delta.finish_reason
        if reason == "stop" and delta.index in self._called and self._use.only is None:
            # As OpenAI has it, an answer that had to call this one function just stops.
            reason = "tool_calls"
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        return msgspec.structs.replace(delta, text=text, calls=calls, finish_reason=reason)

    def _call(self, piece: CallPiece) -> CallDelta:
        id = self._form.new_id() if piece.name is not None else None
        return CallDelta(piece.index, id, piece.name, piece.arguments)
