"""Rephrased text (WRAP: Maini et al. 2024, arXiv 2401.16380): what a passage says, once more in another style."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from liuyi.core.words import split
from liuyi.data.dedup.exact import fingerprint
from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.grounding import strange_numbers
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.passages import passages
from liuyi.data.synthesis.rouge import rouge_l
from liuyi.data.synthesis.rows import Made, Source
from liuyi.data.synthesis.task import Task, in_groups

_SHORTEST, _LONGEST = 0.2, 3.0
"""Words of a rephrasing, as a share of the passage's."""
_COPY = 0.95
_LEAST_COMPARED_WORDS = 20
_Piece = tuple[Source, int, str, str]


def rephrase(
    task: Task, sources: Iterable[Source], novelty: Novelty, *, styles: Sequence[str], passage_chars: int
) -> Iterator[Made]:
    """Each passage of each document in each style."""
    template = task.main_template("rephrase")
    seen: set[str] = set()
    for group in in_groups(_pieces(sources, styles, passage_chars)):
        asks = [
            task.ask(template, source.id, number, style, variant=style, passage=passage, style=style)
            for source, number, passage, style in group
        ]
        for piece, ask, answer in zip(group, asks, task.session.ask(asks), strict=True):
            made = _made(task, piece, ask, answer)
            if not made.dropped and (found := novelty.in_tests(made.text)):
                made = made.drop(f"in an eval set: {found}")
            if not made.dropped and (mark := fingerprint(made.text)) in seen:
                made = made.drop("a double")
            elif not made.dropped:
                seen.add(mark)
            yield made


def _pieces(sources: Iterable[Source], styles: Sequence[str], passage_chars: int) -> Iterator[_Piece]:
    for source in sources:
        for number, passage in enumerate(passages(source.text, passage_chars)):
            for style in styles:
                yield source, number, passage, style


def _made(task: Task, piece: _Piece, ask: Ask, answer: Answer | None) -> Made:
    source, _, passage, _ = piece
    text = said_of(answer) if answer else ""
    origin = task.origin(ask, answer, [source.id])
    made = Made(origin, text=text, license=source.license, cluster=source.cluster, url=source.url, lang=source.lang)
    if wrong := wrong_with(answer):
        return made.drop(wrong)
    before, after = split(passage), split(text)
    if not _SHORTEST <= len(after) / max(1, len(before)) <= _LONGEST:
        return made.drop(f"much shorter or longer than its passage: {len(after)} words from {len(before)}")
    if len(before) >= _LEAST_COMPARED_WORDS and rouge_l(before, after) >= _COPY:
        return made.drop("a copy of its passage")
    if strange := strange_numbers(text, passage):
        return made.drop(f"a number that its passage does not have: {strange[0]}")
    return made
