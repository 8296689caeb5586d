"""What is asked of a model, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from liuyi.core.digest import sha256_json

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, and how long they may be."""

    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 1.0


@dataclass(frozen=True)
class Ask:
    """One request: a conversation, or a raw prompt that the model goes on from."""

    prompt: tuple[Message, ...] | str
    sampling: Sampling
    seed: int
    template: str = ""
    """Name and digest of the template that wrote the prompt; empty where the prompt is an instruction as it stands."""
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    """The JSON Schema of the answer, for endpoints that can hold to one."""
    model: str = ""
    """The model to ask, by the endpoint's name for it; empty: the one that the endpoint was opened for."""

    @cached_property
    def key(self) -> str:
        """Equal requests have equal keys, and are asked once."""
        sampling = self.sampling
        drawn = [sampling.max_tokens, sampling.temperature, sampling.top_p, self.seed]
        return sha256_json([self.prompt, drawn, self.stop, self.schema, self.model])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    finish: Literal["stop", "length"]
    model: str
    """The model as the endpoint names it."""
    tokens_in: int | None = None
    """Tokens of the prompt; None where the endpoint does not count."""
    tokens_out: int | None = None


class Failed(Exception):
    """A request was not answered. `reason` is what is counted, `detail` what was seen."""

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retry: bool = True,
        retry_after_s: float = 0.0,
        fatal: bool = False,
    ) -> None:
        """`retry`: another try may do better. `fatal`: no other request will be answered either."""
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.retry = retry
        self.retry_after_s = retry_after_s
        self.fatal = fatal

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def derived_seed(seed: int, *place: str | int) -> int:
    """The seed of one request, in [0, 2³¹): it depends on its place among the rows and on nothing that happens."""
    return int(sha256_json([seed, *place])[:16], 16) % 2**31
