"""Beam search, above the engine: the most probable continuations of a prompt rather than drawn ones.

    for hypothesis in beam_search(engine, prompt_ids, width=4, max_tokens=64): ...

Every step asks the engine for the next token of each beam as a request of its own. Their beginnings are in the prefix
cache, so a step costs a beam no more than what its last block of keys and values holds. The search is that of
`transformers` with `num_beams`, `length_penalty` and `early_stopping` (https://huggingface.co/docs/transformers).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.request import MAX_TOP_LOGPROBS, Completion, FinishReason, Request


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
        prompt_ids: Sequence[int],
        *,
        width: int,
        max_tokens: int,
        stop_ids: Collection[int],
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        priority: int = 0,
    ) -> None:
        """`width` beams of at most `max_tokens` tokens; one that says a token of `stop_ids` is finished.

        Above 0, `length_penalty` favours long continuations, below 0 short ones. The search ends when no beam can get
        a better score than the worst of `width` finished ones has or, if `early_stopping`, when there are so many.

        Raises RequestError if `width` is out of range.
        """
        self._most = MAX_TOP_LOGPROBS - len(stop_ids)
        if not 1 <= width <= self._most:
            raise RequestError(f"the width of a beam search must be between 1 and {self._most}", param="best_of")
        self._prompt = list(prompt_ids)
        self._width = width
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._priority = priority
        self._beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self._finished: list[Hypothesis] = []
        self.done = False

    def requests(self) -> list[Request]:
        """What the next tokens of all beams may be, each with enough alternatives."""
        return [
            Request(
                prompt_ids=[*self._prompt, *tokens],
                max_tokens=1,
                logprobs=True,
                top_logprobs=self._width + len(self._stop_ids),
                priority=self._priority,
            )
            for tokens, _ in self._beams
        ]

    def take(self, completions: Sequence[Completion]) -> None:
        """Go on by one token, given the answers to `requests()` in their order."""
        candidates = [
            ((*tokens, token), logprob + step)
            for (tokens, logprob), completion in zip(self._beams, completions, strict=True)
            for token, step in completion.top_logprobs[0]
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        length = len(self._beams[0][0]) + 1
        self._beams = []
        for rank, (tokens, logprob) in enumerate(candidates):
            stopped = tokens[-1] in self._stop_ids
            if not stopped and length < self._max_tokens:
                if len(self._beams) < self._width:
                    self._beams.append((tokens, logprob))
            elif rank < self._width:
                reason: FinishReason = "stop" if stopped else "length"
                self._finished.append(Hypothesis(tokens, logprob, self._score(logprob, length), reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[self._width :]
        self.done = not self._beams or (len(self._finished) == self._width and self._is_settled(length))

    def best(self, count: int = 1) -> list[Hypothesis]:
        """The finished continuations with the highest scores, the best first."""
        return self._finished[:count]

    def _is_settled(self, length: int) -> bool:
        return self._early_stopping or self._score(self._beams[0][1], length) <= self._finished[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / length**self._length_penalty)


def beam_search(
    engine: Engine,
    prompt_ids: Sequence[int],
    *,
    width: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
) -> list[Hypothesis]:
    """The `width` best continuations that the search finds, the best first. Arguments as for `BeamSearch`.

    Raises RequestError if the prompt leaves no room in the context.
    """
    search = BeamSearch(
        prompt_ids,
        width=width,
        max_tokens=min(max_tokens, engine.max_tokens - len(prompt_ids)),
        stop_ids=engine.stop_ids,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    while not search.done:
        search.take(engine.generate(search.requests()))
    return search.best(width)
