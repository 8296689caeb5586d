"""The filters: each a small function from a batch of documents to attributes. It measures; it drops nothing.

A filter gives one array an attribute, one row a document. To add one, write the function and name it in `FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from liuyi.data.clean import boilerplate, c4, chinese, language, layout, pii, quality, repetition, script
from liuyi.data.clean.batch import Batch
from liuyi.data.dedup.exact import fingerprints

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Filter:
    """A named measurement: which attributes of which types it gives, and how."""

    name: str
    attributes: Mapping[str, pa.DataType]
    measure: Callable[[Batch], Columns]


_RATIO = pa.float32()
_COUNT = pa.int64()


def size(batch: Batch) -> Columns:
    """The UTF-8 bytes of each text."""
    return {"bytes": pc.binary_length(batch.texts)}


FILTERS: tuple[Filter, ...] = (
    Filter("size", {"bytes": _COUNT}, size),
    Filter("language", {"lang": pa.string(), "lang_score": _RATIO}, language.languages),
    Filter("quality", dict(quality.ATTRIBUTES), quality.quality),
    Filter("layout", dict.fromkeys(layout.ATTRIBUTES, _RATIO), layout.layout),
    Filter("c4", dict(c4.ATTRIBUTES), c4.c4),
    Filter("chinese", dict.fromkeys(chinese.ATTRIBUTES, _RATIO), chinese.chinese),
    Filter("script", dict(script.ATTRIBUTES), script.script),
    Filter("repetition", dict.fromkeys(repetition.ATTRIBUTES, _RATIO), repetition.repetition),
    Filter("boilerplate", dict(boilerplate.ATTRIBUTES), boilerplate.boilerplate),
    Filter("pii", {"pii": pii.SPANS}, pii.spans_column),
    Filter("exact", {"fingerprint": pa.string()}, fingerprints),
)


def schema(filters: tuple[Filter, ...] = FILTERS) -> pa.Schema:
    """The attributes that the filters give, in their order."""
    return pa.schema([field for one in filters for field in one.attributes.items()])


def measure(texts: pa.Array, filters: tuple[Filter, ...] = FILTERS) -> pa.Table:
    """All attributes of a batch of texts."""
    batch = Batch(texts)
    columns: list[pa.Array] = []
    for one in filters:
        given = one.measure(batch)
        columns += [pa.array(given[name], type=kind) for name, kind in one.attributes.items()]
    return pa.Table.from_arrays(columns, schema=schema(filters))
