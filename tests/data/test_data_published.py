"""The rules of Gopher, C4 and FineWeb against plain counting, written after the papers' own sentences."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pytest
from data_support import WORDS, prose

from liuyi.data.clean.filters import measure
from liuyi.data.select.published import PUBLISHED, Published
from liuyi.data.select.rules import RULES, Attributes
from liuyi.data.select.thresholds import Thresholds

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def gopher_quality(text: str) -> dict[str, bool]:
    words, lines = text.split(), [line.strip() for line in text.split("\n") if line.strip()]
    return {
        "words": not 50 <= len(words) <= 100_000,
        "mean_word_chars": not 3 <= sum(map(len, words)) / len(words) <= 10,
        "hashes_per_word": text.count("#") / len(words) > 0.1,
        "ellipses_per_word": (text.count("...") + text.count("…")) / len(words) > 0.1,
        "bullet_line_fraction": sum(line[0] in "-•*" for line in lines) / len(lines) > 0.9,
        "ellipsis_line_fraction": sum(line.endswith(("...", "…")) for line in lines) / len(lines) > 0.3,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words) / len(words) < 0.8,
        "gopher_stop_words": len(STOP_WORDS & {word.lower() for word in words}) < 2,
    }


def gopher_repetition(text: str) -> dict[str, bool]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    words = text.lower().split()
    total = sum(map(len, words))
    found = {
        "duplicate_line_fraction": len(again(lines)) / len(lines) > 0.3,
        "duplicate_paragraph_fraction": len(again(paragraphs)) / len(paragraphs) > 0.3,
        "repeated_lines": chars(again(lines)) / chars(lines) > 0.2,
        "repeated_paragraphs": chars(again(paragraphs)) / chars(paragraphs) > 0.2,
    }
    for size, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        counts = Counter(grams(words, size))
        top = max((chars(gram) * times for gram, times in counts.items() if times > 1), default=0)
        found[f"top_{size}gram"] = top / total > limit
    for size, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)):
        seen: set[tuple[str, ...]] = set()
        covered: set[int] = set()
        for start, gram in enumerate(grams(words, size)):
            covered |= set(range(start, start + size)) if gram in seen else set()
            seen.add(gram)
        found[f"repeated_{size}grams"] = sum(len(words[place]) for place in covered) / total > limit
    return found


def c4(text: str) -> dict[str, bool]:
    sentences = 0
    for line in filter(None, map(str.strip, text.split("\n"))):
        ends = line[-1] in ".!?\"'" and not line.endswith("...")
        if ends and len(line.split()) >= 3 and "javascript" not in line.lower() and "cookies" not in line.lower():
            sentences += len(re.findall(r"[.!?]+['\"]*(?=\s|$)", line))
    return {"c4_sentences": sentences < 5, "curly_brackets": "{" in text, "is_placeholder": "lorem ipsum" in text}


def fineweb(text: str) -> dict[str, bool]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return {
        "terminal_lines": sum(line[-1] in ".!?" for line in lines) / len(lines) < 0.12,
        "short_line_fraction": sum(len(line) <= 30 for line in lines) / len(lines) > 0.67,
        "repeated_lines": chars(again(lines)) / chars(lines) > 0.01,
        "newlines_per_word": text.count("\n") / len(text.split()) > 0.3,
    }


def again(items: Sequence[str]) -> list[str]:
    return [item for place, item in enumerate(items) if item in items[:place]]


def grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def chars(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


def page(seed: int) -> str:
    """A page with some of the faults that the rules look for."""
    rng = random.Random(seed)
    lines = prose(seed, rng.choice((1, 1, 30, 60, 200))).split("\n")
    for fault in rng.sample(range(9), rng.randint(1, 3)):
        number = rng.randint(1, 2 * len(lines))
        lines += {
            0: [f"- {word} {rng.randrange(999)}" for word in rng.choices(WORDS, k=4 * number)],
            1: [f"{' '.join(rng.choices(WORDS, k=4))} ..." for _ in range(number)],
            2: [" ".join(str(rng.randrange(10**6)) for _ in range(5)) for _ in range(number)],
            3: [lines[0]] * number,
            4: ["", "\n".join(lines[:3]), "", "\n".join(lines[:3])],
            5: [" ".join(["over and over again"] * number)],
            6: [f"# {word}" for word in rng.choices(WORDS, k=number)],
            7: rng.sample(
                ["x = {1}", "This lorem ipsum dolor sit amet.", "We use cookies here.", "JavaScript is off."], 2
            ),
            8: [word[:2] for word in rng.choices(WORDS, k=3 * number)],
        }[fault]
    return "\n".join(lines)


REFERENCES = {"gopher_quality": gopher_quality, "gopher_repetition": gopher_repetition, "c4": c4, "fineweb": fineweb}


@pytest.mark.parametrize("name", REFERENCES)
def test_each_rule_by_plain_counting(name: Published) -> None:
    texts = [page(seed) for seed in range(150)]
    table = measure(pa.array(texts))
    index = table.schema.get_field_index("lang")
    attributes = Attributes(
        table.set_column(index, "lang", pa.array(["en"] * len(texts))), pa.chunked_array([["MIT"] * len(texts)])
    )
    thresholds = Thresholds(published=(name,))
    expected = [REFERENCES[name](text) for text in texts]
    assert set(expected[0]) == {limit.attribute for limit in PUBLISHED[name]}
    for limit in PUBLISHED[name]:
        (rule,) = (rule for rule in RULES if rule.reason == f"{name}: {limit.attribute}")
        dropped = rule.holds(attributes, thresholds).tolist()
        assert dropped == [one[limit.attribute] for one in expected], limit.attribute
        assert 0 < sum(dropped) < len(texts), limit.attribute
        assert not rule.applies(attributes, Thresholds())


def test_chinese_is_not_asked_for_words_between_spaces() -> None:
    text = "数据库在写入之前会先把修改记录到日志里，这样即使突然断电，重新启动之后也可以恢复到正确的状态。" * 2
    table = measure(pa.array([text]))
    attributes = Attributes(table, pa.chunked_array([["MIT"]]))
    for rule in RULES:
        if rule.reason.startswith("gopher_quality: "):
            assert rule.holds(attributes, Thresholds(published=("gopher_quality",))).tolist() == [False], rule.reason


def test_languages_without_letters_and_empty_texts_are_judged() -> None:
    attributes = Attributes(measure(pa.array(["", "\n", "1 2 3", "。"])), pa.chunked_array([["MIT"] * 4]))
    thresholds = Thresholds(published=tuple(PUBLISHED))
    for rule in RULES:
        if rule.threshold == "published":
            assert len(rule.holds(attributes, thresholds)) == 4
