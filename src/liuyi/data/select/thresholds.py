"""The thresholds of selection, each beside the attribute that it judges."""

from __future__ import annotations

from pydantic import Field

from liuyi.core.step import Params
from liuyi.data.select.published import Published


class Thresholds(Params):
    """What a document must be to be kept. The defaults suit documentation and articles, English and Chinese."""

    drop_duplicates: bool = Field(True, description="keep one document of each group of duplicates, of whatever kind")
    min_similarity: float = Field(
        0.8, ge=0, le=1, description="near duplicates less similar than this (Jaccard of 5-grams) are kept"
    )
    min_semantic_similarity: float = Field(
        0.95, ge=0, le=1, description="semantic duplicates less similar than this (cosine) are kept"
    )
    drop_contaminated: bool = Field(
        True, description="drop documents that hold items of eval sets, where data.decontaminate looked for them"
    )
    languages: tuple[str, ...] = Field(("en", "zh"), description="ISO 639 codes to keep; empty keeps all")
    min_language_score: float = Field(
        0.5, ge=0, le=1, description="a document is dropped for its language only if detected with this probability"
    )
    licenses: tuple[str, ...] = Field(
        (), description="licences to keep, as SPDX identifiers or families such as BSD-*; empty keeps all"
    )
    min_words: int = Field(40, ge=0, description="shorter documents are dropped; a Han character is a word")
    min_mean_word_chars: float = Field(3.0, ge=0, description="of words that are not Chinese")
    max_mean_word_chars: float = Field(14.0, gt=0, description="of words that are not Chinese")
    min_stop_words: int = Field(2, ge=0, le=12, description="different English stop words in an English document")
    min_alpha_ratio: float = Field(0.5, ge=0, le=1, description="letters among visible characters")
    max_digit_ratio: float = Field(0.3, ge=0, le=1, description="digits among visible characters")
    max_symbol_ratio: float = Field(0.4, ge=0, le=1, description="punctuation and symbols among visible characters")
    max_broken_ratio: float = Field(0.005, ge=0, le=1, description="characters that a wrong decoding leaves")
    max_code_lines: float = Field(0.8, ge=0, le=1, description="share of text in lines of code")
    max_table_lines: float = Field(0.5, ge=0, le=1, description="share of text in tables and rules")
    max_bullet_lines: float = Field(0.9, ge=0, le=1, description="share of text in list items")
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1, description="share of text in lines cut off by an ellipsis")
    max_short_lines: float = Field(0.67, ge=0, le=1, description="share of lines shorter than 10 characters")
    max_policy_lines: float = Field(
        0.5, ge=0, le=1, description="share of text in lines about cookies, terms of use, privacy or JavaScript"
    )
    max_link_lines: float = Field(0.3, ge=0, le=1, description="share of text in lines that are links")
    max_repeated_lines: float = Field(0.5, ge=0, le=1, description="share of text in lines seen before in it")
    max_repeated_paragraphs: float = Field(0.5, ge=0, le=1, description="share of text in paragraphs seen before in it")
    max_top_ngram: float = Field(0.25, ge=0, le=1, description="share of text in the most frequent 2-, 3- or 4-gram")
    max_repeated_ngrams: float = Field(0.6, ge=0, le=1, description="share of text in 10-grams seen before in it")
    max_run_ratio: float = Field(0.1, ge=0, le=1, description="share of text in runs of one letter or full-width mark")
    max_licence_ratio: float = Field(0.35, ge=0, le=1, description="share of text in lines that speak like a licence")
    drop_generated: bool = Field(True, description="drop short documents that say a program wrote them")
    drop_placeholder: bool = Field(True, description="drop lorem ipsum")
    min_han_ratio: float = Field(
        0.3, ge=0.1, le=1, description="a document with more Han characters than this is judged by the Chinese rules"
    )
    min_zh_punctuation: float = Field(0.015, ge=0, description="punctuation marks per Han character")
    max_zh_punctuation: float = Field(0.6, gt=0, description="punctuation marks per Han character")
    min_zh_function_chars: float = Field(0.05, ge=0, description="share of Han characters that grammar needs")
    min_zh_word_pairs: float = Field(
        0.2, ge=0, le=1, description="share of neighbouring Han characters that belong together in a common word"
    )
    max_zh_phrases: float = Field(
        0.03, ge=-1, le=1, description="share of text in phrases of advertising and web pages, less that of grammar"
    )
    max_mixed_script: float = Field(
        0.05, ge=0, le=0.5, description="share of Chinese in characters of the script that is used less"
    )
    min_quality_score: float | None = Field(
        None, ge=0, le=1, description="probability of being good, by the classifier of data.score"
    )
    max_quality_rank: float | None = Field(
        None, gt=0, le=1, description="keep the best: 0.3 keeps the best 30 % of the bytes that data.score saw"
    )
    min_perplexity: float | None = Field(
        None, ge=1, description="of data.perplexity, a token; what is below is often boilerplate or repeats itself"
    )
    max_perplexity: float | None = Field(
        None, ge=1, description="of data.perplexity, a token; what is above is often no language"
    )
    published: tuple[Published, ...] = Field(
        (), description="sets of rules to apply as they were published, beside the thresholds here"
    )
    drop_blocked_urls: bool = Field(
        True, description="drop documents whose address is on the list of data.lists, where it was looked up"
    )
    max_bad_words: int | None = Field(None, ge=0, description="occurrences of words on the list of data.lists")
    max_bad_word_ratio: float | None = Field(
        None, ge=0, le=1, description="share of text in words on the list of data.lists"
    )
