"""Evol-instruct (Xu et al. 2023, arXiv 2304.12244): tasks made harder, or turned into rarer ones, round by round.

An evolution that fails by the paper's rules of elimination is dropped, and its parent stays for the next round: it says
the same as its parent, its answer is a refusal or no words, or it repeats the words of the prompt that asked for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from liuyi.core.words import split
from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.rows import Made, Seed
from liuyi.data.synthesis.task import Task, in_groups
from liuyi.data.synthesis.templates import Template

DEPTH = ("constraint", "depth", "concrete", "reasoning", "input")
BREADTH = "breadth"
_MOST_WORDS = 600
_ECHO = re.compile(
    r"^\W*(?:rewritten|new|evolved|given|original|harder)\s+(?:task|prompt|instruction)\b"
    r"|#\s*(?:rewritten|given|created)\b|^\W*(?:改写后?的?|新的?|原)任务\s*[:：]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Line:
    """A task as far as it has evolved, and the conversation at the beginning of its line."""

    instruction: str
    seed: Seed


def evol_instruct(
    task: Task, seeds: Sequence[Seed], novelty: Novelty, *, rounds: int, breadth: float
) -> Iterator[Made]:
    """Every evolution of every round, with its answer. `breadth` is the share of evolutions that are in breadth."""
    lines = [Line(seed.instruction, seed) for seed in seeds]
    for round in range(rounds):
        if task.session.is_spent:
            return
        task.session.expect((rounds - round) * len(lines) * 3)
        evolved: list[Line] = []
        for start, group in enumerate(in_groups(lines)):
            made = list(_round(task, group, novelty, round, start, breadth))
            yield from made
            evolved += [
                line if one.dropped else Line(one.instruction, line.seed) for line, one in zip(group, made, strict=True)
            ]
        lines = evolved


def _round(
    task: Task, lines: Sequence[Line], novelty: Novelty, round: int, start: int, breadth: float
) -> Iterator[Made]:
    template = task.main_template("evolve")
    asks, operations = [], []
    for number, line in enumerate(lines):
        rng = task.rng("operation", round, start, number)
        operations.append(BREADTH if rng.random() < breadth else rng.choice(DEPTH))
        variables = {"instruction": line.instruction, "operation": operations[-1]}
        asks.append(task.ask(template, round, start, number, variant=operations[-1], **variables))
    answers = task.session.ask(asks)
    made = [_evolution(task, *each) for each in zip(lines, asks, answers, strict=True)]
    yield from task.with_answers(_unlike_parents(task, lines, made, operations), novelty)


def _evolution(task: Task, line: Line, ask: Ask, answer: Answer | None) -> Made:
    seed = line.seed
    made = Made(task.origin(ask, answer, [seed.id]), license=seed.license, cluster=seed.cluster)
    if wrong := wrong_with(answer):
        return replace(made, text=answer.text if answer else "", dropped=wrong)
    assert answer is not None
    made = replace(made, instruction=said_of(answer))
    if _ECHO.search(made.instruction):
        return made.drop("repeats the prompt's words")
    if split(made.instruction) == split(line.instruction):
        return made.drop("says the same as its parent")
    if (words := len(split(made.instruction))) > _MOST_WORDS:
        return made.drop(f"too long: {words} words")
    return made


def _unlike_parents(
    task: Task, lines: Sequence[Line], made: Sequence[Made], operations: Sequence[str]
) -> Iterator[Made]:
    """The model itself says whether an evolution in depth adds anything to its parent."""
    template = Template.ours("same", task.language)
    doubtful = [not one.dropped and operation != BREADTH for one, operation in zip(made, operations, strict=True)]
    asks = [
        task.ask(template, one.origin.request, first=line.instruction, second=one.instruction)
        for line, one, is_doubtful in zip(lines, made, doubtful, strict=True)
        if is_doubtful
    ]
    verdicts = iter(task.session.ask(asks))
    for one, is_doubtful in zip(made, doubtful, strict=True):
        verdict = next(verdicts) if is_doubtful else None
        same = verdict is not None and re.match(r"\W*same\b", said_of(verdict), re.IGNORECASE)
        yield one.drop("says the same as its parent") if same else one
