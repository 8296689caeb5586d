"""What is asked of an engine, and what it answers.

    Request(prompt_ids=[1, 2, 3], max_tokens=64)                           # greedy
    Request(prompt_ids=ids, temperature=0.8, top_p=0.95, seed=7)           # sampled, reproducible
    Request(prompt_ids=ids, schema={"type": "object", ...}, logprobs=True) # JSON that follows a schema

The same request gives the same tokens whether it runs alone or among others: sampling draws its noise from
(seed, position, token), never from a shared stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from liuyi.core.errors import LiuyiError
from liuyi.infer.errors import RequestError

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token, a stop string, or a complete grammar. `length`: `max_tokens` or the end of the context."""

COLDEST = 1e-4
"""Below this temperature logits would leave float32's range, and a draw is the most probable token anyway."""
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16


@dataclass(frozen=True)
class Grammar:
    """What the output must match.

    `json_schema`: `text` is a JSON Schema; the JSON is compact unless the schema says
    `"x-guidance": {"whitespace_flexible": true}`. `regex`: a regular expression of the whole output.
    `lark`: a grammar in llguidance's Lark dialect.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    param: str = field(default="response_format", compare=False)
    """The field of the request that asked for it, which an error names."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to continue it.

    Raises RequestError, naming the field, when a value is out of range.
    """

    prompt_ids: Sequence[int]
    max_tokens: int = 256
    """At most this many tokens are generated; the end of the context may come sooner. 0 only reads the prompt, for
    `prompt_logprobs`."""
    min_tokens: int = 0
    """None of the first so many tokens ends the output or completes a stop string (as vLLM defines it). Where a grammar
    lets nothing follow but the end, it ends all the same."""
    temperature: float = 0.0
    """0, or anything below `COLDEST`, takes the most probable token; from there on, logits are divided by it."""
    top_k: int = 0
    """Only the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """The smallest set of most probable tokens whose mass reaches p (Holtzman et al., 2020)."""
    min_p: float = 0.0
    """Only tokens at least this fraction as probable as the most probable one (Nguyen et al., 2024)."""
    typical_p: float = 1.0
    """The smallest set of the most typical tokens, those whose surprise is closest to the distribution's entropy, whose
    mass reaches p (Meister et al., 2023; arXiv 2202.00666)."""
    repetition_penalty: float = 1.0
    """Logits of tokens seen in prompt or output are divided (positive) or multiplied by it (Keskar et al., 2019)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token already in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it is in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to what is added to its logit."""
    seed: int | None = None
    """Fixes sampled output; without it the engine draws one from its own seed."""
    stop: Sequence[str] = ()
    """The text ends before the first of these strings."""
    stop_token_ids: Sequence[int] = ()
    """Further tokens that end the output, beside the model's end-of-sequence tokens."""
    visible_ids: Sequence[int] = ()
    """Special tokens whose names are part of the text, which shows none otherwise; such as those around tool calls."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever the model says; for measurements."""
    schema: Mapping[str, Any] | None = None
    """A JSON Schema that the output must satisfy; short for `grammar` of kind `json_schema`."""
    grammar: Grammar | None = None
    logprobs: bool = False
    """Report the log-probability of each generated token."""
    top_logprobs: int = 0
    """Report also the most probable tokens at each position; needs `logprobs` or `prompt_logprobs`."""
    prompt_logprobs: bool = False
    """Report the log-probability of each token of the prompt after the first."""
    adapter: str | None = None
    """The LoRA adapter that answers, by the name it was loaded under; None for the model alone."""
    priority: int = 0
    """Among requests that wait, the lower goes first; of equals, the one that came first."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("the prompt is empty", param="prompt")
        checks = (
            ("max_tokens", self.max_tokens >= (0 if self.prompt_logprobs else 1), "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens"),
            ("temperature", 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100"),
            ("presence_penalty", -100 <= self.presence_penalty <= 100, "between -100 and 100"),
            ("frequency_penalty", -100 <= self.frequency_penalty <= 100, "between -100 and 100"),
            ("logit_bias", all(math.isfinite(bias) for bias in self.logit_bias.values()), "finite"),
            ("stop", len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings"),
            ("stop", all(self.stop), "strings that are not empty"),
            ("top_logprobs", 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, f"between 0 and {MAX_TOP_LOGPROBS}"),
            (
                "top_logprobs",
                self.logprobs or self.prompt_logprobs or not self.top_logprobs,
                "asked together with logprobs",
            ),
            ("grammar", self.schema is None or self.grammar is None, "left out when there is a schema"),
        )
        for name, holds, should in checks:
            if not holds:
                raise RequestError(f"{name} must be {should}", param=name)


TopLogprobs = tuple[tuple[int, float], ...]
"""The most probable tokens at one position: (token id, log-probability), best first."""


@dataclass(frozen=True)
class Completion:
    """The whole answer to a request."""

    text: str
    token_ids: tuple[int, ...]
    """Generated tokens, the stop token included when there was one."""
    logprobs: tuple[float, ...]
    """Natural log-probability of each token under the model's own distribution: temperature 1, before penalties,
    filters and grammar. A token that a grammar forced keeps the probability that the model gave it. Empty unless
    the request asked."""
    top_logprobs: tuple[TopLogprobs, ...]
    """For each position the most probable tokens of the same distribution. Empty unless the request asked."""
    finish_reason: FinishReason
    prompt_tokens: int
    prompt_logprobs: tuple[float, ...] = ()
    """Log-probability of each token of the prompt after the first, given those before it: `prompt_tokens` - 1 of them.
    Empty unless the request asked."""
    prompt_top_logprobs: tuple[TopLogprobs, ...] = ()
    """The most probable tokens at the same places. Empty unless the request asked for both."""
    cached_tokens: int = field(default=0, compare=False)
    """Tokens of the prompt that were in the prefix cache: how the answer was made, not what it is."""


class Update(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one engine step added to one request."""

    id: int
    text: str = ""
    """New text, always whole characters; text that may yet become a stop string is held back."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    """As in `Completion`; in the first update of a request that asked."""
    prompt_top_logprobs: tuple[TopLogprobs, ...] = ()
    completion: Completion | None = None
    """The whole answer, in the last update of a request."""
    error: LiuyiError | None = None
    """Why the request ends without an answer, in its last update."""
