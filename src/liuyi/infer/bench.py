"""How fast an engine is here: time to first token, decoding, prefill, and the fraction of this machine's limits.

Decoding one stream is bound by memory, for each token reads every weight once; prefill is bound by arithmetic, two
operations for each weight and token. Several streams share the reading, until arithmetic is the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import numpy as np

from liuyi.core.errors import DataError
from liuyi.core.machine import Machine
from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.infer.runner import Runner


@dataclass(frozen=True)
class Single:
    """One prompt answered alone."""

    prompt_tokens: int
    ttft_s: float
    """From the request to its first token."""
    tokens_per_s: float
    """Of the tokens after the first."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model; rates in tokens per second."""

    weight_bytes: int
    """Bytes of weights that are read from memory for each token."""
    ttft_p50_s: float
    ttft_p95_s: float
    decode_tokens_per_s: float
    """One stream: the median over prompts."""
    batch_tokens_per_s: float
    """All streams together, once each has its first token: the best of the repeats."""
    prefill_tokens_per_s: float
    """One long prompt: the best of the repeats."""


@dataclass(frozen=True)
class Limits:
    """What this machine allows the same model at most, in tokens per second; None where it was not measured."""

    decode_tokens_per_s: float | None
    batch_tokens_per_s: float | None
    prefill_tokens_per_s: float | None


class Bench:
    """Measures one engine, a repeat at a time, so that several engines can take turns."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        *,
        new_tokens: int,
        streams: int,
        prefill_tokens: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Longer prompts are cut at their beginning. Raises DataError where `new_tokens` leave no room for any."""
        self.engine = engine
        self._clock = clock
        self.streams = streams
        room = engine.max_tokens - new_tokens
        if room < 1:
            raise DataError(
                f"a context of {engine.max_tokens} tokens has no room for a prompt and {new_tokens} new ones",
                hint="ask for fewer new_tokens",
            )
        self._prompts = [list(prompt)[-room:] for prompt in prompts]
        self._new_tokens = new_tokens
        self._long = [1 + at % (engine.runner.config.vocab_size - 1) for at in range(prefill_tokens)]
        self._long = self._long[: engine.max_tokens - 1]
        self.singles: list[list[Single]] = []
        self._batches: list[float] = []
        self._prefills: list[float] = []

    def warm_up(self) -> None:
        """Run everything once, without counting it."""
        self.engine.generate([self._request(prompt, 2) for prompt in self._prompts[: self.streams]])

    def repeat(self) -> None:
        """Measure everything once."""
        self.singles.append([self._single(prompt) for prompt in self._prompts])
        self._batches.append(self._batch())
        self._prefills.append(self._prefill())

    def figures(self) -> Figures:
        """What all repeats gave."""
        singles = [single for repeat in self.singles for single in repeat]
        ttft = [single.ttft_s for single in singles]
        return Figures(
            weight_bytes=self.engine.runner.weight_bytes,
            ttft_p50_s=float(np.percentile(ttft, 50)),
            ttft_p95_s=float(np.percentile(ttft, 95)),
            decode_tokens_per_s=median(single.tokens_per_s for single in singles),
            batch_tokens_per_s=max(self._batches),
            prefill_tokens_per_s=max(self._prefills),
        )

    def prompt_medians(self) -> list[Single]:
        """The median over repeats for each prompt."""
        return [
            Single(
                prompt_tokens=runs[0].prompt_tokens,
                ttft_s=median(run.ttft_s for run in runs),
                tokens_per_s=median(run.tokens_per_s for run in runs),
            )
            for runs in zip(*self.singles, strict=True)
        ]

    def _request(self, prompt: Sequence[int], new_tokens: int) -> Request:
        return Request(prompt_ids=prompt, max_tokens=new_tokens, ignore_eos=True)

    def _single(self, prompt: Sequence[int]) -> Single:
        (times,) = self._token_times([self._request(prompt, self._new_tokens)])
        return Single(len(prompt), times[0], (len(times) - 1) / (times[-1] - times[0]))

    def _batch(self) -> float:
        prompts = [self._prompts[at % len(self._prompts)] for at in range(self.streams)]
        streams = self._token_times([self._request(prompt, self._new_tokens) for prompt in prompts])
        # All streams decode between the last of their first tokens and the first of their last ones.
        begin, end = max(times[0] for times in streams), min(times[-1] for times in streams)
        if end <= begin:
            begin, end = 0.0, max(times[-1] for times in streams)
        return sum(begin < time <= end for times in streams for time in times) / (end - begin)

    def _prefill(self) -> float:
        ((first,),) = self._token_times([self._request(self._long, 1)])
        return len(self._long) / first

    def _token_times(self, requests: Sequence[Request]) -> list[list[float]]:
        """Seconds from the submission of all requests to each token, request by request, beginning with no prefix."""
        self.engine.forget()
        began = self._clock()
        times: dict[int, list[float]] = {self.engine.submit(request): [] for request in requests}
        while self.engine.has_work:
            updates = self.engine.step()
            now = self._clock() - began
            for update in updates:
                times[update.id] += [now] * len(update.token_ids)
        return list(times.values())


def limits(runner: Runner, machine: Machine, streams: int) -> Limits:
    """The most that this machine could do with a model as the runner computes it."""
    decode = machine.decode_tokens_per_s(runner.weight_bytes, runner.device)
    flops = machine.flops(runner.format, runner.device)
    prefill = flops / (2 * runner.config.num_parameters_read) if flops else None
    batch = min(decode * streams, prefill) if decode and prefill else None
    return Limits(decode, batch, prefill)


def fractions(figures: Figures, most: Limits) -> dict[str, float]:
    """Measured rates as fractions of the limits, by name."""
    bounds = asdict(most)
    return {name: asdict(figures)[name] / bound for name, bound in bounds.items() if bound}
