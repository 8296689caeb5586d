"""The trial of an application: rules alone, the model alone, and the cascade, on the same requests.

A request is handled right if the answer is exact, or if it is handed to a person where it should be. A wrong action is
an answer that is given, is wrong, and would change something. What needs a confirmation counts as given: a person who
trusts the desk would confirm it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from liuyi.apply.app import Knowledge
from liuyi.apply.cascade import Cascade
from liuyi.apply.guard import Guard
from liuyi.apply.language import tidy
from liuyi.apply.model_rung import ModelAnswer
from liuyi.apply.rules import RuleAnswer
from liuyi.data.desk.answers import HAND_OFF, parse_answer
from liuyi.evaluate.generate import Evalset
from liuyi.evaluate.scorers import get_scorer, parse_json

System = Literal["rules", "model", "cascade"]
SYSTEMS: tuple[System, ...] = ("rules", "model", "cascade")


@dataclass(frozen=True)
class Handled:
    """What a system did with one request."""

    output: str
    """The answer's JSON; empty for a hand-off."""
    right: bool
    wrong_action: bool
    wrong_guarded: bool
    """A wrong action on something guarded."""

    @property
    def answered(self) -> bool:
        return bool(self.output)


@dataclass(frozen=True)
class Tried:
    """One request of an eval set, and what each system did with it."""

    evalset: str
    id: str
    cluster: str
    language: str
    kind: str
    text: str
    reference: str
    guarded: bool
    """Whether the request names something guarded or a system acted on something guarded."""
    by: dict[System, Handled]
    rung: str
    """Which rung of the cascade answered, or why none did."""


def try_out(
    cascade: Cascade,
    knowledge: Knowledge,
    evalsets: Sequence[Evalset],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Tried]:
    """Put every request of the eval sets to the three systems."""
    items = [(evalset.name, item) for evalset in evalsets for item in evalset.items]
    texts = [str(item["messages"][-1]["content"]) for _, item in items]
    alone = cascade.model.answer([tidy(text) for text in texts], on_progress)
    outcomes = cascade.respond(texts, on_progress)
    tried = []
    for (name, item), text, said, outcome in zip(items, texts, alone, outcomes, strict=True):
        reference = item["reference"]
        outputs: dict[System, str] = {
            "rules": _by_rules(knowledge, text),
            "model": _by_model(said),
            "cascade": outcome.text,
        }
        by = {system: _handle(knowledge.guard, output, reference) for system, output in outputs.items()}
        acted = any(_acts_on_guarded(knowledge.guard, output) for output in outputs.values())
        tried.append(
            Tried(
                evalset=name,
                id=item["id"],
                cluster=item["cluster"],
                language=item.get("lang") or "",
                kind=item.get("kind") or "",
                text=text,
                reference=reference,
                guarded=acted or knowledge.guard.names_guarded(text),
                by=by,
                rung=" ".join(answer.rung for answer in outcome.answers) or f"hand-off: {outcome.reason}",
            )
        )
    return tried


def _by_rules(knowledge: Knowledge, text: str) -> str:
    reading = knowledge.rules.read(tidy(text))
    return reading.answer if isinstance(reading, RuleAnswer) else ""


def _by_model(said: ModelAnswer) -> str:
    parsed = parse_answer(said.text)
    return "" if parsed is None or parsed[0] == HAND_OFF else said.text


def _handle(guard: Guard, output: str, reference: str) -> Handled:
    expects_person = (parse_answer(reference) or ("", {}))[0] == HAND_OFF
    if not output:
        return Handled("", expects_person, wrong_action=False, wrong_guarded=False)
    right = not expects_person and get_scorer("json_exact")(output, reference, {})["exact"] == 1.0
    acts = any(guard.is_action(answer) for answer in _single(output))
    return Handled(output, right, acts and not right, not right and _acts_on_guarded(guard, output))


def _acts_on_guarded(guard: Guard, output: str) -> bool:
    return bool(output) and any(guard.is_guarded(answer) for answer in _single(output))


def _single(output: str) -> list[str]:
    """The answers of an output, each as its own JSON."""
    from liuyi.core.digest import canonical_json

    value, is_json = parse_json(output)
    if not is_json:
        return [output]
    return [canonical_json(answer) for answer in value] if isinstance(value, list) else [output]
