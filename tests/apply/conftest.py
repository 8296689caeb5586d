"""What tests of the application share: the facility's rules, and a model that says what a test wants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from liuyi.apply.app import Knowledge
from liuyi.apply.calibrate import Calibrator
from liuyi.apply.cascade import Allowed, Cascade
from liuyi.apply.model_rung import ModelAnswer
from liuyi.data.desk.answers import answer_schema, hand_off
from liuyi.data.desk.facility import LANGUAGES, Facility
from liuyi.data.desk.templates import load_grammar


class Parrot:
    """A model that knows some requests by heart, with the confidence that it is told; the rest it hands off."""

    def __init__(self, known: Mapping[str, tuple[str, float]]) -> None:
        self.known = known
        self.asked: list[str] = []

    def answer(
        self, requests: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ModelAnswer]:
        self.asked += requests
        said = [self.known.get(text, (hand_off(), 0.9)) for text in requests]
        return [ModelAnswer(text, (math.log(max(p, 1e-9)),), 7, True) for text, p in said]


@pytest.fixture(scope="session")
def desk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rules, facility and schema of a desk that serves every intent; the rules lack everything about vacuums."""
    folder = tmp_path_factory.mktemp("desk")
    facility = Facility.load().model_copy(update={"intents": ()})
    grammars = [load_grammar(language, facility) for language in LANGUAGES]
    rules: dict[str, Any] = {
        grammar.language: grammar.hassil(t for t in grammar.templates if not t.intent.startswith("HassVacuum"))
        for grammar in grammars
    }
    (folder / "rules.json").write_text(json.dumps({"languages": rules}))
    (folder / "facility.json").write_text(facility.model_dump_json())
    (folder / "schema.json").write_text(json.dumps(answer_schema(grammars, facility)))
    return folder


@pytest.fixture(scope="session")
def knowledge(desk_folder: Path) -> Knowledge:
    return Knowledge.load(desk_folder)


@pytest.fixture(scope="session")
def make_cascade(knowledge: Knowledge) -> Callable[..., Cascade]:
    """A cascade over a parrot: its confidence is what the parrot was told."""

    def make(known: Mapping[str, tuple[str, float]] | None = None, **allowed: float) -> Cascade:
        bounds = {
            "risk": 0.05,
            "guarded_risk": 0.02,
            "rules_bound": 0.01,
            "free_text_bound": 0.04,
            "model_threshold": 0.7,
            "guarded_threshold": 0.9,
        }
        calibrator = Calibrator("platt", (1.0, 0.0))  # a probability is its own confidence
        return Cascade(
            knowledge.rules,
            Parrot(known or {}),
            knowledge.guard,
            knowledge.lexicon,
            calibrator,
            "sum",
            Allowed(**{**bounds, **allowed}),
        )

    return make
