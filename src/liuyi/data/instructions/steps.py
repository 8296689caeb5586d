"""Where instruction and preference data meet the spine: their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Output, Params, step
from liuyi.data.sources.location import Location, remote_version

if TYPE_CHECKING:
    import pyarrow as pa

    from liuyi.data.instructions.convert import Converted, Entry

_FILES = "a file, a folder or a URL; json, jsonl, csv, tsv or parquet, also as gz, zst, xz and bz2"


class ChatsParams(Params):
    path: Location = Field(description=f"{_FILES}: messages, prompt/completion, alpaca or sharegpt")
    license: str = Field("unknown", description="the licence of the conversations")
    heldout_fraction: float = Field(0.1, ge=0, lt=1, description="part of the conversations held out, by their prompts")


@step(
    "data.chats_file",
    version=3,
    inputs={},
    outputs={
        "train": Output("chats", "rejected.parquet beside it names each row that was wrong"),
        "heldout": Output("evalset", "the last answer of each conversation held out, scored by exact match"),
    },
    fingerprint=lambda params: remote_version(params.path),
)
def chats_file(ctx: Context, params: ChatsParams) -> None:
    """Conversations from files of your own; the format is found out."""
    import shutil

    from liuyi.data.corpus import REJECTED
    from liuyi.data.instructions.convert import chat_entry
    from liuyi.data.instructions.tables import CHATS, chats_schema, held_out, write_evalset, write_rows
    from liuyi.data.sources.location import source_name

    converted = _converted(ctx, params.path, params.license, chat_entry, chats_schema())
    held = held_out(converted.clusters, converted.rows, params.heldout_fraction, ctx.seed)
    with ctx.output("train") as out:
        rows = write_rows(out.path / CHATS, chats_schema(), converted.path, held, within=False)
        shutil.copyfile(ctx.workdir / REJECTED, out.path / REJECTED)
        out.metrics.update(rows=rows, rejected=converted.rejected)
        out.licences.add(params.license)
    with ctx.output("heldout") as out:
        items = write_evalset(out.path, source_name(params.path), converted.path, held)
        out.metrics.update(items=items)
        out.licences.add(params.license)
    ctx.log(f"{rows:,} conversations to learn from, {items:,} held out\n{converted.summary()}")


class PreferencesParams(Params):
    path: Location = Field(
        description=f"{_FILES}: prompt/chosen/rejected, also with sharegpt or alpaca prompts, or labelled answers"
    )
    license: str = Field("unknown", description="the licence of the answers")
    heldout_fraction: float = Field(0.1, ge=0, lt=1, description="part of the rows held out, by their prompts")


@step(
    "data.preferences_file",
    version=1,
    inputs={},
    outputs={
        "train": Output("preferences", "rejected.parquet beside it names each row that was wrong"),
        "heldout": Output("preferences", "rows whose prompts are not in train"),
    },
    fingerprint=lambda params: remote_version(params.path),
)
def preferences_file(ctx: Context, params: PreferencesParams) -> None:
    """Preferences and labelled answers (KTO) from files of your own; the format is found out."""
    import shutil

    from liuyi.data.corpus import REJECTED
    from liuyi.data.instructions.convert import preference_entry
    from liuyi.data.instructions.tables import PREFERENCES, held_out, preferences_schema, write_rows

    schema = preferences_schema()
    converted = _converted(ctx, params.path, params.license, preference_entry, schema)
    held = held_out(converted.clusters, converted.rows, params.heldout_fraction, ctx.seed)
    rows = {}
    for name, within in (("train", False), ("heldout", True)):
        with ctx.output(name) as out:
            rows[name] = write_rows(out.path / PREFERENCES, schema, converted.path, held, within=within)
            if name == "train":
                shutil.copyfile(ctx.workdir / REJECTED, out.path / REJECTED)
                out.metrics["rejected"] = converted.rejected
            out.metrics["rows"] = rows[name]
            out.licences.add(params.license)
    ctx.log(f"{rows['train']:,} rows to learn from, {rows['heldout']:,} held out\n{converted.summary()}")


def _converted(
    ctx: Context, path: str, license: str, entry: Callable[[Mapping[str, Any]], Entry], schema: pa.Schema
) -> Converted:
    from liuyi.data.instructions.convert import convert
    from liuyi.data.sources.location import find_files, source_name

    files = find_files(path)
    converted = convert(
        files,
        source_name(path),
        license,
        entry,
        schema,
        ctx.workdir,
        on_file=lambda done: ctx.progress(done, len(files), "files"),
    )
    if not converted.rows:
        first = converted.first_rejected
        hint = f"{first.file}, line {first.line}: {first.reason}" if first else "there are no rows"
        raise DataError("no row is one to learn from", where=path, hint=hint)
    return converted
