"""Rules as they were published, with the thresholds of their papers: Gopher, C4 and FineWeb.

They were made for web pages in English. `data.select` applies those that its parameter `published` names, beside its
own thresholds. A Han character counts as a word; what presumes words between spaces is not asked of Chinese.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Published = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]


@dataclass(frozen=True)
class Limit:
    """What an attribute must be: at least `low` and at most `high`."""

    attribute: str
    low: float | None = None
    high: float | None = None
    spaced: bool = False
    """Whether the rule presumes words between spaces."""
    english: bool = False


PUBLISHED: Mapping[Published, tuple[Limit, ...]] = {
    # Rae et al. 2021, Scaling Language Models: Methods, Analysis & Insights from Training Gopher, section A.1.1
    "gopher_quality": (
        Limit("words", 50, 100_000),
        Limit("mean_word_chars", 3, 10, spaced=True),
        Limit("hashes_per_word", high=0.1),
        Limit("ellipses_per_word", high=0.1),
        Limit("bullet_line_fraction", high=0.9),
        Limit("ellipsis_line_fraction", high=0.3),
        Limit("alpha_words", 0.8),
        Limit("gopher_stop_words", 2, english=True),
    ),
    # the same, table A1
    "gopher_repetition": (
        Limit("duplicate_line_fraction", high=0.3),
        Limit("duplicate_paragraph_fraction", high=0.3),
        Limit("repeated_lines", high=0.2),
        Limit("repeated_paragraphs", high=0.2),
        Limit("top_2gram", high=0.2, spaced=True),
        Limit("top_3gram", high=0.18, spaced=True),
        Limit("top_4gram", high=0.16),
        Limit("repeated_5grams", high=0.15),
        Limit("repeated_6grams", high=0.14),
        Limit("repeated_7grams", high=0.13),
        Limit("repeated_8grams", high=0.12),
        Limit("repeated_9grams", high=0.11),
        Limit("repeated_10grams", high=0.1),
    ),
    # Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, section 2.2
    "c4": (
        Limit("c4_sentences", 5),
        Limit("curly_brackets", high=0),
        Limit("is_placeholder", high=0),
    ),
    # Penedo et al. 2024, The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale, section 3.6
    "fineweb": (
        Limit("terminal_lines", 0.12),
        Limit("short_line_fraction", high=0.67),
        Limit("repeated_lines", high=0.01),
        Limit("newlines_per_word", high=0.3),
    ),
}
