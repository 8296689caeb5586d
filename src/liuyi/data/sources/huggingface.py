"""Documents from any data set of the Hugging Face hub, streamed, by the library `datasets` (the extra of that name)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.corpus import Document, Rejected
from liuyi.data.licences import UNKNOWN, from_name
from liuyi.data.sources.files import OPTIONAL_FIELDS, Reading, document_of_row
from liuyi.data.sources.tables import TableRow


def open_dataset(name: str, config: str, split: str, revision: str) -> Any:
    """A data set as a stream of rows.

    Raises DataError where `datasets` is missing, or the data set cannot be found, reached or read.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data sets of the hub are read by the library datasets, which is not installed",
            hint="pip install 'liuyi[datasets]'",
        ) from None
    try:
        return datasets.load_dataset(name, config or None, split=split, revision=revision or None, streaming=True)
    except Exception as error:  # the library, the hub's client and the format's reader each have errors of their own
        raise DataError(f"the data set cannot be opened: {_said(error)}", where=name, hint=_HINT) from None


def read_dataset(
    dataset: Any, name: str, place: str, reading: Reading, max_rows: int | None
) -> Iterator[Document | Rejected]:
    """The documents of a data set, row by row; `place` is the address that a row's number completes.

    Raises DataError where the stream breaks off: a part of a data set is not published as the whole.
    """
    columns = dataset.column_names
    if columns is not None:
        if reading.text_field not in columns:
            raise DataError(
                f"there is no field '{reading.text_field}'",
                where=name,
                hint=f"the fields are {', '.join(sorted(columns))}",
            )
        dataset = dataset.select_columns(
            [field for field in (reading.text_field, *OPTIONAL_FIELDS) if field in columns]
        )
    rows = iter(dataset if max_rows is None else dataset.take(max_rows))
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"breaks off after row {number}: {_said(error)}", where=name, hint=_HINT) from None
        number += 1
        yield document_of_row(TableRow(number, number, row), place, name, reading)


def stated_licence(dataset: Any, given: str) -> str:
    """The licence that the user gives, else the one that the data set's card states."""
    if given != UNKNOWN:
        return given
    stated = getattr(dataset.info, "license", "") or ""
    return from_name(stated) if isinstance(stated, str) else UNKNOWN


_HINT = "check the name, the split and the network; HF_HOME holds what was fetched before"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
