"""An engine's stream as a backend's deltas, with the prompt before each answer where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from liuyi.infer.process.stream import Stream
from liuyi.infer.request import TopLogprobs, Update
from liuyi.infer.server.admission import Place
from liuyi.infer.server.backend import Delta, TokenLogprob


@dataclass(frozen=True)
class Prompt:
    """A prompt to be echoed."""

    text: str
    token_ids: Sequence[int]


class Answers:
    """Deltas of requests that came together; their place is left at the end."""

    def __init__(
        self, stream: Stream, place: Place, pieces: Sequence[bytes], echo: Sequence[Prompt] = (), count: int = 1
    ) -> None:
        """`pieces` are the bytes of each token. `echo` are the prompts to show before each of `count` answers."""
        self._stream = stream
        self._place = place
        self._pieces = pieces
        self._echo = echo
        self._count = count
        self._begun: set[int] = set()
        self._done_tokens = 0

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each delta. Raises EngineError."""

        def say(index: int, update: Update) -> None:
            # Most updates are a piece of text and nothing else.
            if not (update.completion or update.logprobs or self._echo):
                take(Delta(index=index, text=update.text))
            else:
                take(self._delta(index, update))

        try:
            await self._stream.tell(say)
        except BaseException:
            self._place.leave()
            raise
        self._place.leave(self._done_tokens)

    async def aclose(self) -> None:
        """Cancel what is left."""
        await self._stream.aclose()
        self._place.leave()

    def _delta(self, index: int, update: Update) -> Delta:
        completion = update.completion
        if completion is not None:
            self._done_tokens += completion.prompt_tokens + len(completion.token_ids)
        text, tokens = "", []
        if self._echo and index not in self._begun:
            self._begun.add(index)
            prompt = self._echo[index // self._count]
            text, tokens = prompt.text, self._scored_prompt(prompt, update)
        tokens += self._scored(update.token_ids, update.logprobs, update.top_logprobs)
        return Delta(
            index=index,
            text=text + update.text,
            tokens=tuple(tokens),
            finish_reason=completion.finish_reason if completion else None,
            prompt_tokens=completion.prompt_tokens if completion else 0,
            cached_tokens=completion.cached_tokens if completion else 0,
            completion_tokens=len(completion.token_ids) if completion else 0,
        )

    def _scored_prompt(self, prompt: Prompt, update: Update) -> list[TokenLogprob]:
        if len(update.prompt_logprobs) < len(prompt.token_ids) - 1:
            return []
        first = TokenLogprob(self._bytes(prompt.token_ids[0]), None)
        return [first, *self._scored(prompt.token_ids[1:], update.prompt_logprobs, update.prompt_top_logprobs)]

    def _scored(self, ids: Sequence[int], logprobs: Sequence[float], tops: Sequence[TopLogprobs]) -> list[TokenLogprob]:
        if not logprobs:
            return []
        return [
            TokenLogprob(self._bytes(id), logprob, tuple(TokenLogprob(self._bytes(best), value) for best, value in top))
            for id, logprob, top in zip(ids, logprobs, tops or [()] * len(logprobs), strict=True)
        ]

    def _bytes(self, token: int) -> bytes:
        return self._pieces[token] if token < len(self._pieces) else b""
