"""The bodies of OpenAI's API, as far as this server understands them.

A field that is not here is refused by name rather than ignored, so that no client believes in an effect that is not
there. `top_k`, `min_p` and `repetition_penalty` go beyond OpenAI's API, as do the formats `regex` and `lark`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import ANY_JSON_OBJECT, schema_grammar
from liuyi.infer.request import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, Grammar
from liuyi.infer.server.backend import Options

_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_CHOICES = 16
MAX_SEED = 2**63 - 1
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        """JSON can write half of a surrogate pair, which no text holds."""
        if isinstance(value, str | dict | list) and not _encodes(value):
            raise ValueError("the text is not valid Unicode")
        return value


class TextPart(_Body):
    type: Literal["text"]
    text: str


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


class JsonSchema(_Body):
    name: Annotated[str, StringConstraints(max_length=64)] = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormat(_Body):
    type: Literal["text"]


class JsonObjectFormat(_Body):
    type: Literal["json_object"]


class JsonSchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(_Body):
    type: Literal["regex"]
    regex: str


class LarkFormat(_Body):
    type: Literal["lark"]
    lark: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | LarkFormat, Field(discriminator="type")
]


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Generation(_Body):
    """What chat and plain completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="0 or -1 keeps all tokens")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, max_length=1024
    )
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, description="accepted for clients that send it; changes nothing")

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _options(self, *, max_tokens: int | None, top_logprobs: int | None) -> Options:
        """The backend's options; `top_logprobs` is None where no log-probabilities were asked for."""
        return Options(
            n=self.n or 1,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            grammar=_grammar(self.response_format),
            logprobs=top_logprobs is not None,
            top_logprobs=top_logprobs or 0,
        )


class ChatCompletionBody(_Generation):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: None = Field(None, description="tool calls are not supported")
    metadata: dict[str, str] | None = Field(None, description="accepted for clients that send it; changes nothing")
    store: bool | None = Field(None, description="accepted for clients that send it; changes nothing")

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatCompletionBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def options(self) -> Options:
        """How the backend shall continue."""
        return self._options(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionBody(_Generation):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: str | list[Any]) -> str | list[Any]:
        if not prompt or (isinstance(prompt, list) and not all(part for part in prompt if not isinstance(part, int))):
            raise ValueError("the prompt is empty")
        if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > 64:
            raise ValueError("at most 64 prompts in one request")
        return prompt

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]

    def options(self) -> Options:
        """How the backend shall continue; OpenAI's default of 16 tokens holds."""
        return self._options(max_tokens=self.max_tokens or 16, top_logprobs=self.logprobs)


def _grammar(format: ResponseFormat | None) -> Grammar | None:
    if isinstance(format, JsonObjectFormat):
        return ANY_JSON_OBJECT
    if isinstance(format, JsonSchemaFormat):
        try:
            return schema_grammar(format.json_schema.schema_)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"the schema cannot be read: {error}", param="response_format", code="invalid_json_schema"
            ) from error
    if isinstance(format, RegexFormat):
        return Grammar("regex", format.regex)
    if isinstance(format, LarkFormat):
        return Grammar("lark", format.lark)
    return None


def _encodes(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_encodes(key) and _encodes(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_encodes, value))
    return not isinstance(value, str) or value.isascii() or not _SURROGATE.search(value)
