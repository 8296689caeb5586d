"""What the commands share: the home they work in, the consoles they write to, and how figures are shown.

    @click.command()
    @click.argument("artifact")
    @click.pass_context
    def command(ctx: click.Context, artifact: str) -> None:
        "Show one artifact."
        manifest = home(ctx).store.manifest(artifact)
        console().print(size_text(manifest.size_bytes))

Heavy modules are imported inside the functions that use them.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

FC = TypeVar("FC", bound="Callable[..., Any] | click.Command")

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from liuyi.core.errors import LiuyiError
    from liuyi.core.home import Home

PIPE_WIDTH = 120
_PICTURES = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)
"""Control characters → what is shown in their place: one character each."""
EXIT_ERROR = 1
"""The command met an error that a person can mend, or a run failed."""
EXIT_UNEXPECTED = 70
"""An error that nobody foresaw (`EX_SOFTWARE` of sysexits.h)."""
EXIT_CANCELLED = 130
"""Cancelled by the owner, as after Ctrl-C in a shell."""


@dataclass
class Session:
    """One call of the command line: what the options before the command said."""

    home_path: Path | None = None
    debug: bool = False
    opened: Home | None = field(default=None, repr=False)


def session(ctx: click.Context) -> Session:
    """The session of this call."""
    return ctx.find_root().ensure_object(Session)


def home(ctx: click.Context) -> Home:
    """The home this call works in: `--home`, else `$LIUYI_HOME`, else the nearest `.liuyi` folder."""
    current = session(ctx)
    if current.opened is None:
        from liuyi.core.home import Home

        current.opened = Home.find(current.home_path)
    return current.opened


@cache
def console() -> Console:
    """Where results go: standard output; wide where it is no terminal, so that tables are not squeezed.

    Square brackets are printed as they are, since names, paths and overrides hold them; `Text` says what has a style.
    """
    from rich.console import Console

    made = Console(highlight=False, markup=False)
    wide = not made.is_terminal and "COLUMNS" not in os.environ
    return Console(highlight=False, markup=False, width=PIPE_WIDTH) if wide else made


@cache
def error_console() -> Console:
    """Where errors and remarks go: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def engine_option(function: FC) -> FC:
    """The option `--engine`: the worker inherits it through its environment, and it is no part of what steps are."""

    def choose(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value:
            from liuyi.data.engine import ENGINE_VARIABLE

            os.environ[ENGINE_VARIABLE] = value

    return click.option(
        "--engine",
        type=click.Choice(["native", "ray"]),
        expose_value=False,
        callback=choose,
        help="What measures data: this machine, or Ray (here, or at $RAY_ADDRESS). Results are the same.",
    )(function)


def print_error(error: LiuyiError) -> None:
    """Say what was wrong, where, and what would be right, on standard error."""
    from rich.text import Text

    out = error_console()
    for each in getattr(error, "problems", (error,)):
        place = f"{each.where}: " if each.where else ""
        out.print(Text.assemble(("error: ", "bold red"), printable(f"{place}{each.message}")), soft_wrap=True)
        if each.hint:
            out.print(Text(f"  {printable(each.hint)}", style="dim"), soft_wrap=True)


def print_json(value: Any) -> None:
    """Write `value` as indented JSON, for programs: no colour, no wrapping, and ASCII where it would not be UTF-8."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str) + "\n")


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house style; columns named in `right` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def printable(text: str) -> str:
    """Text of others, such as a web page's, without what a terminal would obey in place of showing; as long as before.

    An escape sequence can set the clipboard or hide what follows.
    """
    return text.translate(_PICTURES)


def short(digest: str) -> str:
    """The first twelve characters of a digest: enough to name it again."""
    return digest[:12]


def size_text(size_bytes: float) -> str:
    """`1536` → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """`4.21` → `4.2 s`, `75` → `1 min 15 s`, `3700` → `1 h 01 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figure_text(value: float) -> str:
    """A figure with four significant digits; whole numbers whole, with thousands separated."""
    if not abs(value) < 1e15:
        return f"{value:.4g}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
