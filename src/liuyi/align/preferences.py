"""Preferences as an artifact: the pairs, every rollout beside them, and what sampling yielded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from liuyi.align.rollout import Pair, Prompt, Rollout
from liuyi.core.digest import sha256_bytes
from liuyi.core.effect import Bars, Effect, Sample, Samples, Table
from liuyi.core.errors import DataError

PREFERENCES = "preferences.parquet"
ROLLOUTS = "rollouts.parquet"


def write_preferences(folder: Path, pairs: Sequence[Pair]) -> None:
    """Write `preferences.parquet`: id, prompt, chosen, rejected, source, license, cluster, chosen_by, and tools where
    there are any.

    Raises DataError if there is no pair: the model answered everything right, or nothing was allowed as chosen.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not pairs:
        raise DataError(
            "sampling gave no pair of a right and a wrong answer",
            hint="raise temperature or prompts, or give harder prompts; a model that is always right has nothing to "
            "learn here",
        )
    prompts = [_messages(pair.prompt) for pair in pairs]
    tools = [_json(pair.prompt.tools) if pair.prompt.tools else "" for pair in pairs]
    columns = {
        "id": [
            sha256_bytes("\n".join((prompt + called, pair.chosen, pair.rejected)).encode())[:24]
            for prompt, called, pair in zip(prompts, tools, pairs, strict=True)
        ],
        "prompt": prompts,
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        "source": [pair.prompt.source for pair in pairs],
        "license": [pair.prompt.license for pair in pairs],
        "cluster": [pair.prompt.cluster for pair in pairs],
        "chosen_by": ["model" if pair.on_policy else "reference" for pair in pairs],
    }
    if any(tools):
        columns["tools"] = tools
    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), folder / PREFERENCES, compression="zstd", compression_level=3)


def write_rollouts(folder: Path, prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]]) -> None:
    """Write `rollouts.parquet`: one row for each answer, with its reward's components."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(prompt, answer) for prompt, answers in zip(prompts, rollouts, strict=True) for answer in answers]
    texts = {
        "prompt_id": [prompt.id for prompt, _ in rows],
        "prompt": [_messages(prompt) for prompt, _ in rows],
        "output": [answer.text for _, answer in rows],
        "reference": [prompt.reference for prompt, _ in rows],
    }
    numbers = {
        "greedy": [float(answer.greedy) for _, answer in rows],
        "logprob": [answer.logprob for _, answer in rows],
        "reward": [answer.reward.total for _, answer in rows],
    }
    for name in rows[0][1].reward.components if rows else ():
        numbers[name] = [answer.reward.components[name] for _, answer in rows]
    table = pa.table(
        {name: pa.array(values, pa.string()) for name, values in texts.items()}
        | {name: pa.array(values, pa.float64()) for name, values in numbers.items()}
    )
    pq.write_table(table, folder / ROLLOUTS, compression="zstd", compression_level=3)


def sample_figures(rollouts: Sequence[Sequence[Rollout]], pairs: Sequence[Pair]) -> dict[str, float]:
    """What sampling yielded, as plain figures; shares are 0 … 1."""
    greedy = [answer for answers in rollouts for answer in answers if answer.greedy]
    sampled = [answer for answers in rollouts for answer in answers if not answer.greedy]
    return {
        "prompts": len(rollouts),
        "answers": len(greedy) + len(sampled),
        "exact_greedy": fmean(answer.reward.exact for answer in greedy),
        "exact_sampled": fmean(answer.reward.exact for answer in sampled),
        "exact_any": fmean(any(answer.reward.exact for answer in answers) for answers in rollouts),
        "valid_json": fmean(answer.reward.components["valid_json"] for answer in sampled),
        "reward": fmean(answer.reward.total for answer in sampled),
        "distinct_answers": fmean(len({answer.text for answer in answers}) for answers in rollouts),
        "pairs": len(pairs),
        "pairs_on_policy": sum(pair.on_policy for pair in pairs),
        "prompts_with_pairs": len({pair.prompt.id for pair in pairs}),
    }


def sample_effect(
    prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], pairs: Sequence[Pair], figures: dict[str, float]
) -> Effect:
    """What the report says about sampling."""
    names = ("exact", "valid_json", "valid_schema", "intent", "slot_f1")
    answers = [answer for found in rollouts for answer in found]
    return Effect(
        stage="alignment",
        title="The model's own answers, judged",
        summary=(
            f"{figures['answers']:,.0f} answers to {figures['prompts']:,.0f} practice prompts: "
            f"{figures['exact_greedy']:.0%} right greedily, {figures['exact_sampled']:.0%} when sampled. They gave "
            f"{figures['pairs']:,.0f} pairs, {figures['pairs_on_policy']:,.0f} with the model's own right answer."
        ),
        blocks=(
            Bars(
                title="What the verifier found",
                bars=tuple((name, fmean(answer.reward.components[name] for answer in answers)) for name in names),
                unit="%",
            ),
            Table(
                title="Yield",
                columns=("what", "count"),
                rows=(
                    ("prompts", len(prompts)),
                    ("prompts that gave a pair", int(figures["prompts_with_pairs"])),
                    ("pairs", len(pairs)),
                    ("of them with the model's own right answer", int(figures["pairs_on_policy"])),
                ),
            ),
            Samples(
                title="Pairs",
                samples=tuple(
                    Sample(
                        title=str(pair.prompt.messages[-1]["content"]),
                        text=f"chosen    {pair.chosen}\nrejected  {pair.rejected}",
                        note="chosen by the model" if pair.on_policy else "chosen: the reference",
                    )
                    for pair in pairs[:: max(1, len(pairs) // 8)][:8]
                ),
            ),
        ),
    )


def _messages(prompt: Prompt) -> str:
    return _json(prompt.messages)


def _json(values: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"))
