"""What the bodies of OpenAI's API hold: messages, tools and formats of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import ANY_JSON_OBJECT, schema_grammar
from liuyi.infer.request import Grammar
from liuyi.infer.tools.calls import Function

MAX_DEPTH = 100
NO_EFFECT = "accepted for clients that send it; changes nothing"
_SURROGATE = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A JSON object of the API. A field that is not known is refused by name rather than ignored, so that no client
    believes in an effect that is not there; unless it is null, which asks for nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_asks_for_nothing(cls, value: Any) -> Any:
        """Many clients write null for all that they leave open, whether we know of it or not."""
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value

    @field_validator("*")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        """JSON can write half of a surrogate pair, which no text holds, and can be nested without end."""
        if isinstance(value, str | dict | list):
            if _depth(value) > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
            if not _encodes(value):
                raise ValueError("the text is not valid Unicode")
        return value


class Part(Body):
    """A part of a message: text, or what the assistant said when it refused."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=NO_EFFECT)

    @field_validator("type", mode="before")
    @classmethod
    def _can_be_read(cls, value: Any) -> Any:
        if value in ("image_url", "input_audio", "file"):
            raise ValueError("only parts of the type 'text' can be read here")
        return value

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Part:
        if (self.text is None) != (self.type == "refusal") or (self.refusal is None) != (self.type == "text"):
            raise ValueError(f"a part of the type '{self.type}' has '{self.type}' and nothing else")
        return self

    @property
    def said(self) -> str:
        """Its words."""
        return self.text or self.refusal or ""


FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    arguments: str
    parsed_arguments: Any = Field(None, description="what OpenAI's client makes of the arguments, and sends back")

    def parsed(self) -> Any:
        """The arguments as an object, as chat templates want them; as they are if they are none."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        sound = isinstance(arguments, dict) and _depth(arguments) <= MAX_DEPTH and _encodes(arguments)
        return arguments if sound else self.arguments


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="what the assistant called")
    tool_call_id: str | None = Field(None, description="which call this is the result of")
    refusal: str | None = None
    reasoning_content: str | None = Field(None, description="what the assistant thought; told to the chat template")
    reasoning: str | None = Field(None, description="what others call reasoning_content")
    annotations: list[Any] | None = Field(None, description="accepted, as answers of OpenAI's API hold it")
    parsed: Any = Field(None, description="what OpenAI's client makes of the content, and sends back")
    audio: None = None
    function_call: None = None

    def check(self, place: str) -> None:
        """Raises RequestError if the parts do not go together."""
        if self.role != "assistant" and self.tool_calls:
            raise RequestError("only the assistant calls tools", param=f"{place}.tool_calls")
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise RequestError(f"a message of role '{self.role}' needs content", param=f"{place}.content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            should = "needs tool_call_id" if self.role == "tool" else "has no tool_call_id"
            raise RequestError(f"a message of role '{self.role}' {should}", param=f"{place}.tool_call_id")
        if self.role != "assistant" and any(part.refusal is not None for part in self._parts()):
            raise RequestError("only the assistant refuses", param=f"{place}.content")

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        content = self.content or self.refusal or ""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content if isinstance(content, str) else "".join(part.said for part in content),
        }
        if self.name:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if thoughts := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = thoughts
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.parsed()},
                }
                for call in self.tool_calls
            ]
        return message

    def _parts(self) -> list[Part]:
        return self.content if isinstance(self.content, list) else []


class FunctionDefinition(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition

    def as_function(self) -> Function:
        """The function as the engine's side knows it."""
        given = {} if self.function.parameters is None else {"parameters": self.function.parameters}
        return Function(self.function.name, self.function.description or "", strict=bool(self.function.strict), **given)


class FunctionReference(Body):
    name: FunctionName


class AllowedTool(Body):
    type: Literal["function"]
    function: FunctionReference


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[AllowedTool] = Field(min_length=1)


class ToolChoice(Body):
    """One function that has to be called, or some of those on offer, which the model may or must choose from."""

    type: Literal["function", "allowed_tools"]
    function: FunctionReference | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _says_what_it_is(self) -> ToolChoice:
        named, some = self.function is not None, self.allowed_tools is not None
        if (named, some) != (self.type == "function", self.type == "allowed_tools"):
            raise ValueError(f"a choice of the type '{self.type}' has '{self.type}' and nothing else")
        return self

    @property
    def only(self) -> str | None:
        """The function that has to be called."""
        return self.function.name if self.function is not None else None

    @property
    def names(self) -> list[str]:
        """The functions that may be called."""
        some = [tool.function.name for tool in self.allowed_tools.tools] if self.allowed_tools is not None else []
        return some if self.only is None else [self.only]

    @property
    def required(self) -> bool:
        """One of them has to be."""
        return self.only is not None or (self.allowed_tools is not None and self.allowed_tools.mode == "required")


class JsonSchema(Body):
    name: Annotated[str, StringConstraints(max_length=64)] = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="schemas are enforced whether it is set or not")


class TextAnswer(Body):
    type: Literal["text"]


class JsonObjectAnswer(Body):
    type: Literal["json_object"]


class JsonSchemaAnswer(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexAnswer(Body):
    type: Literal["regex"]
    regex: str


class LarkAnswer(Body):
    type: Literal["lark"]
    lark: str


Choices = Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1, max_length=1024)]

ResponseFormat = Annotated[
    TextAnswer | JsonObjectAnswer | JsonSchemaAnswer | RegexAnswer | LarkAnswer, Field(discriminator="type")
]


class StructuredOutputs(Body):
    """vLLM's way to say what an answer must match."""

    json_: dict[str, Any] | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = Field(None, description="in llguidance's Lark dialect")

    @model_validator(mode="after")
    def _one_is_asked(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("name one of json, json_object, regex, choice and grammar")
        return self

    def as_grammar(self, param: str = "structured_outputs") -> Grammar:
        """The grammar that is asked for. Raises RequestError, naming `param`, if its schema cannot be read."""
        if self.json_ is not None:
            return json_grammar(self.json_, param)
        if self.regex is not None:
            return Grammar("regex", self.regex, param)
        if self.choice is not None:
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in self.choice)
            return Grammar("lark", f"start: {choices}", param)
        return replace(ANY_JSON_OBJECT, param=param) if self.grammar is None else Grammar("lark", self.grammar, param)


def answer_grammar(form: ResponseFormat | None) -> Grammar | None:
    """The grammar of a `response_format`. Raises RequestError if its schema cannot be read."""
    if isinstance(form, JsonObjectAnswer):
        return ANY_JSON_OBJECT
    if isinstance(form, JsonSchemaAnswer):
        return json_grammar(form.json_schema.schema_, "response_format")
    if isinstance(form, RegexAnswer):
        return Grammar("regex", form.regex)
    if isinstance(form, LarkAnswer):
        return Grammar("lark", form.lark)
    return None


def json_grammar(schema: dict[str, Any], param: str) -> Grammar:
    """The grammar of a JSON Schema. Raises RequestError if it cannot be read."""
    try:
        return schema_grammar(schema, param)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema cannot be read: {error}", param=param, code="invalid_json_schema") from error


def _depth(value: Any) -> int:
    """How many levels of objects and lists there are in it, counted no further than is allowed."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [item for part in level if isinstance(part, dict | list) for item in _items(part)]
        depth += 1
    return depth


def _items(part: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part


def _encodes(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_encodes(key) and _encodes(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_encodes, value))
    return not isinstance(value, str) or value.isascii() or not _SURROGATE.search(value)
