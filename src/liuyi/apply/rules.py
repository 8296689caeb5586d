"""The first rung: sentence templates, matched by hassil. It answers what it knows word for word, or abstains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from liuyi.apply.language import language_of
from liuyi.core.errors import ArtifactError
from liuyi.data.desk.recognise import Ambiguous, Recogniser


@dataclass(frozen=True)
class RuleAnswer:
    """What the templates make of a sentence, and which of them say so."""

    answer: str
    clusters: tuple[str, ...]
    free_text: bool
    """Whether a part of the sentence was taken as free text: such templates fit more than they should."""


@dataclass(frozen=True)
class Abstained:
    """The templates say nothing, or several things."""

    reason: Literal["no template fits", "templates disagree", "language has no templates"]


class RuleBook:
    """Templates of one or more languages; each is compiled when the first sentence in it comes."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        """`rules` are the contents of `rules.json`: under `languages` a grammar for each, in hassil's form."""
        self._grammars: Mapping[str, Any] = rules["languages"]
        self._recognisers: dict[str, Recogniser] = {}

    @classmethod
    def load(cls, path: Path) -> RuleBook:
        """Read `rules.json`. Raises ArtifactError if it is not there or holds something else."""
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"the rules cannot be read: {error!r}", where=str(path), hint="they come with the chats of data.desk"
            ) from error

    def read(self, text: str) -> RuleAnswer | Abstained:
        """The answer of the best fitting template, if one fits and no other that fits as well says otherwise."""
        language = language_of(text)
        if language not in self._grammars:
            return Abstained("language has no templates")
        if language not in self._recognisers:
            self._recognisers[language] = Recogniser(self._grammars[language])
        reading = self._recognisers[language].read(text)
        if reading is None:
            return Abstained("no template fits")
        if isinstance(reading, Ambiguous):
            return Abstained("templates disagree")
        return RuleAnswer(reading.answer, reading.clusters, reading.free_text)
