"""The cascade: rules, then the model, then a person. A rung answers only when its risk is within what is allowed.

    request → rules → model → taken apart, each part by rules or model → person

The guard has the last word on every answer: what is guarded waits for a confirmation, and an answer that does not fit
what the request names goes to a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from liuyi.apply.calibrate import Calibrator, Score, score_logprobs
from liuyi.apply.decompose import Lexicon, segmentations
from liuyi.apply.guard import Guard
from liuyi.apply.language import tidy
from liuyi.apply.model_rung import Answerer, ModelAnswer
from liuyi.apply.rules import RuleAnswer, RuleBook
from liuyi.data.desk.answers import HAND_OFF, parse_answer

RungName = Literal["rules", "model"]


@dataclass(frozen=True)
class Allowed:
    """What each rung may answer: an upper bound of the error rate for rules, a least confidence for the model."""

    risk: float
    guarded_risk: float
    rules_bound: float
    """Of template readings without free text, as seen on held-out items."""
    free_text_bound: float
    """Of template readings that took a part as free text."""
    model_threshold: float
    guarded_threshold: float

    def rules(self, answer: RuleAnswer, guarded: bool) -> bool:
        bound = self.free_text_bound if answer.free_text else self.rules_bound
        return bound <= (self.guarded_risk if guarded else self.risk)

    def model(self, confidence: float, guarded: bool) -> bool:
        return confidence >= (max(self.guarded_threshold, self.model_threshold) if guarded else self.model_threshold)


@dataclass(frozen=True)
class Answer:
    """One answer that may be given: which rung gave it, how sure it is, whether a person must confirm it."""

    text: str
    rung: RungName
    confidence: float
    confirmation_required: bool


@dataclass(frozen=True)
class Refusal:
    """Why one request got no answer, and how sure the model was of what it would have said."""

    reason: str
    confidence: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one request: answers in order, or a hand-off to a person and why."""

    answers: tuple[Answer, ...]
    reason: str = ""
    prompt_tokens: int = 0
    """Tokens that the model read for it, of all parts that it was asked about."""
    completion_tokens: int = 0

    @property
    def hand_off(self) -> bool:
        return not self.answers

    @property
    def text(self) -> str:
        """The answer's JSON: an object, an array for several; empty for a hand-off."""
        if len(self.answers) == 1:
            return self.answers[0].text
        return f"[{','.join(answer.text for answer in self.answers)}]" if self.answers else ""


class Cascade:
    """Answers requests by its rungs, many at a time."""

    def __init__(
        self,
        rules: RuleBook,
        model: Answerer,
        guard: Guard,
        lexicon: Lexicon,
        calibrator: Calibrator,
        score: Score,
        allowed: Allowed,
    ) -> None:
        self.rules, self.model, self.guard, self.lexicon = rules, model, guard, lexicon
        self.calibrator, self.score, self.allowed = calibrator, score, allowed

    def respond(self, requests: Sequence[str], on_progress: Callable[[int, int], None] | None = None) -> list[Outcome]:
        """What becomes of each request. The model is asked twice: for whole requests, then for parts of some."""
        texts = [tidy(text) for text in requests]
        known = _Known(self, on_progress)
        known.learn(texts)
        proposals = {text: segmentations(text, self.lexicon) for text in texts if not known.by_rules(text)}
        known.learn(part for ways in proposals.values() for way in ways for part in way)
        return [self._settle(text, proposals.get(text, []), known) for text in texts]

    def _settle(self, text: str, ways: list[list[str]], known: _Known) -> Outcome:
        """The whole request if it is understood better than its parts, else the first way whose parts all are."""
        whole = known[text]
        read, written = known.cost(text, ways)
        best: tuple[Answer, ...] = ()
        understood = 0
        surest = whole.confidence if isinstance(whole, Answer) else 0.0
        for way in ways:
            parts = [known[part] for part in way]
            answers = tuple(part for part in parts if isinstance(part, Answer))
            understood = max(understood, len(answers))
            if len(answers) == len(parts) and min(answer.confidence for answer in answers) > surest:
                best, surest = answers, min(answer.confidence for answer in answers)
        if best:
            return Outcome(best, "", read, written)
        if isinstance(whole, Answer):
            return Outcome((whole,), "", read, written)
        return Outcome((), "only a part of it is understood" if understood else whole.reason, read, written)

    def judge(self, text: str, rule: object, said: ModelAnswer | None) -> Answer | Refusal:
        """One request by itself: the rules' answer, else the model's, else why not."""
        if isinstance(rule, RuleAnswer):
            ruling = self.guard.rule(text, rule.answer)
            guarded = ruling.decision == "confirm"
            if ruling.decision != "refuse" and self.allowed.rules(rule, guarded):
                bound = self.allowed.free_text_bound if rule.free_text else self.allowed.rules_bound
                return Answer(rule.answer, "rules", 1 - bound, guarded)
        if said is None:
            return Refusal("no rung answers")
        return self._by_model(text, said)

    def _by_model(self, text: str, said: ModelAnswer) -> Answer | Refusal:
        confidence = self.calibrator(score_logprobs(said.logprobs, self.score))
        parsed = parse_answer(said.text)
        if parsed is None or not said.finished:
            return Refusal("the model's answer is not whole", confidence)
        if parsed[0] == HAND_OFF:
            return Refusal("outside the task", confidence)
        ruling = self.guard.rule(text, said.text)
        if ruling.decision == "refuse":
            return Refusal(ruling.reason, confidence)
        guarded = ruling.decision == "confirm"
        if not self.allowed.model(confidence, guarded):
            return Refusal("not sure enough", confidence)
        return Answer(said.text, "model", confidence, guarded)


class _Known:
    """What the rungs say about texts, each asked once."""

    def __init__(self, cascade: Cascade, on_progress: Callable[[int, int], None] | None) -> None:
        self._cascade, self._on_progress = cascade, on_progress
        self._rules: dict[str, object] = {}
        self._said: dict[str, ModelAnswer] = {}
        self._judged: dict[str, Answer | Refusal] = {}

    def __getitem__(self, text: str) -> Answer | Refusal:
        return self._judged[text]

    def by_rules(self, text: str) -> bool:
        """Whether the rules have settled it, and not by free text, which fits too much."""
        judged, rule = self._judged[text], self._rules[text]
        return isinstance(judged, Answer) and judged.rung == "rules" and not getattr(rule, "free_text", False)

    def learn(self, texts: Iterable[str]) -> None:
        """Ask the rules about new texts, and the model about those that the rules leave open."""
        new = [text for text in dict.fromkeys(texts) if text not in self._judged]
        for text in new:
            self._rules[text] = self._cascade.rules.read(text)
            self._judged[text] = self._cascade.judge(text, self._rules[text], None)
        left = [text for text in new if isinstance(self._judged[text], Refusal) and text.strip()]
        for text, said in zip(left, self._cascade.model.answer(left, self._on_progress), strict=True):
            self._said[text] = said
            self._judged[text] = self._cascade.judge(text, self._rules[text], said)

    def cost(self, text: str, ways: list[list[str]]) -> tuple[int, int]:
        """Tokens that the model read and wrote for a request and all its parts."""
        asked = dict.fromkeys([text, *(part for way in ways for part in way)])
        said = [self._said[each] for each in asked if each in self._said]
        return sum(each.prompt_tokens for each in said), sum(len(each.logprobs) for each in said)
