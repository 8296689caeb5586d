"""`liuyi chat`: talk to a model, an application, or a running server in the terminal."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from io import TextIOWrapper
from time import perf_counter
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, error_console, home, print_error
from liuyi.core.errors import LiuyiError

if TYPE_CHECKING:
    from liuyi.cli.talk import Talker

HELP = "/reset starts over, /quit ends; Ctrl-C stops an answer"


@click.command()
@click.argument("ref", required=False)
@click.option("--url", help="Talk to a running server, such as http://127.0.0.1:8000.")
@click.option("--model", help="The model's name on that server [default: its first].")
@click.option("--system", help="A system message to begin with.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 takes the most probable token each time.")
@click.option("--max-tokens", type=click.IntRange(1), help="The longest answer, in tokens.")
@click.option("--seed", type=int, help="Makes answers repeatable.")
@click.option(
    "--api-key-env", default="LIUYI_API_KEY", show_default=True, metavar="NAME", help="Holds the server's key."
)
@click.pass_context
def command(
    ctx: click.Context,
    ref: str | None,
    url: str | None,
    model: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    api_key_env: str,
) -> None:
    """Talk to REF, which is what 'liuyi serve' takes, or to a server with --url.

    When the input is piped, each line is a message and only the answers are printed.
    """
    from liuyi.cli.talk import LocalTalker, ServerTalker, TalkOptions

    if url and ref:
        raise click.UsageError("give either REF or --url", ctx)
    if model and not url:
        raise click.UsageError("--model names a model of the server at --url", ctx)
    options = TalkOptions(temperature=temperature, max_tokens=max_tokens, seed=seed)
    with asyncio.Runner() as runner:
        talker: Talker
        if url:
            talker = ServerTalker(url, model, os.environ.get(api_key_env, ""), options)
        else:
            from rich.text import Text

            from liuyi.cli.models import choose, open_backend

            place = home(ctx)
            chosen = choose(place, ref)
            with error_console().status(Text(f"loading {chosen.description}")):
                talker = LocalTalker(chosen.name, open_backend(chosen, place), options)
        try:
            runner.run(talker.open())
            _converse(runner, talker, system)
        finally:
            runner.run(talker.close())


def _converse(runner: asyncio.Runner, talker: Talker, system: str | None) -> None:
    beginning = [{"role": "system", "content": _text(system)}] if system else []
    messages = list(beginning)
    by_hand = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        # Bytes that are no text are told with their message, not where they are read.
        sys.stdin.reconfigure(errors="surrogateescape")
    if by_hand:
        import readline  # noqa: F401  (gives input() a history and line editing)

        from rich.text import Text

        console().print(Text.assemble((talker.name, "bold"), "  ", (HELP, "dim")))
    while True:
        said = _read(by_hand)
        if said is None or said == "/quit":
            return
        if said == "/reset":
            messages = list(beginning)
            continue
        if not said:
            continue
        if by_hand and re.fullmatch(r"/\w+", said):
            console().print(HELP, style="dim")
            continue
        messages.append({"role": "user", "content": said})
        try:
            _text(said)
            answer = runner.run(_answer(talker, messages, by_hand))
        except KeyboardInterrupt:
            messages.pop()
            if not by_hand:
                raise
            console().print("\nstopped", style="dim")
            continue
        except LiuyiError as error:
            # What was said before is not lost with a message that is too long, or an engine that starts again.
            messages.pop()
            if not by_hand:
                raise
            print_error(error)
            continue
        messages.append({"role": "assistant", "content": answer})


def _read(by_hand: bool) -> str | None:
    """The next message; None at the end of the input."""
    if not by_hand:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("\n› ").strip()
    except (EOFError, KeyboardInterrupt):
        console().print()
        return None


def _text(said: str) -> str:
    """`said`. Raises LiuyiError if its bytes were no text."""
    try:
        said.encode()
    except UnicodeEncodeError as error:
        hint = "convert a file with: iconv -f GBK -t UTF-8 FILE, or set the encoding: PYTHONIOENCODING=gbk"
        raise LiuyiError(f"a message is not text in {sys.stdin.encoding}", hint=hint) from error
    return said


async def _answer(talker: Talker, messages: list[dict[str, str]], by_hand: bool) -> str:
    began, first, tokens, notes, texts = perf_counter(), 0.0, 0, "", []
    async for piece in talker.answer(messages):
        first = first or perf_counter()
        tokens, notes = piece.tokens or tokens, piece.notes or notes
        texts.append(piece.text)
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if by_hand:
        shown = [f"{first - began:.2f} s to the first token"]
        if tokens > 1:
            shown.append(f"{tokens} tokens, {(tokens - 1) / max(1e-9, perf_counter() - first):.0f} tokens/s")
        console().print(" · ".join([*shown, notes] if notes else shown), style="dim")
    return "".join(texts)
