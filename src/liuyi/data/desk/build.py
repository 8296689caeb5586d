"""The whole desk task from one seed: training and practice rows, and the sets that try what came of them."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

from liuyi.core.cores import cores
from liuyi.core.errors import DataError, did_you_mean
from liuyi.data.desk.answers import answer_schema, hand_off
from liuyi.data.desk.compound import Compound, join_requests, share_words
from liuyi.data.desk.expand import Expander, Sentence
from liuyi.data.desk.facility import LANGUAGES, Facility, Language
from liuyi.data.desk.outside import OutsidePart, outside_requests
from liuyi.data.desk.recognise import Ambiguous, Reading, Recogniser
from liuyi.data.desk.split import Part, split_families
from liuyi.data.desk.style import dress
from liuyi.data.desk.templates import Grammar, Template, load_grammar
from liuyi.data.desk.typos import mistype
from liuyi.data.pool import map_ordered

_PATIENCE = 8
_COMPOUNDS_TRIED = 100
"""For each that is wanted: a small facility has few requests that can be put together."""


@dataclass(frozen=True)
class Plan:
    """How many of what; counts are for both languages together."""

    train_rows: int = 9000
    practice_rows: int = 1200
    test_items: int = 500
    dev_items: int = 400
    familiar_items: int = 150
    typo_items: int = 200
    outside_items: int = 120
    compound_items: int = 100
    test_share: float = 0.15
    dev_share: float = 0.10
    practice_share: float = 0.08
    typo_rows: float = 0.08
    outside_rows: float = 0.06
    compound_rows: float = 0.03
    number_words: float = 0.05


@dataclass(frozen=True)
class Row:
    """A request and the answer that is right."""

    text: str
    answer: str
    language: Language
    cluster: str
    kind: str


@dataclass
class Desk:
    """Everything that `build_desk` makes."""

    facility: Facility
    parts: dict[str, Part]
    """Where each template family went, by cluster id."""
    schema: dict[str, Any]
    rules: dict[str, Any]
    """The training templates of each language, in hassil's form."""
    rows: dict[str, list[Row]]
    """By set: train, practice, dev, test, familiar, typos, outside, compound."""
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many sentences were drawn and left out, by language and reason."""


def build_desk(facility: Facility, plan: Plan, seed: int) -> Desk:
    """Expand, check, split and write out the desk task. The same arguments give the same rows.

    Raises DataError if the facility names an intent that no language has a template for.
    """
    grammars = [load_grammar(language, facility) for language in LANGUAGES]
    unserved = sorted(set(facility.intents) - _intents(grammars))
    if unserved:
        unlimited = facility.model_copy(update={"intents": ()})
        raise DataError(
            f"no template asks for the intent '{unserved[0]}'",
            where="facility: intents",
            hint=did_you_mean(unserved[0], _intents(load_grammar(language, unlimited) for language in LANGUAGES)),
        )
    rows: dict[str, list[Row]] = defaultdict(list)
    parts: dict[str, Part] = {}
    dropped: dict[tuple[str, str], int] = {}
    rules: dict[str, Any] = {}
    jobs = [(language, facility, plan, seed) for language in LANGUAGES]
    for job, writer in zip(jobs, map_ordered(_write, jobs, min(len(jobs), cores())), strict=True):
        for name, found in writer.rows.items():
            rows[name] += found
        parts |= writer.parts
        rules[job[0]] = writer.rules
        dropped |= {(job[0], reason): count for reason, count in writer.dropped.items()}
    schema = answer_schema(grammars, facility)
    return Desk(facility, parts, schema, rules, dict(rows), dropped)


def _intents(grammars: Iterable[Grammar]) -> set[str]:
    return {template.intent for grammar in grammars for template in grammar.templates}


@dataclass(frozen=True)
class _Written:
    """One language's share of the desk."""

    parts: dict[str, Part]
    rules: dict[str, Any]
    rows: dict[str, list[Row]]
    dropped: dict[str, int]


def _write(job: tuple[Language, Facility, Plan, int]) -> _Written:
    language, facility, plan, seed = job
    grammar = load_grammar(language, facility)
    shares: dict[Part, float] = {"test": plan.test_share, "dev": plan.dev_share, "practice": plan.practice_share}
    parts = split_families(grammar.templates, shares, seed)
    rules = grammar.hassil(template for template in grammar.templates if parts[template.cluster] == "train")
    writer = _Writer(grammar, facility, plan, parts, Recogniser(rules), seed)
    return _Written(parts, rules, writer.write(), dict(writer.dropped))


class _Writer:
    """Writes one language's rows."""

    def __init__(
        self, grammar: Grammar, facility: Facility, plan: Plan, parts: dict[str, Part], known: Recogniser, seed: int
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._grammar, self._facility, self._plan, self._parts, self._seed = grammar, facility, plan, parts, seed
        self._language: Language = grammar.language
        self._known = known
        self._everything = Recogniser(grammar.hassil())
        self._expander = Expander(grammar, facility, plan.number_words)
        self._taken: set[str] = set()

    def write(self) -> dict[str, list[Row]]:
        """Held-out sets first: a sentence that is in one of them cannot come again in training."""
        plan, half = self._plan, _half
        test = self._sentences("test", half(plan.test_items))
        dev = self._sentences("dev", half(plan.dev_items))
        familiar = self._sentences("train", half(plan.familiar_items), "familiar")
        fifth = half(plan.dev_items) // 5
        sets = {
            "test": [self._held_out_row(sentence, "test") for sentence in test],
            "familiar": [self._row(sentence, "familiar", "familiar") for sentence in familiar],
            "typos": self._typos(test, half(plan.typo_items), "typos"),
            "outside": self._outside("test", half(plan.outside_items)),
            "compound": self._compounds(test + familiar, half(plan.compound_items), "compound"),
            "dev": [self._held_out_row(sentence, "dev") for sentence in dev]
            + [self._row(sentence, "familiar", "dev") for sentence in self._sentences("train", fifth, "dev")]
            + self._typos(dev, fifth, "dev")
            + self._outside("dev", fifth),
        }
        return sets | {
            "practice": self._training("practice", half(plan.practice_rows)),
            "train": self._training("train", half(plan.train_rows)),
        }

    def _training(self, part: Part, count: int) -> list[Row]:
        plan = self._plan
        outside = self._outside("train", round(count * plan.outside_rows), part)
        several = round(count * plan.compound_rows)
        sentences = self._sentences(part, count - len(outside) - several, fill=True)
        rows = [self._row(sentence, "request", part) for sentence in sentences]
        rng = random.Random(f"rows/{self._seed}/{part}/{self._language}")
        for number, sentence in enumerate(sentences):
            if rng.random() < plan.typo_rows and (spoilt := self._spoil(sentence, rng)):
                rows[number] = Row(spoilt, sentence.answer, self._language, sentence.template.cluster, "typo")
        # Several requests at once are not one of the desk's answers: the application takes them apart first.
        compounds = self._compounds(sentences, several, part) if several else []
        rows += [replace(row, answer=hand_off()) for row in compounds]
        rows += outside
        rng.shuffle(rows)
        return rows

    def _sentences(self, part: Part, count: int, salt: str = "", *, fill: bool = False) -> list[Sentence]:
        """About `count` different sentences of a part's templates; intents with many templates get less for each."""
        templates = [template for template in self._grammar.templates if self._parts[template.cluster] == part]
        if not templates:
            raise DataError(f"no template is left for '{part}' in {self._language}", hint="lower the held-out shares")
        size = Counter(template.intent for template in templates)
        weights = [size[template.intent] ** -0.5 for template in templates]
        found: list[Sentence] = []
        rng = random.Random(f"sentences/{self._seed}/{part}{salt}/{self._language}")
        for template, wanted in zip(templates, _shares(weights, count), strict=True):
            found += self._drawn(template, wanted, rng)
        if fill:
            for _ in range(count):
                if len(found) >= count:
                    break
                found += self._drawn(rng.choices(templates, weights)[0], 1, rng)
        return found

    def _drawn(self, template: Template, wanted: int, rng: random.Random) -> list[Sentence]:
        found: list[Sentence] = []
        for _ in range(wanted * _PATIENCE):
            if len(found) == wanted:
                break
            sentence = self._expander.draw(template, rng)
            if sentence is None:
                self.dropped["unnatural wording"] += 1
            elif (key := _key(sentence.text)) in self._taken:
                self.dropped["already drawn"] += 1
            elif reason := self._disagreement(sentence):
                self.dropped[reason] += 1
            else:
                self._taken.add(key)
                found.append(sentence)
        return found

    def _disagreement(self, sentence: Sentence) -> str:
        """Why hassil, knowing every template, does not read the sentence as it was meant; empty if it does."""
        match self._everything.read(sentence.text):
            case None:
                return "not recognised"
            case Ambiguous():
                return "ambiguous"
            case Reading(answer=found) if found != sentence.answer:
                return "another reading is better"
        return ""

    def _row(self, sentence: Sentence, kind: str, salt: str) -> Row:
        rng = random.Random(f"style/{self._seed}/{salt}/{sentence.text}")
        text = dress(sentence.text, self._language, rng, free_text=sentence.free_text)
        return Row(text, sentence.answer, self._language, sentence.template.cluster, kind)

    def _held_out_row(self, sentence: Sentence, salt: str) -> Row:
        """`covered` if a training template happens to read the sentence too, `new` if none does."""
        reading = self._known.read(sentence.text)
        covered = isinstance(reading, Reading) and reading.answer == sentence.answer
        return self._row(sentence, "covered" if covered else "new", salt)

    def _typos(self, sentences: list[Sentence], count: int, salt: str) -> list[Row]:
        rng = random.Random(f"typos/{self._seed}/{salt}/{self._language}")
        rows: list[Row] = []
        order = list(sentences)
        rng.shuffle(order)
        for sentence in order:
            if len(rows) == count:
                break
            if spoilt := self._spoil(sentence, rng):
                rows.append(Row(spoilt, sentence.answer, self._language, sentence.template.cluster, "typo"))
        return rows

    def _spoil(self, sentence: Sentence, rng: random.Random) -> str | None:
        """The sentence with a typing error that does not make another request of it."""
        if sentence.free_text:
            return None
        spoilt = mistype(sentence.text, self._language, rng)
        if spoilt is None or _key(spoilt) in self._taken:
            return None
        reading = self._everything.read(spoilt)
        if reading is not None and not (isinstance(reading, Reading) and reading.answer == sentence.answer):
            return None
        self._taken.add(_key(spoilt))
        return spoilt

    def _outside(self, part: OutsidePart, count: int, salt: str = "") -> list[Row]:
        seed = self._seed if not salt else random.Random(f"{self._seed}/{salt}").randrange(2**32)
        rows: list[Row] = []
        source = outside_requests(part, self._grammar, self._facility, self._everything, seed)
        for sentence, _ in zip(source, range(count * 20), strict=False):
            if len(rows) == count:
                break
            if (key := _key(sentence.text)) not in self._taken:
                self._taken.add(key)
                rows.append(self._row(sentence, "outside", f"outside/{part}"))
        return rows

    def _compounds(self, sentences: list[Sentence], count: int, salt: str) -> list[Row]:
        rng = random.Random(f"compound/{self._seed}/{salt}/{self._language}")
        whole = [sentence for sentence in sentences if not sentence.free_text]
        rows: list[Row] = []
        for number, _ in zip(cycle(range(3)), range(count * _COMPOUNDS_TRIED), strict=False):
            if len(rows) == count:
                break
            made: Compound | None = None
            if number == 0:
                made = share_words(self._facility, self._language, rng)
            elif len(whole) >= 3:
                made = join_requests(rng.sample(whole, rng.choice((2, 2, 3))), self._language, rng)
            if made is not None and (key := _key(made.text)) not in self._taken:
                self._taken.add(key)
                kind = "shared" if made.shared else "joined"
                rows.append(Row(made.text, made.reference, self._language, f"compound.{number}.{key}", kind))
        return rows


def _half(count: int) -> int:
    """A language's share of a count."""
    return max(1, round(count / len(LANGUAGES)))


def _key(text: str) -> str:
    """What two sentences share that differ in capitals, spaces and punctuation only."""
    return re.sub(r"[\W_]+", "", text.casefold())


def _shares(weights: list[float], count: int) -> list[int]:
    """`count` divided by weight, by carrying what rounding leaves to the next; some may get none."""
    total, carried, shares = sum(weights), 0.0, []
    for weight in weights:
        carried += count * weight / total
        shares.append(int(carried + 0.5))
        carried -= shares[-1]
    return shares
