"""From a sentence back to its answer, by hassil and a set of templates.

hassil tries every template on every sentence. Here only those are tried that can match at all: the sentence holds the
words that the template cannot do without, and a room, a floor, a device of the right domain or a number where it needs
one. The results are the same in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from liuyi.data.desk.answers import answer

if TYPE_CHECKING:
    from hassil.expression import Expression
    from hassil.intents import Intent, IntentData, Intents
    from hassil.recognize import RecognizeResult


_BREAKS = str.maketrans("-_", "  ")


@dataclass(frozen=True)
class Reading:
    """How a sentence was understood: the answer, and the families of the templates that say so."""

    answer: str
    clusters: tuple[str, ...]
    free_text: bool


@dataclass(frozen=True)
class Ambiguous:
    """Templates that fit the sentence equally well say different things."""

    answers: tuple[str, ...]


class Recogniser:
    """Answers for sentences of one language, from a grammar in hassil's form (`Grammar.hassil`)."""

    def __init__(self, grammar: Mapping[str, Any]) -> None:
        from hassil import Intents
        from hassil.recognize import recognize_all
        from hassil.util import CJK_WHITESPACE, normalize_for_matching

        self._recognize_all = recognize_all
        self._normalise = normalize_for_matching
        self._cjk_whitespace = CJK_WHITESPACE
        self._intents = Intents.from_dict(dict(grammar))
        self._blocks: list[tuple[Intent, IntentData]] = []
        needing: dict[frozenset[str], int] = {}
        names = _Surfaces(grammar)
        for intent in self._intents.intents.values():
            for block in intent.data:
                (sentence,) = block.sentences
                words = sentence.get_required_clauses(self._intents.expansion_rules)
                lists = _needed_lists(sentence.expression, self._intents)
                for clause in words | names.clauses(lists, block.requires_context.get("domain", ())):
                    needing[clause] = needing.get(clause, 0) | 1 << len(self._blocks)
                self._blocks.append((intent, block))
        self._needing = list(needing.items())
        self._fragments = sorted(frozenset().union(*needing))

    def readings(self, text: str) -> list[RecognizeResult]:
        """Everything that hassil makes of the sentence."""
        from hassil.intents import Intent, Intents

        narrowed: dict[str, Intent] = {}
        for number in self._candidates(text):
            intent, block = self._blocks[number]
            narrowed.setdefault(intent.name, Intent(intent.name)).data.append(block)
        if not narrowed:
            return []
        intents = Intents(
            language=self._intents.language,
            intents=narrowed,
            slot_lists=self._intents.slot_lists,
            expansion_rules=self._intents.expansion_rules,
            skip_words=self._intents.skip_words,
            settings=self._intents.settings,
        )
        return list(self._recognize_all(text, intents))

    def read(self, text: str) -> Reading | Ambiguous | None:
        """The best reading: a device's name before other readings, then less free text, then more words matched.

        None if no template fits.
        """
        ranked: dict[tuple[int, ...], dict[str, set[str]]] = {}
        for result in self.readings(text):
            slots = {entity.name: entity.value for entity in result.entities_list}
            key = _rank(result)
            metadata = result.intent_metadata or {}
            found = ranked.setdefault(key, {}).setdefault(answer(result.intent.name, slots), set())
            found.add(str(metadata.get("cluster", "")))
        if not ranked:
            return None
        best = ranked[min(ranked)]
        if len(best) > 1:
            return Ambiguous(tuple(sorted(best)))
        (text_of_answer, clusters), *_ = best.items()
        return Reading(text_of_answer, tuple(sorted(clusters)), free_text=min(ranked)[1] > 0)

    def _candidates(self, text: str) -> list[int]:
        plain = self._normalise(text).text.casefold()
        # hassil takes "living-room" for "living room".
        haystack = "\n".join((plain, plain.translate(_BREAKS), self._cjk_whitespace.sub("", plain)))
        present = {fragment for fragment in self._fragments if fragment in haystack}
        ruled_out = 0
        for clause, blocks in self._needing:
            if clause.isdisjoint(present):
                ruled_out |= blocks
        return [number for number in range(len(self._blocks)) if not ruled_out >> number & 1]


class _Surfaces:
    """What must stand in a sentence for a slot list to match in it, as clauses: one of these fragments."""

    def __init__(self, grammar: Mapping[str, Any]) -> None:
        from hassil.numbers import get_rbnf_engine

        self._lists = grammar["lists"]
        engine = get_rbnf_engine(grammar["language"])
        words = {word for number in range(101) for word in _spoken(engine, number)}
        if grammar.get("settings", {}).get("ignore_whitespace"):
            words = {char for word in words for char in word}
        self._numbers = frozenset("0123456789") | words

    def clauses(self, lists: Iterable[str], domains: Collection[str]) -> frozenset[frozenset[str]]:
        return frozenset(filter(None, (self._clause(name, domains) for name in lists)))

    def _clause(self, name: str, domains: Collection[str]) -> frozenset[str]:
        found = self._lists.get(name, {})
        if "range" in found:
            return self._numbers
        if name not in ("area", "floor", "name"):
            return frozenset()
        return frozenset(
            value["in"].casefold()
            for value in found["values"]
            if name != "name" or not domains or value["context"]["domain"] in domains
        )


def _spoken(engine: Any, number: int) -> Iterator[str]:
    for text in engine.format_number(number).text_by_ruleset.values():
        yield from text.casefold().replace("-", " ").split()


def _needed_lists(node: Expression, intents: Intents) -> frozenset[str]:
    """The slot lists without which the expression cannot match."""
    from hassil.expression import Alternative, Group, ListReference, RuleReference

    match node:
        case ListReference():
            return frozenset({node.list_name})
        case RuleReference():
            return _needed_lists(intents.expansion_rules[node.rule_name].expression, intents)
        case Alternative():
            return frozenset.intersection(*(_needed_lists(item, intents) for item in node.items))
        case Group():
            return frozenset().union(*(_needed_lists(item, intents) for item in node.items))
    return frozenset()


def _rank(result: RecognizeResult) -> tuple[int, ...]:
    named = result.entities.get("name")
    wildcards = [entity for entity in result.entities_list if entity.is_wildcard]
    return (
        -len(named.text) if named is not None and not named.is_wildcard else 0,
        len(wildcards),
        -result.text_chunks_matched,
        sum(len(entity.text or "") for entity in wildcards),
    )
