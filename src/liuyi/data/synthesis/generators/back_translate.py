"""Questions and answers from documents (after instruction back-translation, Li et al. 2023, arXiv 2308.06259): each is
asked about a passage, keeps the document's id, and is dropped where the answer does not rest on the passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.grounding import strange_numbers, support
from liuyi.data.synthesis.listing import read_parts
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.passages import passages
from liuyi.data.synthesis.rows import Made, Source
from liuyi.data.synthesis.task import Task, in_groups

_PARTS = ("QUESTION", "ANSWER")
_ABOUT_THE_TEXT = re.compile(
    r"\b(?:the|this)\s+(?:passage|text|excerpt|article|author|paragraph)\b|文中|本文|文段|这段文字|作者", re.IGNORECASE
)


def back_translate(
    task: Task,
    sources: Iterable[Source],
    novelty: Novelty,
    *,
    passage_chars: int,
    least_passage_chars: int,
    questions: int,
    min_support: float,
) -> Iterator[Made]:
    """`questions` pairs for each passage that is long enough."""
    template = task.main_template("question")
    pieces = (
        (source, passage, f"{number}.{question}")
        for source in sources
        for number, passage in enumerate(passages(source.text, passage_chars))
        if len(passage) >= least_passage_chars
        for question in range(questions)
    )
    for group in in_groups(pieces):
        asks = [task.ask(template, source.id, place, passage=passage) for source, passage, place in group]
        made = [
            _made(task, source, passage, ask, answer, novelty, min_support)
            for (source, passage, _), ask, answer in zip(group, asks, task.session.ask(asks), strict=True)
        ]
        yield from task.judged(made, [passage for _, passage, _ in group])


def _made(
    task: Task, source: Source, passage: str, ask: Ask, answer: Answer | None, novelty: Novelty, min_support: float
) -> Made:
    said = said_of(answer) if answer else ""
    made = Made(task.origin(ask, answer, [source.id]), text=said, license=source.license, cluster=source.cluster)
    if wrong := wrong_with(answer):
        return made.drop(wrong)
    parts = read_parts(said, _PARTS)
    if parts is None:
        return made.drop("not a question with its answer")
    question, reply = (parts[name] for name in _PARTS)
    made = replace(made, instruction=question, text=reply)
    if about := _ABOUT_THE_TEXT.search(question):
        return made.drop(f"asks about the text itself: {about[0].lower()}")
    if strange := strange_numbers(reply, passage):
        return made.drop(f"not grounded: {strange[0]} is not in the passage")
    if (share := support(reply, passage)) < min_support:
        return made.drop(f"not grounded: {share:.0%} of the answer's words are in the passage")
    wrong = novelty.wrong_with(made.origin.request, question)
    return made.drop(wrong) if wrong else made
