"""Solutions whose results are checked (rejection sampling, as RFT: Yuan et al. 2023, arXiv 2308.01825): several samples
a problem. Those that come to the right result are learnt from; the wrong ones are what they are preferred to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.problems import Problem
from liuyi.data.synthesis.rows import Made, Origin
from liuyi.data.synthesis.task import AT_ONCE, Task, in_groups
from liuyi.data.synthesis.verify import final_result, is_right


@dataclass(frozen=True)
class Solved:
    """A problem with all its sampled solutions, right and wrong, in the order they were drawn."""

    problem: Problem
    solutions: list[Made]
    """`figures` has `pass_rate`; those that are not kept are dropped with the reason."""
    pass_rate: float
    """Share of the answered samples that came to the right result; 0 where none was answered."""
    wrong: list[Made]
    """Solutions with a result that is not right."""


def verified(
    task: Task,
    problems: Iterable[Problem],
    novelty: Novelty,
    *,
    samples: int,
    keep: int,
    min_pass_rate: float,
    max_pass_rate: float,
) -> Iterator[Solved]:
    """Each problem that has a reference and is in no eval set, sampled `samples` times; at most `keep` different right
    solutions stay.

    Problems with a pass rate outside the bounds are dropped: what is always solved teaches little, and what is solved
    once in many tries is often solved by chance.
    """
    template = task.main_template("solve")
    for group in in_groups(problems, max(1, AT_ONCE // samples)):
        left_out = {problem.id: reason for problem in group if (reason := _unfit(problem, novelty))}
        fresh = [problem for problem in group if problem.id not in left_out]
        asks = [
            task.ask(template, problem.id, number, problem=problem.text)
            for problem in fresh
            for number in range(samples)
        ]
        answered = iter(zip(asks, task.session.ask(asks), strict=True))
        for problem in group:
            if problem.id in left_out:
                yield _left_out(task, problem, left_out[problem.id])
            else:
                solved = _solved(task, problem, list(islice(answered, samples)))
                yield _chosen(solved, keep, min_pass_rate, max_pass_rate)


def _unfit(problem: Problem, novelty: Novelty) -> str:
    """Why a problem is not sampled; empty where it is."""
    if not problem.reference.strip():
        return "no reference to compare with"
    found = novelty.in_tests(problem.text)
    return f"in an eval set: {found}" if found else ""


def _left_out(task: Task, problem: Problem, reason: str) -> Solved:
    origin = Origin(task.generator, sources=(problem.id,))
    return Solved(problem, [Made(origin, problem.text, license=problem.license, dropped=reason)], 0.0, [])


def _solved(task: Task, problem: Problem, answers: Sequence[tuple[Ask, Answer | None]]) -> Solved:
    solutions, right = [], 0
    for ask, answer in answers:
        made = _checked(task, problem, ask, answer)
        right += not made.dropped
        solutions.append(made)
    answered = sum(answer is not None for _, answer in answers)
    rate = right / max(1, answered)
    marked = [replace(made, figures={"pass_rate": rate}) for made in solutions]
    wrong = [made for made in marked if made.dropped == "a wrong result"]
    return Solved(problem, marked, rate, wrong)


def _checked(task: Task, problem: Problem, ask: Ask, answer: Answer | None) -> Made:
    made = Made(
        task.origin(ask, answer, [problem.id]),
        problem.text,
        said_of(answer) if answer else "",
        license=problem.license,
        cluster=problem.cluster,
    )
    if wrong := wrong_with(answer):
        return made.drop(wrong)
    result = final_result(made.text)
    if result is None:
        return made.drop("no result")
    return made if is_right(problem, result) else made.drop("a wrong result")


def _chosen(solved: Solved, keep: int, min_pass_rate: float, max_pass_rate: float) -> Solved:
    kept: set[str] = set()
    chosen = []
    for made in solved.solutions:
        if not made.dropped:
            if not min_pass_rate <= solved.pass_rate <= max_pass_rate:
                made = made.drop("its problem is too easy or too hard")
            elif made.text in kept:
                made = made.drop("a double")
            elif len(kept) == keep:
                made = made.drop("right, but more than are kept of a problem")
            else:
                kept.add(made.text)
        chosen.append(made)
    return replace(solved, solutions=chosen)
