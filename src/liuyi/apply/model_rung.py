"""The second rung: the tuned model, many requests at once, with what its tokens say about how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from liuyi.infer.engine import Engine


@dataclass(frozen=True)
class ModelAnswer:
    """One answer and the natural log-probability of each of its tokens, the one that ends it included."""

    text: str
    logprobs: tuple[float, ...]
    prompt_tokens: int
    finished: bool
    """Whether it came to an end by itself."""


class Answerer(Protocol):
    """Whatever answers requests with log-probabilities."""

    def answer(
        self, requests: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ModelAnswer]:
        """One answer for each request, in order."""


class ModelRung:
    """Answers by the engine, greedily, within the JSON Schema if one is given."""

    def __init__(self, engine: Engine, *, schema: Mapping[str, Any] | None, max_tokens: int) -> None:
        self._engine, self._schema, self._max_tokens = engine, schema, max_tokens

    @classmethod
    def load(cls, folder: Path, *, schema: Mapping[str, Any] | None, max_tokens: int, max_slots: int = 64) -> ModelRung:
        """Over the checkpoint in `folder`. Raises ModelError if it cannot be read."""
        from liuyi.infer.engine import Engine
        from liuyi.infer.open import open_evaluated
        from liuyi.model.checkpoint import load_model
        from liuyi.model.tokenizer import Tokenizer

        runner = open_evaluated(load_model(folder), slots=max_slots)
        engine = Engine(runner, Tokenizer.load(folder), max_slots=max_slots)
        return cls(engine, schema=schema, max_tokens=max_tokens)

    def answer(
        self, requests: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ModelAnswer]:
        """One answer for each request, in order; to one that leaves the model's context no room, an empty one that did
        not come to an end."""
        from liuyi.infer.request import Request
        from liuyi.model.chat import encode_chat

        said = [ModelAnswer("", (), 0, finished=False) for _ in requests]
        asked: dict[int, Request] = {}
        for number, text in enumerate(requests):
            ids, _ = encode_chat(
                self._engine.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True
            )
            if len(ids) < self._engine.max_tokens:
                asked[number] = Request(prompt_ids=ids, max_tokens=self._max_tokens, schema=self._schema, logprobs=True)
        for number, done in zip(asked, self._engine.generate(list(asked.values()), on_progress), strict=True):
            said[number] = ModelAnswer(done.text, done.logprobs, done.prompt_tokens, done.finish_reason == "stop")
        return said


class Memory:
    """Asks another answerer about each request once, and remembers what it said."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._said: dict[str, ModelAnswer] = {}

    def answer(
        self, requests: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ModelAnswer]:
        """One answer for each request, in order."""
        new = [text for text in dict.fromkeys(requests) if text not in self._said]
        self._said.update(zip(new, self._answerer.answer(new, on_progress), strict=True))
        return [self._said[text] for text in requests]
