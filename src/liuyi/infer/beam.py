"""Beam search, above the engine: the most probable continuations of a prompt rather than drawn ones.

    for hypothesis in beam_search(engine, Request(prompt_ids=ids, max_tokens=64), width=4): ...

Every step asks the engine for the next token of each beam as a request of its own. Their beginnings are in the prefix
cache, so a step costs a beam no more than what its last block of keys and values holds. The search is that of
`transformers` with `num_beams`, `length_penalty` and `early_stopping` (https://huggingface.co/docs/transformers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from liuyi.infer.errors import RequestError
from liuyi.infer.request import MAX_TOP_LOGPROBS, Completion, FinishReason, Request

if TYPE_CHECKING:
    from liuyi.infer.engine import Engine

_TAKEN = ("prompt_ids", "max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "seed", "adapter", "priority")
"""Fields of a request that a search heeds; the others say how to draw, and nothing is drawn."""


@dataclass(frozen=True)
class BeamOptions:
    """How continuations are compared, and when the search ends."""

    length_penalty: float = 1.0
    """Above 0 it favours long continuations, below 0 short ones."""
    early_stopping: bool = False
    """End with as many finished beams as the search is wide, even if others could still become better."""


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens, the one that ended it included, and how probable it is."""

    token_ids: tuple[int, ...]
    logprob: float
    """Sum of the natural log-probabilities of its tokens."""
    score: float
    """`logprob` / length ** length_penalty, by which continuations are ranked."""
    finish_reason: FinishReason


class BeamSearch:
    """One search, whoever runs its requests: until `done`, run `requests()` and give `take` their completions."""

    def __init__(
        self,
        request: Request,
        *,
        width: int,
        stop_ids: Collection[int],
        context: int,
        options: BeamOptions | None = None,
    ) -> None:
        """Continue the request's prompt with `width` beams, each finished by one of the model's `stop_ids`, the
        request's own, or the end of its `max_tokens` or of the `context`.

        Raises RequestError if `width` is out of range, or the request asks for what only drawing has.
        """
        ends = frozenset(() if request.ignore_eos else stop_ids) | frozenset(request.stop_token_ids)
        most = MAX_TOP_LOGPROBS - len(ends)
        if not 1 <= width <= most:
            raise RequestError(f"a beam search must be between 1 and {most} wide", param="n")
        for field in dataclasses.fields(request):
            empty = field.default_factory() if callable(field.default_factory) else field.default
            if field.name not in _TAKEN and getattr(request, field.name) != empty:
                raise RequestError(f"a beam search takes no {field.name}", param=field.name)
        self.prompt_tokens = len(request.prompt_ids)
        self._request = dataclasses.replace(
            request, max_tokens=1, min_tokens=0, logprobs=True, top_logprobs=width + len(ends), stop_token_ids=()
        )
        self._min_tokens = request.min_tokens
        self._max_tokens = min(request.max_tokens, context - self.prompt_tokens)
        self._width = width
        self._ends = ends
        self._options = options or BeamOptions()
        self._beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self._finished: list[Hypothesis] = []
        self.done = False

    def requests(self) -> list[Request]:
        """What the next tokens of all beams may be, each with enough alternatives."""
        prompt = self._request.prompt_ids
        return [dataclasses.replace(self._request, prompt_ids=[*prompt, *tokens]) for tokens, _ in self._beams]

    def take(self, completions: Sequence[Completion]) -> None:
        """Go on by one token, given the answers to `requests()` in their order."""
        length = len(self._beams[0][0]) + 1
        candidates = [
            ((*tokens, token), logprob + step)
            for (tokens, logprob), completion in zip(self._beams, completions, strict=True)
            for token, step in completion.top_logprobs[0]
            if token not in self._ends or length > self._min_tokens
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        self._beams = []
        for rank, (tokens, logprob) in enumerate(candidates):
            stopped = tokens[-1] in self._ends
            if not stopped and length < self._max_tokens:
                if len(self._beams) < self._width:
                    self._beams.append((tokens, logprob))
            elif rank < self._width:
                reason: FinishReason = "stop" if stopped else "length"
                self._finished.append(Hypothesis(tokens, logprob, self._score(logprob, length), reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[self._width :]
        self.done = not self._beams or (len(self._finished) == self._width and self._is_settled(length))

    def best(self, count: int) -> list[Hypothesis]:
        """The finished continuations with the highest scores, the best first."""
        return self._finished[:count]

    def _is_settled(self, length: int) -> bool:
        """Whether no beam can become better than the worst of the finished ones, or need not."""
        best = self._score(self._beams[0][1], length)
        return self._options.early_stopping or best <= self._finished[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / length**self._options.length_penalty)


def beam_search(
    engine: Engine, request: Request, *, width: int, options: BeamOptions | None = None
) -> list[Hypothesis]:
    """The `width` best continuations that the search finds, the best first.

    Raises RequestError as `BeamSearch` does, and if the prompt leaves no room in the context.
    """
    search = BeamSearch(request, width=width, stop_ids=engine.stop_ids, context=engine.max_tokens, options=options)
    while not search.done:
        search.take(engine.generate(search.requests()))
    return search.best(width)
