"""The bodies of `POST /v1/chat/completions` and `POST /v1/completions`, OpenAI's and some fields beyond.

Beyond OpenAI's API, by the names that vLLM gives them: `top_k`, `min_p`, `typical_p`, `repetition_penalty`,
`min_tokens`, `stop_token_ids`, `ignore_eos`, `use_beam_search`, `length_penalty`, `early_stopping`, `priority`,
`chat_template_kwargs` and `structured_outputs`, whose parts older clients send as `guided_json`, `guided_regex`,
`guided_choice` and `guided_grammar`. `response_format` takes `regex` and `lark` too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from liuyi.infer.beam import BeamOptions
from liuyi.infer.errors import RequestError
from liuyi.infer.request import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, Grammar
from liuyi.infer.server.backend import ChatRequest, Options, TextRequest, ToolUse
from liuyi.infer.server.messages import (
    NO_EFFECT,
    Body,
    Choices,
    Message,
    ResponseFormat,
    StructuredOutputs,
    Tool,
    ToolChoice,
    answer_grammar,
)

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_TOOLS = 128
MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
_GUIDED = ("json", "regex", "choice", "grammar")
_GRAMMARS = ("response_format", "structured_outputs", *(f"guided_{kind}" for kind in _GUIDED))

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]


Texts = str | list[str] | list[TokenId] | list[list[TokenId]]
"""A text or several, as such or as token ids."""


def not_empty(texts: Texts, most: int = MAX_PROMPTS) -> Texts:
    """The texts as they are. Raises ValueError if one is empty, or there are more than `most`."""
    if not texts or (isinstance(texts, list) and any(part in ("", []) for part in texts)):
        raise ValueError("the text is empty")
    if isinstance(texts, list) and not isinstance(texts[0], int) and len(texts) > most:
        raise ValueError(f"at most {most} texts in one request")
    return texts


def one_by_one(texts: Texts) -> list[str | list[int]]:
    """The texts as a list of them."""
    if isinstance(texts, str):
        return [texts]
    ids = [part for part in texts if isinstance(part, int)]
    return [ids] if ids else [part for part in texts if not isinstance(part, int)]


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class _Generation(Body):
    """What chat and plain completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT)
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_INT, description="no end of text, stop token or stop string ends the answer before so many"
    )
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1 keeps all tokens")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    typical_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, max_length=1024
    )
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    use_beam_search: bool | None = Field(None, description="search with n beams, or best_of, rather than draw")
    length_penalty: float | None = Field(None, ge=-10, le=10, allow_inf_nan=False)
    early_stopping: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    # Not below what others have unless they ask: anybody could pass all of them, and take their places.
    priority: int | None = Field(
        None, ge=0, le=MAX_INT, description="the greater waits for the lower and gives way to it; 0 when left out"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(None, description="a grammar in llguidance's Lark dialect")
    timeout: float | None = Field(
        None, gt=0, le=MAX_INT, allow_inf_nan=False, description="seconds after which the work is stopped"
    )
    user: str | None = Field(None, description=NO_EFFECT)
    # What clients of vLLM send with the value that it has anyway.
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    return_token_ids: Literal[False] | None = None
    bad_words: list[str] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _fields_go_together(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
        for name in ("length_penalty", "early_stopping"):
            if getattr(self, name) is not None and not self.use_beam_search:
                raise RequestError(f"{name} needs use_beam_search", param=name)
        if self.use_beam_search:
            for name in ("echo", "logprobs", "tools", "stop", *_GRAMMARS):
                if getattr(self, name, None) not in (None, False, []):
                    raise RequestError(f"{name} and use_beam_search do not go together", param=name)
        given = [name for name in _GRAMMARS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{given[0]} and {given[1]} do not go together", param=given[1])
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _options(self, *, max_tokens: int | None, top_logprobs: int | None, best_of: int = 1) -> Options:
        """The backend's options; `top_logprobs` is None where no log-probabilities were asked for."""
        return Options(
            n=self.n or 1,
            best_of=best_of,
            beam=self._beam(),
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            priority=self.priority or 0,
            grammar=self._grammar(),
            logprobs=top_logprobs is not None,
            top_logprobs=top_logprobs or 0,
        )

    def _beam(self) -> BeamOptions | None:
        if not self.use_beam_search:
            return None
        penalty = 1.0 if self.length_penalty is None else self.length_penalty
        return BeamOptions(length_penalty=penalty, early_stopping=bool(self.early_stopping))

    def _grammar(self) -> Grammar | None:
        if self.structured_outputs is not None:
            return self.structured_outputs.as_grammar()
        for kind in _GUIDED:
            if (value := getattr(self, f"guided_{kind}")) is not None:
                return StructuredOutputs.model_validate({kind: value}).as_grammar(f"guided_{kind}")
        return answer_grammar(self.response_format)


class ChatCompletionBody(_Generation):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables of the chat template")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="told to the chat template; none turns off thinking where the template can"
    )
    verbosity: Literal["medium"] | None = Field(None, description="answers are as long as the model makes them")
    modalities: list[Literal["text"]] | None = None
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    echo: Literal[False] | None = None
    metadata: dict[str, str] | None = Field(None, description=NO_EFFECT)
    store: bool | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    # What at OpenAI changes the price and the speed of an answer, but not the answer.
    prompt_cache_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    prediction: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = Field(
        None, description=NO_EFFECT
    )

    @model_validator(mode="after")
    def _chat_fields_go_together(self) -> ChatCompletionBody:
        if self.max_tokens == 0:
            raise RequestError("max_tokens must be at least 1", param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        for at, message in enumerate(self.messages):
            message.check(f"messages.{at}")
        names = [tool.function.name for tool in self.tools or ()]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise RequestError(f"two functions are named '{name}'", param=f"tools.{at}.function.name")
        if not names:
            for param in ("tool_choice", "parallel_tool_calls"):
                if getattr(self, param) not in (None, "none", "auto"):
                    raise RequestError(f"{param} needs tools", param=param)
        if isinstance(self.tool_choice, ToolChoice) and not set(self.tool_choice.names) <= set(names):
            raise RequestError("tool_choice names a function that is not in tools", param="tool_choice")
        return self

    def request(self) -> ChatRequest:
        """What the backend is asked. Raises RequestError if a schema cannot be read."""
        tools = None
        if self.tools and self.tool_choice != "none":
            choice = self.tool_choice if isinstance(self.tool_choice, ToolChoice) else None
            tools = ToolUse(
                functions=[tool.as_function() for tool in self.tools],
                required=self.tool_choice == "required" or (choice is not None and choice.required),
                only=choice.only if choice is not None else None,
                allowed=frozenset(choice.names) if choice is not None else None,
                parallel=self.parallel_tool_calls is not False,
            )
        return ChatRequest(
            messages=[message.as_dict() for message in self.messages],
            tools=tools,
            template_variables=self._effort() | (self.chat_template_kwargs or {}),
            options=self.options(),
        )

    def _effort(self) -> dict[str, Any]:
        """Variables of the chat template that say how much to think: OpenAI's name, and that of Qwen3."""
        if self.reasoning_effort is None:
            return {}
        return {"reasoning_effort": self.reasoning_effort, "enable_thinking": self.reasoning_effort != "none"}

    def options(self) -> Options:
        """How the backend shall continue."""
        return self._options(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionBody(_Generation):
    """The body of `POST /v1/completions`."""

    prompt: Texts
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    suffix: Literal[""] | None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Texts) -> Texts:
        return not_empty(prompt)

    @model_validator(mode="after")
    def _text_fields_go_together(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens must be at least 1, or 0 together with echo", param="max_tokens")
        if self.best_of is not None:
            if self.best_of < (self.n or 1):
                raise RequestError("best_of must be at least n", param="best_of")
            if self.stream and self.best_of > (self.n or 1):
                raise RequestError("best_of cannot be streamed: the best is known at the end", param="best_of")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        return one_by_one(self.prompt)

    def request(self) -> TextRequest:
        """What the backend is asked. Raises RequestError if a schema cannot be read."""
        return TextRequest(prompts=self.prompts, echo=bool(self.echo), options=self.options())

    def options(self) -> Options:
        """How the backend shall continue; OpenAI's default of 16 tokens holds."""
        return self._options(
            max_tokens=16 if self.max_tokens is None else self.max_tokens,
            top_logprobs=self.logprobs,
            best_of=self.best_of or 1,
        )
