"""What all generators share: how they ask, what they check, and how an instruction becomes a row with its answer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from liuyi.data.synthesis import judge
from liuyi.data.synthesis.ask import Answer, Ask, Sampling, derived_seed
from liuyi.data.synthesis.checks import said_of, wrong_with
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.rows import Made, Origin
from liuyi.data.synthesis.session import Session
from liuyi.data.synthesis.templates import Language, Template

T = TypeVar("T")

AT_ONCE = 4096
"""Sources that are read before their requests are made: what a step holds in memory does not grow with its input."""


@dataclass(frozen=True)
class Task:
    """One run of one generator."""

    generator: str
    session: Session
    sampling: Sampling
    language: Language
    seed: int
    license: str = "unknown"
    """The licence of rows that have no source."""
    template: Template | None = None
    """The user's own, in place of the generator's main template."""
    min_grade: int | None = None
    """The lowest grade of the judge that is kept; None: there is no judge."""
    judge_model: str = ""
    """The model that judges, by the endpoint's name for it; empty: the one that answers."""

    def main_template(self, name: str) -> Template:
        """The user's own template, or ours of that name."""
        return self.template or Template.ours(name, self.language)

    def rng(self, *place: str | int) -> random.Random:
        """Chance for one place among the rows."""
        return random.Random(derived_seed(self.seed, self.generator, *place))

    def ask(self, template: Template, *place: str | int, variant: str = "", **variables: Any) -> Ask:
        """The request that a template writes for one place among the rows; `variant` says which of its cases."""
        prompt = ({"role": "user", "content": template.write(**variables)},)
        seed = derived_seed(self.seed, self.generator, template.name.partition("@")[0], *place)
        return Ask(prompt, self.sampling, seed, f"{template.name}#{variant}" if variant else template.name)

    def origin(self, ask: Ask, answer: Answer | None, sources: Sequence[str] = ()) -> Origin:
        """Where a row comes from that this answer gives."""
        model = answer.model if answer else ""
        return Origin(self.generator, model, ask.template, tuple(sources), ask.seed, ask.key)

    def with_answers(self, instructions: Iterable[Made], novelty: Novelty | None = None) -> Iterator[Made]:
        """Drop what is not new, let the rest be answered, and drop answers that are none or that the judge grades low.

        Rows come in the order of `instructions`; the reason of one that was dropped before stays.
        """
        for group in in_groups(instructions):
            yield from self.judged(self._answered([_if_new(made, novelty) for made in group] if novelty else group))

    def _answered(self, group: list[Made]) -> list[Made]:
        asks = [
            Ask(
                ({"role": "user", "content": made.instruction},),
                self.sampling,
                derived_seed(self.seed, self.generator, "answer", made.origin.request, made.instruction),
            )
            for made in group
            if not made.dropped
        ]
        answers = iter(zip(asks, self.session.ask(asks), strict=True))
        return [made if made.dropped else self._with_answer(made, *next(answers)) for made in group]

    def _with_answer(self, made: Made, ask: Ask, answer: Answer | None) -> Made:
        model = answer.model if answer else ""
        origin = replace(made.origin, model=model, seed=ask.seed, request=ask.key, asked_by=made.origin.request)
        text = said_of(answer) if answer else ""
        return replace(made, origin=origin, text=text, dropped=wrong_with(answer))

    def judged(self, group: list[Made], passages: Sequence[str] | None = None) -> list[Made]:
        """The rows with what the judge grades low, or does not grade, dropped. `passages` are what they rest on."""
        if self.min_grade is None:
            return group
        template = Template.ours("judge", self.language)
        sampling = Sampling(judge.MAX_TOKENS, temperature=0.0)
        asks = []
        for made, passage in zip(group, passages or [""] * len(group), strict=True):
            if not made.dropped:
                prompt = template.write(instruction=made.instruction, answer=made.text, passage=passage)
                message = {"role": "user", "content": prompt}
                asks.append(Ask((message,), sampling, 0, template.name, schema=judge.GRADES, model=self.judge_model))
        grades = iter(self.session.ask(asks))
        return [made if made.dropped else self._graded(made, next(grades)) for made in group]

    def _graded(self, made: Made, answer: Answer | None) -> Made:
        if answer is None:
            return made.drop("not judged: the judge did not answer")
        grade = judge.read_grade(said_of(answer))
        if grade is None:
            return made.drop("not judged: the judge's answer gives no grade")
        assert self.min_grade is not None
        return made.drop(f"graded low: {grade} of 5") if grade < self.min_grade else made


def in_groups(items: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group


def _if_new(made: Made, novelty: Novelty) -> Made:
    if made.dropped:
        return made
    wrong = novelty.wrong_with(made.origin.request, made.instruction)
    return made.drop(wrong) if wrong else made
