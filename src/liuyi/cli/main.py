"""`liuyi`: one group whose commands are loaded only when they are called.

A command lives in `liuyi/cli/<name>.py` and is called `command` there. Its line of help stands in the table below.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

import liuyi
from liuyi.cli.common import EXIT_ERROR, EXIT_UNEXPECTED, Session, print_error
from liuyi.cli.lazy import LazyGroup
from liuyi.core.cores import limit_threads
from liuyi.core.errors import LiuyiError

SECTIONS: dict[str, dict[str, str]] = {
    "Run": {
        "init": "Start a folder with a small recipe for your own data.",
        "run": "Run a recipe from beginning to end.",
        "resume": "Go on with a run that stopped, or attach to one that works.",
        "cancel": "Stop a run; what its finished steps made is kept.",
        "runs": "List the runs, or show one with its steps and errors.",
    },
    "Look": {
        "report": "Show the effect report of a run.",
        "show": "Show what an artifact is and what is in it.",
        "data": "Look at data: documents, thresholds, mixtures, tokens.",
        "lineage": "Walk from an artifact to what it came from and what came of it.",
        "verify": "Check the bytes of artifacts against their digests.",
        "replay": "Take recorded training steps again and compare.",
    },
    "Use": {
        "chat": "Talk to a model or an application.",
        "serve": "Serve models and applications through the OpenAI API.",
        "keys": "Make, list and revoke the API keys of a server.",
        "bench": "Measure how fast a server answers.",
    },
    "Know": {
        "recipes": "List the built-in recipes, or print one.",
        "steps": "List the steps, or show one with its parameters.",
        "schema": "Print the JSON Schema of recipes or of one step.",
        "doctor": "Measure this machine and say what is installed.",
    },
    "Keep": {
        "export": "Write an artifact for another home, or for other programs.",
        "import": "Take an archive or a model from elsewhere into this home.",
        "pin": "Keep an artifact whatever happens, or list what is kept.",
        "gc": "Delete what no run and no pin needs.",
    },
}

OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)
"""What the operating system refuses for reasons that are not ours."""


class Cli(LazyGroup):
    """The program: errors made for people, and a traceback for nobody who did not ask for one."""

    package = "liuyi.cli"
    sections = SECTIONS

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except LiuyiError as error:
            if ctx.ensure_object(Session).debug:
                raise
            print_error(error)
            ctx.exit(EXIT_ERROR)
        except Exception as error:
            if ctx.ensure_object(Session).debug:
                raise
            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
                print_error(LiuyiError(error.strerror or str(error), where=str(error.filename or "")))
                ctx.exit(EXIT_ERROR)
            text = " ".join(str(error).split())
            hint = "this should not happen; run it again as 'liuyi --debug …' to see where"
            print_error(LiuyiError(f"{type(error).__name__}: {text}" if text else type(error).__name__, hint=hint))
            ctx.exit(EXIT_UNEXPECTED)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(liuyi.__version__, prog_name="liuyi")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of runs and artifacts [default: $LIUYI_HOME, else the nearest .liuyi, else ~/.liuyi].",
)
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
@click.pass_context
def cli(ctx: click.Context, home: Path | None, debug: bool) -> None:
    """From raw text to a running LLM application, in one lineage, with proof at every stage."""
    ctx.obj = Session(home_path=home, debug=debug)


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _Terminated


def main() -> None:
    """The entry point of the `liuyi` program.

    SIGTERM ends it as it ends any program, once what was begun and is not whole has been taken away.
    """
    signal.signal(signal.SIGTERM, _terminate)
    limit_threads()
    if isinstance(sys.stdout, TextIOWrapper):
        # What a terminal in GBK, say, cannot show stands there by its number, as it does on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="liuyi")
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
