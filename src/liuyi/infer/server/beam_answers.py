"""The answers that beam searches find, over an engine in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from liuyi.infer.beam import BeamSearch, Hypothesis
from liuyi.infer.process.client import EngineClient
from liuyi.infer.server.admission import Place
from liuyi.infer.server.backend import Delta
from liuyi.model.tokenizer import Tokenizer


class BeamAnswers:
    """Runs a search for each prompt, all at the same time, and gives the `n` best answers to each, whole."""

    def __init__(
        self, engine: EngineClient, searches: Sequence[BeamSearch], n: int, tokenizer: Tokenizer, place: Place
    ) -> None:
        self._engine = engine
        self._searches = searches
        self._n = n
        self._tokenizer = tokenizer
        self._place = place

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each answer once all are found. Raises EngineError."""
        try:
            async with asyncio.TaskGroup() as group:
                for search in self._searches:
                    group.create_task(self._run(search))
            for answer in self._found():
                take(answer)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._place.leave()

    async def aclose(self) -> None:
        """Leave the place; a search ends with the task that asked for it."""
        self._place.leave()

    async def _run(self, search: BeamSearch) -> None:
        while not search.done:
            search.take(await self._engine.generate(search.requests()))

    def _found(self) -> list[Delta]:
        return [
            Delta(
                index=prompt * self._n + rank,
                text=self._text(hypothesis),
                finish_reason=hypothesis.finish_reason,
                prompt_tokens=search.prompt_tokens,
                completion_tokens=len(hypothesis.token_ids),
            )
            for prompt, search in enumerate(self._searches)
            for rank, hypothesis in enumerate(search.best(self._n))
        ]

    def _text(self, hypothesis: Hypothesis) -> str:
        ended = hypothesis.finish_reason == "stop"
        return self._tokenizer.decode(hypothesis.token_ids[: -1 if ended else None], skip_special_tokens=True)
