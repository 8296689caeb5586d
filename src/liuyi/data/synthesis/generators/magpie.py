"""Magpie (Xu et al. 2024, arXiv 2406.08464): an aligned model that is given the beginning of a user's turn writes one.

The prompt is the part of the chat template that stands before what a user says, and nothing else. It has to reach the
model as it is, so this needs Liuyi's engine, or an endpoint with `/v1/completions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from liuyi.core.errors import DataError
from liuyi.data.synthesis.ask import Ask, Sampling, derived_seed
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.rows import Made
from liuyi.data.synthesis.task import AT_ONCE, Task
from liuyi.model.chat import render
from liuyi.model.tokenizer import Tokenizer

_MARK = "\ufdd5"


def pre_query(tokenizer: Tokenizer) -> str:
    """What a tokenizer's chat template puts before what the user says first. Raises DataError if it has none."""
    if not tokenizer.chat_template:
        raise DataError("the model has no chat template", hint="self-prompting needs a model tuned for conversations")
    messages = [{"role": "user", "content": _MARK}]
    text = render(tokenizer.chat_template, messages, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    return text.partition(_MARK)[0]


def magpie(
    task: Task, novelty: Novelty, *, prompt: str, stop: tuple[str, ...], instructions: Sampling, samples: int
) -> Iterator[Made]:
    """`samples` instructions drawn as `instructions` says, and the answers to those that are new."""
    task.session.expect(2 * samples)
    for start in range(0, samples, AT_ONCE):
        seeds = [
            derived_seed(task.seed, task.generator, number) for number in range(start, min(samples, start + AT_ONCE))
        ]
        asks = [Ask(prompt, instructions, seed, stop=stop) for seed in seeds]
        yield from task.with_answers(_instructions(task, asks), novelty)


def _instructions(task: Task, asks: list[Ask]) -> Iterator[Made]:
    for ask, answer in zip(asks, task.session.ask(asks), strict=True):
        made = Made(task.origin(ask, answer), said_of(answer) if answer else "", license=task.license)
        yield replace(made, dropped=wrong_with(answer))
