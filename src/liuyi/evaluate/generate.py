"""Let a model answer an eval set, and score the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import DataError
from liuyi.evaluate.evaluation import ITEMS, Evaluation, Metric
from liuyi.evaluate.scorers import Scorer, get_scorer, item_score

if TYPE_CHECKING:
    from liuyi.infer.engine import Engine
    from liuyi.infer.request import Completion


@dataclass(frozen=True)
class Evalset:
    """Items to answer: prompts as chat messages, references, clusters, and how to score."""

    name: str
    scorer: Scorer
    schema: dict[str, Any] | None
    items: list[dict[str, Any]]
    digest: str = ""

    @classmethod
    def load(cls, folder: Path, digest: str = "") -> Evalset:
        """Read an eval set's folder. Raises DataError naming the item that is not what it should be."""
        import pyarrow.parquet as pq

        said = json.loads((folder / "evalset.json").read_text(encoding="utf-8"))
        path = folder / "schema.json"
        schema = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        items = pq.read_table(folder / ITEMS).to_pylist()
        for item in items:
            try:
                item["messages"] = json.loads(item["messages"])
            except ValueError as error:
                raise DataError(f"messages are not JSON: {error}", where=f"item {item['id']}") from error
        if not items:
            raise DataError("the eval set has no items", where=str(folder))
        return cls(said.get("name", ""), get_scorer(said["scorer"]), schema, items, digest)

    def first(self, count: int) -> Evalset:
        """The first `count` items; all of them for 0."""
        return self if count == 0 else Evalset(self.name, self.scorer, self.schema, self.items[:count], self.digest)


def generate(
    engine: Engine,
    evalset: Evalset,
    *,
    max_tokens: int,
    constrained: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Greedy answers to all items, in their order, with log-probabilities; `constrained` by the eval set's schema.

    Where an item leaves the model's context no room the answer is empty, without tokens, and as probable as one of
    all tokens by chance. Raises DataError if that is so of all, or if there is no schema to constrain by.
    """
    from liuyi.infer.request import Completion, Request
    from liuyi.model.chat import encode_chat

    if constrained and evalset.schema is None:
        raise DataError(f"'{evalset.name}' has no schema to constrain by", hint="leave out 'constrained'")
    prompts = [encode_chat(engine.tokenizer, item["messages"], add_generation_prompt=True)[0] for item in evalset.items]
    requests = [
        Request(prompt_ids=ids, max_tokens=max_tokens, schema=evalset.schema if constrained else None, logprobs=True)
        for ids in prompts
        if len(ids) < engine.max_tokens
    ]
    if not requests:
        raise DataError(f"no item of '{evalset.name}' fits the model's context of {engine.max_tokens} tokens")
    answers = iter(engine.generate(requests, on_progress))
    by_chance = -math.log(engine.tokenizer.vocab_size)
    return [
        next(answers) if len(ids) < engine.max_tokens else Completion("", (), (by_chance,), (), "length", len(ids))
        for ids in prompts
    ]


def score(
    evalset: Evalset, outputs: Sequence[str], *, subject: str = "", label: str = "", **further: Sequence[Any]
) -> Evaluation:
    """Score one output per item; `further` columns stand beside the scores."""
    items = evalset.items
    scores = [
        item_score(evalset.scorer, output, item["reference"], {**item, "schema": evalset.schema})
        for item, output in zip(items, outputs, strict=True)
    ]
    columns: dict[str, Sequence[Any]] = {
        "item": [item["id"] for item in items],
        "cluster": [item["cluster"] for item in items],
        "lang": [item.get("lang") or "" for item in items],
        "kind": [item.get("kind") or "" for item in items],
        "prompt": [prompt_text(item["messages"]) for item in items],
        "reference": [item["reference"] for item in items],
        "output": list(outputs),
        **further,
    }
    columns |= {name: [values[name] for values in scores] for name in evalset.scorer.metrics}
    metrics = dict(evalset.scorer.metrics)
    if evalset.schema is None:
        metrics.pop("valid_schema", None)
        columns.pop("valid_schema", None)
    return Evaluation(metrics, columns, name=evalset.name, label=label, subject=subject, evalset=evalset.digest)


def score_completions(
    evalset: Evalset, completions: Sequence[Completion], *, subject: str, label: str, runner: str
) -> Evaluation:
    """Score completions; the log-probabilities of each answer (natural logarithm) stand beside, and its tokens.

    `runner` says how they were computed.
    """
    scored = score(
        evalset,
        [completion.text for completion in completions],
        subject=subject,
        label=label,
        finish=[completion.finish_reason for completion in completions],
        tokens=[float(len(completion.token_ids)) for completion in completions],
        logprob_sum=[float(sum(completion.logprobs)) for completion in completions],
        logprob_mean=[float(sum(c.logprobs)) / max(1, len(c.logprobs)) for c in completions],
        logprob_min=[float(min(completion.logprobs, default=0.0)) for completion in completions],
    )
    further = {"logprob_mean": Metric("log-probability per token", kind="real", unit="nats")}
    return Evaluation(
        {**scored.metrics, **further},
        scored.columns,
        name=scored.name,
        label=scored.label,
        subject=scored.subject,
        evalset=scored.evalset,
        runner=runner,
    )


def prompt_text(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt for people: what the one message says, or each message after its role."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)
