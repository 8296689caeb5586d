"""A grammar of answers with tool calls: whatever calls there are name a function on offer and fit its schema.

Where the model is free to call or not, text stays free until a call begins; from there the grammar holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import llguidance

from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import ControlTokens, describe_problem
from liuyi.infer.request import Grammar
from liuyi.infer.tools.calls import Function
from liuyi.infer.tools.formats import ToolFormat
from liuyi.infer.tools.shape import Shape, lark_text

# As `json.dumps` writes, and so as templates show calls to the model in training.
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_COMPACT = {"whitespace_flexible": False}
_NAMES_ALL = frozenset({"type", "properties", "required", "title", "description", "$schema", "$defs", "definitions"})
"""Keywords of a schema whose `properties` are all that it says of properties."""


def tool_grammar(
    form: ToolFormat,
    functions: Sequence[Function],
    control: ControlTokens,
    *,
    required: bool,
    parallel: bool,
    content: Grammar | None = None,
) -> Grammar:
    """A grammar for an answer that may, or if `required` must, be calls of these functions.

    `control` are the tokenizer's control tokens. `content` is what an answer without calls has to match.
    Raises RequestError if a schema is invalid, or cannot be enforced though the function is strict, or if `content`
    cannot be told from a call.
    """
    names = [function.name for function in functions]
    rules = form.shape.calls(names, control.ids, parallel=parallel and form.parallel)
    for number, function in enumerate(functions):
        rules.append(f"arguments_{number}: %json {_enforceable(number, function)}")
    tag = lark_text(form.shape.tag, control.ids)
    prelude = f"<[{control.ids[form.shape.prelude]}]>?" if form.shape.prelude in control.ids else ""
    if required:
        start = [f"start: {prelude} {tag} calls"]
    elif content is not None:
        start = [f"start: content | {tag} calls", f"content: {_content(content, form.shape.tag)}"]
    else:
        start = _free(form.shape, prelude, names, control)
    return Grammar("lark", "\n".join([*start, *rules]))


def _free(shape: Shape, prelude: str, names: Sequence[str], control: ControlTokens) -> list[str]:
    """Rules for text in which a call may begin: any, control tokens that count as text among it."""
    tag = shape.tag
    spoken = sorted(control.ids[name] for name in control.spoken if name not in (tag, shape.prelude))
    aside = f"<[{','.join(map(str, spoken))}]>" if spoken else ""
    if not tag:
        begins = rf'\s*\{{\s*"name"\s*:\s*"({"|".join(names)})"'
        return [
            f"start: {prelude} calls | TEXT? {f'({aside} MORE?)*' if aside else ''}",
            f"TEXT: /(?s:.+)/ & ~/{begins}(?s:.*)/",
            "MORE: /(?s:.+)/",
        ]
    text = f"(TEXT | {aside})*" if aside else "TEXT?"
    if tag in control.ids:
        return [f"start: {text} (<[{control.ids[tag]}]> calls)?", "TEXT: /(?s:.+)/"]
    literal = json.dumps(tag)
    return [
        f"start: {text} (before calls)?",
        f"before[lazy]: /(?s:.*)/ {literal}",
        f"TEXT: /(?s:.+)/ & ~(/(?s:.*)/ {literal} /(?s:.*)/)",
    ]


def _enforceable(number: int, function: Function) -> str:
    schema: dict[str, Any] = {"x-guidance": _SPACED, "type": "object"} | _closed(function.parameters)
    try:
        text = json.dumps(schema, ensure_ascii=False)
        problem = _problem(text)
    except RecursionError:
        problem = "they are nested too deeply"
    if not problem:
        return text
    if function.strict:
        raise RequestError(
            f"the parameters of '{function.name}' are no schema that can be enforced: {problem}",
            param=f"tools.{number}.function.parameters",
            code="invalid_json_schema",
        )
    return json.dumps({"type": "object", "x-guidance": _SPACED})


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A function takes the arguments that it names, and no others unless it says so.

    JSON Schema would let a model make up further ones, which few functions survive; OpenAI demands that strict
    functions forbid them, and xgrammar forbids them by default.
    """
    known, needed = parameters.get("properties"), parameters.get("required", [])
    if not (isinstance(known, Mapping) and isinstance(needed, list) and _NAMES_ALL.issuperset(parameters)):
        return dict(parameters)
    all_known = all(isinstance(name, str) and name in known for name in needed)
    return {**parameters, "additionalProperties": False} if all_known else dict(parameters)


@lru_cache(maxsize=256)
def _problem(schema: str) -> str:
    """What is wrong with a JSON Schema, or not supported; empty if nothing is."""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        return describe_problem(llguidance.LLMatcher.validate_grammar(grammar))
    except ValueError as error:
        return describe_problem(str(error))


def _content(content: Grammar, tag: str) -> str:
    if not tag:
        raise RequestError(
            "with this model, whose calls are bare JSON, response_format and tools that it may or may not call do not "
            "go together",
            param="response_format",
            hint="tool_choice 'required' or 'none', or no response_format",
        )
    if content.kind == "lark":
        raise RequestError("a Lark grammar and tools do not go together", param="response_format")
    if content.kind == "regex":
        return "/" + content.text.replace("/", r"\/") + "/"
    return "%json " + json.dumps({"x-guidance": _COMPACT} | json.loads(content.text), ensure_ascii=False)
