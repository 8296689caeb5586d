"""The language of short texts by lingua (https://github.com/pemistahl/lingua-rs), which knows it by n-grams of letters.

fastText's model was made for sentences and longer; of a few words lingua tells the language better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from liuyi.core.errors import DataError
from liuyi.data.clean.batch import Batch
from liuyi.data.clean.language import UNDETERMINED, is_chinese, languages, samples

SCHEMA = pa.schema({"lang": pa.string(), "lang_score": pa.float32()})


def check(codes: Sequence[str]) -> None:
    """Raises DataError where lingua is not installed or does not know a language."""
    try:
        from lingua import IsoCode639_1
    except ImportError as error:
        raise DataError("lingua is not installed", hint="pip install 'liuyi[language]'") from error
    unknown = [code for code in codes if not hasattr(IsoCode639_1, code.upper())]
    if unknown:
        raise DataError(f"lingua does not know {', '.join(unknown)}", hint="name ISO 639-1 codes, such as en or zh")


def measure_group(codes: tuple[str, ...], max_chars: int, group: pa.Table) -> pa.Table:
    """From the column `text` of documents to `lang` and `lang_score`.

    Texts of at most `max_chars` are told by lingua, among the languages `codes`; what is Chinese by its characters, and
    longer texts, as `languages` tells them.
    """
    batch = Batch(group["text"].combine_chunks().fill_null(""))
    found = languages(batch)
    rows = np.flatnonzero((batch.chars <= max_chars) & ~is_chinese(batch))
    lines = samples(batch.texts.take(pa.array(rows))).to_pylist()
    told = _detector(codes).compute_language_confidence_values_in_parallel(lines)
    for row, values in zip(rows.tolist(), told, strict=True):
        likeliest = values[0] if values and values[0].value else None
        found["lang"][row] = likeliest.language.iso_code_639_1.name.lower() if likeliest else UNDETERMINED
        found["lang_score"][row] = likeliest.value if likeliest else 0.0
    return pa.table(found, schema=SCHEMA)


@cache
def _detector(codes: tuple[str, ...]) -> Any:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_iso_codes_639_1(
        *(getattr(IsoCode639_1, code.upper()) for code in codes)
    ).build()
