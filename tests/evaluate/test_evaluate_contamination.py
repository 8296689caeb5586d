"""Items that the training data holds are flagged, and no others."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.core.overlap import FEWEST_WORDS
from liuyi.evaluate.contamination import contaminated, training_texts

tokens = st.lists(st.sampled_from(["a", "b", "c", "灯", "关"]), max_size=12)


def found(prompts: list[str], *texts: str, ngram: int = 13) -> set[int]:
    return set(contaminated(prompts, enumerate(texts), ngram=ngram))


def test_a_whole_short_prompt_is_found_within_a_text() -> None:
    prompts = ["turn on the kitchen lights", "把厨房的灯关掉", "open the blue door slowly"]
    text = 'He said: "Turn on the KITCHEN lights!" and then 请把 厨房的灯关掉。'
    assert found(prompts, "nothing here", text) == {0, 1}


def test_a_long_prompt_is_found_by_thirteen_words_in_a_row() -> None:
    prompt = " ".join(f"w{n}" for n in range(30))
    assert found([prompt], " ".join(f"w{n}" for n in range(5, 18))) == {0}
    assert found([prompt], " ".join(f"w{n}" for n in range(5, 17))) == set()
    assert found([prompt], " ".join(f"w{n}" for n in range(5, 17)), ngram=12) == {0}


def test_very_short_prompts_need_a_text_of_their_own() -> None:
    assert found(["lights on"], "turn the lights on now", "so lights on it is") == set()
    assert found(["lights on"], "Lights on!") == {0}
    assert found([""], "") == set()


@settings(max_examples=200)
@given(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, max_size=4), st.integers(4, 7))
def test_the_index_finds_what_a_plain_search_finds(
    prompts: list[list[str]], texts: list[list[str]], ngram: int
) -> None:
    def runs(sequence: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(sequence[at : at + length]) for at in range(len(sequence) - length + 1)}

    expected = set()
    for item, prompt in enumerate(prompts):
        length = min(ngram, len(prompt))
        if length >= FEWEST_WORDS:
            if any(runs(prompt, length) & runs(text, length) for text in texts):
                expected.add(item)
        elif prompt and prompt in texts:
            expected.add(item)
    assert found([" ".join(p) for p in prompts], *(" ".join(t) for t in texts), ngram=ngram) == expected


def test_training_texts_of_each_kind(publish) -> None:
    messages = json.dumps([{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}])
    corpus = publish("corpus", documents__parquet=pa.table({"id": ["d"], "text": ["some text"]}))
    chats = publish("chats", chats__parquet=pa.table({"id": ["c"], "messages": [messages]}))
    preferences = publish("preferences", preferences__parquet=pa.table({"id": ["p"], "prompt": [messages]}))
    assert list(training_texts("corpus", corpus.path)) == [("d", "some text")]
    assert list(training_texts("chats", chats.path)) == [("c", "hello there"), ("c", "hi")]
    assert list(training_texts("preferences", preferences.path)) == [("p", "hello there"), ("p", "hi")]
    with pytest.raises(DataError, match="holds no text"):
        list(training_texts("tokens", corpus.path))
