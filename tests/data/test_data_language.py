"""Languages: of documents by fastText, of short texts by lingua, and what is no language."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, prose, run_step

from liuyi.core.errors import DataError
from liuyi.data.clean.batch import Batch
from liuyi.data.clean.language import UNDETERMINED, languages, samples
from liuyi.data.clean.short_language import measure_group
from liuyi.data.corpus import ATTRIBUTES

SHORT = {
    "en": "Where is the nearest station?",
    "de": "Der Zug kommt heute nicht.",
    "fr": "Je ne sais pas encore.",
    "es": "¿Dónde está la biblioteca?",
    "zh": "今天天气很好。",
    "ja": "今日はいい天気です。",
    "ko": "오늘은 날씨가 좋습니다.",
    "ru": "Где находится библиотека?",
}


def test_documents() -> None:
    texts = [3 * text for text in SHORT.values()]
    found = languages(Batch(pa.array([*texts, "", "1234 5678", ">>> print(x)\n>>> y = 2"])))
    assert found["lang"] == [*SHORT, UNDETERMINED, UNDETERMINED, UNDETERMINED]
    assert all(score > 0.5 for score in found["lang_score"][: len(SHORT)])
    assert found["lang_score"][len(SHORT) :] == [0.0] * 3


def test_what_is_looked_at() -> None:
    text = "See https://example.com/path for **more**.\n>>> import os\n\tIt costs 42 \u3000 euros.\n"
    (sample,) = samples(pa.array([text])).to_pylist()
    assert sample == "See for more . It costs euros."
    (long,) = samples(pa.array(["word " * 1000])).to_pylist()
    assert len(long) == 400


@pytest.mark.slow
def test_short_texts_by_lingua(tmp_path: Path) -> None:
    documents = [document(text, path=lang) for lang, text in SHORT.items()]
    documents += [document(prose(1), path="long"), document("42", path="number")]
    made = run_step("data.language", tmp_path / "run", {"corpus": corpus(tmp_path / "corpus", documents)})
    table = pq.read_table(made.made["corpus"].path / ATTRIBUTES)
    assert table["lang"].to_pylist() == [*SHORT, "en", UNDETERMINED]
    assert table["lang_score"].to_pylist()[-1] == 0


def test_lingua_chooses_among_the_languages_named(tmp_path: Path) -> None:
    table = measure_group(("en", "pt"), 200, pa.table({"text": [SHORT["es"]]}))
    assert table["lang"].to_pylist() == ["pt"]
    given = {"corpus": corpus(tmp_path / "corpus", [document(prose(1))])}
    with pytest.raises(DataError, match="does not know tlh"):
        run_step("data.language", tmp_path / "wrong", given, languages=("en", "tlh"))
