"""Self-instruct (Wang et al. 2022, arXiv 2212.10560): new tasks after examples of seeds and of what was made before.

How this departs from the paper: several tasks are asked for as a list, not as a continuation; classification tasks are
not treated apart; and answers are asked for as a chat, which instruction-tuned models are used to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from liuyi.core.words import split
from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.checks import NO_ANSWER, said_of
from liuyi.data.synthesis.listing import read_list
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.rows import Made, Seed
from liuyi.data.synthesis.task import Task

_FEWEST_WORDS, _MOST_WORDS = 3, 150
_BARREN_ROUNDS = 2
_MADE_SHARE = 0.25
"""Part of the examples that were made before: two of eight in the paper."""
_NEEDS_MORE = re.compile(
    r"\b(?:images?|pictures?|photos?|videos?|audio|attached|attachment|uploaded|screenshots?)\b"
    r"|图片|照片|视频|音频|附件|截图",
    re.IGNORECASE,
)


def self_instruct(
    task: Task, seeds: Sequence[Seed], novelty: Novelty, *, rows: int, examples: int, per_request: int
) -> Iterator[Made]:
    """Rounds of requests until `rows` new tasks are found, the budget is spent, or two rounds bring nothing new; then
    their answers.
    """
    found: list[Made] = []
    everything: list[Made] = []
    barren, round = 0, 0
    while len(found) < rows and barren < _BARREN_ROUNDS and not task.session.is_spent:
        requests = math.ceil((rows - len(found)) / per_request)
        task.session.expect(requests + rows)
        asks = [_ask(task, seeds, found, round, number, examples, per_request) for number in range(requests)]
        before = len(found)
        for (ask, shown), answer in zip(asks, task.session.ask([ask for ask, _ in asks]), strict=True):
            for made in _tasks(task, ask, answer, shown):
                made = _checked(made, novelty)
                if not made.dropped and len(found) == rows:
                    made = made.drop("more than were asked for")
                if not made.dropped:
                    found.append(made)
                everything.append(made)
        barren = barren + 1 if len(found) == before else 0
        round += 1
    yield from task.with_answers(everything)


def _ask(
    task: Task, seeds: Sequence[Seed], found: Sequence[Made], round: int, number: int, examples: int, count: int
) -> tuple[Ask, list[Seed]]:
    """A request, and the seeds that it shows."""
    rng = task.rng("examples", round, number)
    from_made = min(len(found), int(examples * _MADE_SHARE))
    shown = rng.sample(seeds, min(len(seeds), examples - from_made))
    instructions = [seed.instruction for seed in shown]
    instructions += [made.instruction for made in rng.sample(found, from_made)]
    rng.shuffle(instructions)
    template = task.main_template("instructions")
    return task.ask(template, round, number, examples=instructions, count=count), shown


def _tasks(task: Task, ask: Ask, answer: Answer | None, shown: Sequence[Seed]) -> Iterator[Made]:
    origin = task.origin(ask, answer, [seed.id for seed in shown])
    license = " AND ".join(sorted({seed.license for seed in shown})) or task.license
    if answer is None:
        yield Made(origin, license=license, dropped=NO_ANSWER)
        return
    found = read_list(said_of(answer))
    if answer.finish == "length" and found:
        *found, broken = found
        yield Made(origin, broken, license=license, dropped="cut off: longer than max_tokens")
    if not found:
        yield Made(origin, text=answer.text, license=license, dropped="not a list")
    for instruction in found:
        yield Made(origin, instruction, license=license)


def _checked(made: Made, novelty: Novelty) -> Made:
    if made.dropped:
        return made
    words = len(split(made.instruction))
    if not _FEWEST_WORDS <= words <= _MOST_WORDS:
        return made.drop(f"too short or too long: {words} words")
    if needed := _NEEDS_MORE.search(made.instruction):
        return made.drop(f"needs more than text: {needed[0].lower()}")
    wrong = novelty.wrong_with(made.origin.request, made.instruction)
    return made.drop(wrong) if wrong else made
