"""The best of several answers to each prompt, by the mean log-probability of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from liuyi.infer.server.backend import Delta, Deltas


class BestOf:
    """Waits for all answers, and gives the `n` best of each `count` whole, the best first."""

    def __init__(self, deltas: Deltas, *, count: int, n: int, show_tokens: bool) -> None:
        """The deltas hold tokens with log-probabilities, which are passed on if `show_tokens`."""
        self._deltas = deltas
        self._count = count
        self._n = n
        self._show_tokens = show_tokens

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each of the best. Raises as the deltas."""
        answers: dict[int, list[Delta]] = {}
        await self._deltas.tell(lambda delta: answers.setdefault(delta.index, []).append(delta))
        for answer in self._best(answers):
            take(answer)

    async def aclose(self) -> None:
        """Cancel what is left."""
        await self._deltas.aclose()

    def _best(self, answers: Mapping[int, list[Delta]]) -> list[Delta]:
        best = []
        for prompt in range(len(answers) // self._count):
            candidates = [joined(answers[prompt * self._count + at]) for at in range(self._count)]
            ranked = sorted(candidates, key=mean_logprob, reverse=True)
            for rank, answer in enumerate(ranked[: self._n]):
                # All that was generated counts as used, as it does with OpenAI.
                used = answer.completion_tokens
                if rank == 0:
                    used += sum(other.completion_tokens for other in ranked[self._n :])
                best.append(
                    msgspec.structs.replace(
                        answer,
                        index=prompt * self._n + rank,
                        tokens=answer.tokens if self._show_tokens else (),
                        completion_tokens=used,
                    )
                )
        return best


def joined(deltas: list[Delta]) -> Delta:
    """All deltas of one answer as one."""
    return msgspec.structs.replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        calls=tuple(call for delta in deltas for call in delta.calls),
    )


def mean_logprob(answer: Delta) -> float:
    """Of the generated tokens; those of an echoed prompt do not count."""
    generated = answer.tokens[len(answer.tokens) - answer.completion_tokens :]
    values = [token.logprob for token in generated if token.logprob is not None]
    return sum(values) / len(values) if values else 0.0
