"""The application as an artifact: the rules, the facility and the schema, and what calibration found.

app.json       the model's digest, score, calibrator, thresholds
rules.json  facility.json  schema.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liuyi.apply.calibrate import (
    Bin,
    Calibrator,
    Method,
    Score,
    Threshold,
    choose_threshold,
    error_bound,
    expected_calibration_error,
    fit,
    reliability,
    score_logprobs,
)
from liuyi.apply.cascade import Allowed, Cascade
from liuyi.apply.decompose import Lexicon
from liuyi.apply.guard import Guard
from liuyi.apply.language import tidy
from liuyi.apply.model_rung import Answerer, ModelAnswer
from liuyi.apply.rules import RuleAnswer, RuleBook
from liuyi.core.errors import ArtifactError
from liuyi.data.desk.answers import HAND_OFF, parse_answer
from liuyi.data.desk.facility import Facility
from liuyi.evaluate.scorers import get_scorer

APP = "app.json"
RULES, FACILITY, SCHEMA = "rules.json", "facility.json", "schema.json"
_FOLDS = 5


@dataclass(frozen=True)
class Case:
    """A request with its right answer."""

    text: str
    reference: str
    cluster: str


@dataclass(frozen=True)
class Knowledge:
    """What an application knows without its model: rules, facility, guard, ways to take requests apart."""

    rules: RuleBook
    facility: Facility
    guard: Guard
    lexicon: Lexicon
    schema: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Knowledge:
        """From the folder of a desk's chats or of an app. Raises ArtifactError naming the file that is missing."""
        for name in (RULES, FACILITY, SCHEMA):
            if not (folder / name).exists():
                raise ArtifactError(
                    f"there is no {name}", where=str(folder), hint="give the chats 'train' of data.desk"
                )
        rules = json.loads((folder / RULES).read_text(encoding="utf-8"))
        facility = Facility.model_validate_json((folder / FACILITY).read_text(encoding="utf-8"))
        lists: Mapping[str, Any] = {language: grammar["lists"] for language, grammar in rules["languages"].items()}
        schema = json.loads((folder / SCHEMA).read_text(encoding="utf-8"))
        return cls(RuleBook.load(folder / RULES), facility, Guard(facility, lists), Lexicon(facility, lists), schema)


@dataclass(frozen=True)
class Calibration:
    """What held-out cases say about the rungs."""

    calibrator: Calibrator
    allowed: Allowed
    plain: Threshold
    guarded: Threshold
    rules: dict[str, dict[str, float]]
    """For rules with and without free text: how many answers, how many wrong, upper bound of the error rate."""
    bins: list[Bin]
    """Reliability of confidences that were fitted without the cases they are shown for."""
    error: float
    """Expected calibration error of the same confidences."""
    raw_error: float
    """The same of the bare probability of the answer, exp(sum of log-probabilities)."""


def calibrate(
    knowledge: Knowledge,
    cases: Sequence[Case],
    said: Sequence[ModelAnswer],
    *,
    score: Score,
    method: Method,
    risk: float,
    guarded_risk: float,
    level: float,
) -> Calibration:
    """Fit confidences and choose thresholds on held-out cases; `said` are the model's answers to them, in order.

    The model's threshold is chosen on what reaches it in the cascade: cases that the rules leave open.
    """
    right = [_is_right(answer.text, case.reference) for answer, case in zip(said, cases, strict=True)]
    scores = [score_logprobs(answer.logprobs, score) for answer in said]
    clusters = [case.cluster for case in cases]
    calibrator = fit(scores, right, method)
    rules = _judge_rules(knowledge, cases, level)
    bounds = Allowed(risk, guarded_risk, rules["plain"]["bound"], rules["free text"]["bound"], math.inf, math.inf)
    reach = [number for number in range(len(cases)) if _reaches_model(knowledge, cases[number], said[number], bounds)]
    confidence = [calibrator(scores[number]) for number in reach]
    chosen = [
        choose_threshold(
            confidence,
            [right[number] for number in reach],
            [clusters[number] for number in reach],
            risk=allowed,
            level=level,
        )
        for allowed in (risk, guarded_risk)
    ]
    allowed = Allowed(risk, guarded_risk, bounds.rules_bound, bounds.free_text_bound, chosen[0].value, chosen[1].value)
    unseen = _cross_fitted(scores, right, clusters, method)
    bins = reliability(unseen, right)
    raw = reliability([math.exp(sum(answer.logprobs)) if answer.logprobs else 0.0 for answer in said], right)
    return Calibration(
        calibrator,
        allowed,
        chosen[0],
        chosen[1],
        rules,
        bins,
        expected_calibration_error(bins),
        expected_calibration_error(raw),
    )


def _is_right(output: str, reference: str) -> bool:
    return get_scorer("json_exact")(output, reference, {})["exact"] == 1.0


def _judge_rules(knowledge: Knowledge, cases: Sequence[Case], level: float) -> dict[str, dict[str, float]]:
    found: dict[str, tuple[list[bool], list[str]]] = {"plain": ([], []), "free text": ([], [])}
    for case in cases:
        rule = knowledge.rules.read(tidy(case.text))
        if isinstance(rule, RuleAnswer):
            wrong, clusters = found["free text" if rule.free_text else "plain"]
            wrong.append(not _is_right(rule.answer, case.reference))
            clusters.append(case.cluster)
    return {
        name: {
            "answers": float(len(wrong)),
            "wrong": float(sum(wrong)),
            "bound": error_bound(wrong, clusters, level),
        }
        for name, (wrong, clusters) in found.items()
    }


def _reaches_model(knowledge: Knowledge, case: Case, said: ModelAnswer, bounds: Allowed) -> bool:
    """Whether the model's answer to the case would be given, were it only sure enough."""
    text = tidy(case.text)
    rule = knowledge.rules.read(text)
    if isinstance(rule, RuleAnswer):
        ruling = knowledge.guard.rule(text, rule.answer)
        if ruling.decision != "refuse" and bounds.rules(rule, ruling.decision == "confirm"):
            return False
    parsed = parse_answer(said.text)
    if parsed is None or parsed[0] == HAND_OFF or not said.finished:
        return False
    return knowledge.guard.rule(text, said.text).decision != "refuse"


def _cross_fitted(
    scores: Sequence[float], right: Sequence[bool], clusters: Sequence[str], method: Method
) -> list[float]:
    """Confidences of cases by calibrators that did not see their cluster."""
    folds = {cluster: number % _FOLDS for number, cluster in enumerate(sorted(set(clusters)))}
    out = [0.0] * len(scores)
    for fold in range(_FOLDS):
        inside = [number for number, cluster in enumerate(clusters) if folds[cluster] == fold]
        outside = [number for number, cluster in enumerate(clusters) if folds[cluster] != fold]
        if inside:
            fitted = fit([scores[number] for number in outside], [right[number] for number in outside], method)
            for number in inside:
                out[number] = fitted(scores[number])
    return out


@dataclass(frozen=True)
class AppConfig:
    """What `app.json` holds."""

    model: str
    """Digest of the model."""
    score: Score
    constrained: bool
    max_tokens: int
    calibrator: Calibrator
    allowed: Allowed

    def save(self, folder: Path, calibration: Calibration) -> None:
        value = {
            "model": self.model,
            "score": self.score,
            "constrained": self.constrained,
            "max_tokens": self.max_tokens,
            "calibrator": self.calibrator.as_json(),
            "allowed": _finite(asdict(self.allowed)),
            "found": {
                "threshold": _finite(asdict(calibration.plain)),
                "guarded_threshold": _finite(asdict(calibration.guarded)),
                "rules": calibration.rules,
                "calibration_error": calibration.error,
                "raw_calibration_error": calibration.raw_error,
            },
        }
        (folder / APP).write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> AppConfig:
        """Raises ArtifactError if `app.json` is missing or not what it should be."""
        path = folder / APP
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            allowed = {name: math.inf if bound is None else bound for name, bound in value["allowed"].items()}
            return cls(
                model=value["model"],
                score=value["score"],
                constrained=value["constrained"],
                max_tokens=value["max_tokens"],
                calibrator=Calibrator.from_json(value["calibrator"]),
                allowed=Allowed(**allowed),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"the application cannot be read: {error!r}", where=str(path)) from error

    def cascade(self, knowledge: Knowledge, model: Answerer) -> Cascade:
        """The cascade with these thresholds."""
        return Cascade(
            knowledge.rules, model, knowledge.guard, knowledge.lexicon, self.calibrator, self.score, self.allowed
        )


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value == math.inf else value for name, value in values.items()}
