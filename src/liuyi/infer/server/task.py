"""From what a backend is asked to what an engine is asked: prompts as tokens, options as requests or searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from liuyi.infer.beam import BeamSearch
from liuyi.infer.request import Request
from liuyi.infer.server.backend import Options
from liuyi.infer.server.model_answers import Prompt

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""What a client may leave to the model."""


@dataclass(frozen=True)
class Task:
    """Prompts and how to continue them."""

    prompts: list[list[int]]
    options: Options
    echo: Sequence[Prompt] = ()
    """The prompts, if they are to be shown."""
    visible_ids: Sequence[int] = ()

    @property
    def count(self) -> int:
        """Answers to make to each prompt."""
        return max(self.options.n, self.options.best_of)

    def requests(self, defaults: Mapping[str, Any], context: int) -> list[Request]:
        """A request for each answer. `defaults` are sampling parameters for what the client left open.

        Raises RequestError if a value is out of range.
        """
        requests = []
        for ids in self.prompts:
            request = self._request(ids, defaults, context)
            for choice in range(self.count):
                seed = None if self.options.seed is None else self.options.seed + choice
                requests.append(dataclasses.replace(request, seed=seed))
        return requests

    def searches(self, stop_ids: Collection[int], context: int) -> list[BeamSearch]:
        """A beam search for each prompt. Raises RequestError if the client asked for what only drawing has."""
        return [
            BeamSearch(
                self._request(ids, {}, context),
                width=self.count,
                stop_ids=stop_ids,
                context=context,
                options=self.options.beam,
            )
            for ids in self.prompts
        ]

    def _request(self, ids: list[int], defaults: Mapping[str, Any], context: int) -> Request:
        options = self.options
        chosen = {name: getattr(options, name) for name in SAMPLING_DEFAULTS}
        sampling = {**defaults, **{name: value for name, value in chosen.items() if value is not None}}
        return Request(
            prompt_ids=ids,
            max_tokens=context if options.max_tokens is None else options.max_tokens,
            min_tokens=options.min_tokens,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=options.logit_bias,
            stop=options.stop,
            stop_token_ids=options.stop_token_ids,
            visible_ids=self.visible_ids,
            ignore_eos=options.ignore_eos,
            priority=options.priority,
            adapter=options.adapter,
            grammar=options.grammar,
            logprobs=options.logprobs or (self.count > options.n and options.beam is None),
            top_logprobs=options.top_logprobs,
            prompt_logprobs=bool(self.echo) and (options.logprobs or options.max_tokens == 0),
            **sampling,
        )
