"""Rollouts: the model's own answers to prompts whose right answer is known, and the pairs that can be learnt from them.

A pair needs a wrong answer. Each prompt is answered once greedily, where a mistake is the model's own opinion, and
several times at a temperature, where mistakes are what it nearly said.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.align.reward import Reward, verify
from liuyi.core.errors import DataError

if TYPE_CHECKING:
    from liuyi.infer.engine import Engine


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the answer, and the answer that is right."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    reference: str
    source: str
    license: str
    cluster: str
    tools: tuple[Mapping[str, Any], ...] = ()
    """Those that the answer might call."""


@dataclass(frozen=True)
class Rollout:
    """One answer of the model. `logprob` is the sum over its tokens, in nats, at temperature 1."""

    text: str
    logprob: float
    greedy: bool
    reward: Reward


@dataclass(frozen=True)
class Pair:
    """A preference: `chosen` is right, `rejected` is what the model said instead."""

    prompt: Prompt
    chosen: str
    rejected: str
    on_policy: bool
    """Whether `chosen` too is the model's own; otherwise it is the reference."""


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a `chats.parquet`: everything before each conversation's last answer.

    Raises DataError where a conversation does not end with an answer in words.
    """
    import pyarrow.parquet as pq

    prompts: list[Prompt] = []
    for number, row in enumerate(pq.read_table(path).to_pylist()):
        messages = json.loads(row["messages"])
        if len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise DataError(
                "the conversation does not end with an answer of the assistant",
                where=f"{path.name}, row {number} ({row['id']})",
                hint="rollouts need prompts whose right answer is known",
            )
        if not isinstance(messages[-1].get("content"), str) or messages[-1].get("tool_calls"):
            raise DataError(
                "the last answer is no text",
                where=f"{path.name}, row {number} ({row['id']})",
                hint="answers are compared as text; calls of tools cannot be",
            )
        prompts.append(
            Prompt(
                id=row["id"],
                messages=tuple(messages[:-1]),
                reference=messages[-1]["content"],
                source=row["source"],
                license=row["license"],
                cluster=row["cluster"],
                tools=tuple(json.loads(row.get("tools") or "[]")),
            )
        )
    return prompts


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts drawn by seed, all clusters in turn so that none crowds out the others."""
    rng = random.Random(f"rollouts/{seed}")
    clusters: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        clusters.setdefault(prompt.cluster, []).append(prompt)
    queues = [clusters[name] for name in sorted(clusters)]
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    chosen: list[Prompt] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen


def with_room(engine: Engine, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that leave the model's context room for an answer."""
    from liuyi.model.chat import encode_chat

    return [
        prompt
        for prompt in prompts
        if len(encode_chat(engine.tokenizer, prompt.messages, add_generation_prompt=True, tools=prompt.tools)[0])
        < engine.max_tokens
    ]


def roll_out(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    temperature: float,
    top_p: float = 1.0,
    max_tokens: int = 96,
    schema: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Rollout]]:
    """One greedy answer and `samples` sampled ones for each prompt, judged by the verifier; [prompts][1 + samples].

    Raises RequestError if a prompt does not fit the model's context.
    """
    from liuyi.infer.request import Request
    from liuyi.infer.sampling import derive_seed
    from liuyi.model.chat import encode_chat

    requests = []
    for number, prompt in enumerate(prompts):
        ids, _ = encode_chat(engine.tokenizer, prompt.messages, add_generation_prompt=True, tools=prompt.tools)
        requests.append(Request(prompt_ids=ids, max_tokens=max_tokens, logprobs=True))
        requests += [
            Request(
                prompt_ids=ids,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=derive_seed(seed, number * samples + sample),
                logprobs=True,
            )
            for sample in range(samples)
        ]
    completions = iter(engine.generate(requests, on_progress))
    return [
        [
            Rollout(done.text, sum(done.logprobs), number == 0, verify(done.text, prompt.reference, schema))
            for number, done in zip(range(1 + samples), completions, strict=False)
        ]
        for prompt in prompts
    ]


def make_pairs(
    prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], *, per_prompt: int, use_reference: bool
) -> Iterator[Pair]:
    """Right against wrong, at most `per_prompt` for each prompt, no pair twice.

    The wrong answers that the model finds most likely come first: they are the ones to unlearn. Where no answer is
    right, the reference is chosen if `use_reference`, and the prompt gives nothing otherwise.
    """
    seen: set[tuple[str, str, str]] = set()
    for prompt, answers in zip(prompts, rollouts, strict=True):
        said = Counter(answer.text for answer in answers if answer.reward.exact)
        if not said and not use_reference:
            continue
        chosen = said.most_common(1)[0][0] if said else prompt.reference
        wrong = {answer.text: answer.logprob for answer in answers if not answer.reward.exact}
        ranked = sorted(wrong, key=lambda text: (-wrong[text], text))
        for rejected in ranked[:per_prompt]:
            key = (json.dumps([prompt.messages, prompt.tools], ensure_ascii=False), chosen, rejected)
            if key not in seen:
                seen.add(key)
                yield Pair(prompt, chosen, rejected, on_policy=bool(said))


def read_schema(folder: Path) -> dict[str, Any] | None:
    """The JSON Schema of the answers that lies beside the chats; None if there is none."""
    path = folder / "schema.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
