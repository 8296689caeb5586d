"""Tasks from personas (Ge et al. 2024, arXiv 2406.20094): who would read this text, and what would they ask for?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.passages import passages
from liuyi.data.synthesis.rows import Made, Source
from liuyi.data.synthesis.task import Task, in_groups
from liuyi.data.synthesis.templates import Template


def personas(
    task: Task, sources: Iterable[Source], novelty: Novelty, *, passage_chars: int, tasks: int
) -> Iterator[Made]:
    """One persona from the first passage of each document, `tasks` tasks of each persona, and their answers."""
    describe = Template.ours("persona", task.language)
    for group in in_groups(sources):
        task.session.expect(len(group) * (1 + 2 * tasks))
        read = [(source, passage) for source in group if (passage := next(passages(source.text, passage_chars), ""))]
        asks = [task.ask(describe, source.id, passage=passage) for source, passage in read]
        described = zip((source for source, _ in read), asks, task.session.ask(asks), strict=True)
        yield from task.with_answers(_tasks(task, list(described), tasks), novelty)


def _tasks(task: Task, described: Sequence[tuple[Source, Ask, Answer | None]], tasks: int) -> Iterator[Made]:
    template = task.main_template("persona_task")
    asks: list[tuple[Source, Ask]] = []
    for source, ask, answer in described:
        if wrong := wrong_with(answer):
            yield Made(task.origin(ask, answer, [source.id]), license=source.license, dropped=f"no persona: {wrong}")
            continue
        assert answer is not None
        persona = said_of(answer)
        asks += [(source, task.ask(template, source.id, number, persona=persona)) for number in range(tasks)]
    for (source, ask), answer in zip(asks, task.session.ask([ask for _, ask in asks]), strict=True):
        origin = task.origin(ask, answer, [source.id])
        instruction = said_of(answer) if answer else ""
        made = Made(origin, instruction, license=source.license, cluster=source.cluster)
        yield replace(made, dropped=wrong_with(answer))
