"""`liuyi`: one group whose commands are loaded only when they are called.

A command lives in `liuyi/cli/<name>.py` and is called `command` there. Its line of help stands in the table
below, so that `liuyi --help` imports none of them.
"""

from __future__ import annotations

import importlib
import keyword
from pathlib import Path
from typing import Any

import click

import liuyi
from liuyi.cli.common import EXIT_ERROR, EXIT_UNEXPECTED, Session, print_error
from liuyi.core.errors import LiuyiError, did_you_mean

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
        "lineage": "Walk from an artifact to what it came from and what came of it.",
        "verify": "Check the bytes of artifacts against their digests.",
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
        "export": "Pack an artifact and its ancestry into one file.",
        "import": "Unpack such a file into this home.",
        "pin": "Keep an artifact whatever happens, or list what is kept.",
        "gc": "Delete what no run and no pin needs.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


def module_name(command: str) -> str:
    """The module that defines a command; a Python keyword gets an underscore."""
    return f"liuyi.cli.{command}{'_' if keyword.iskeyword(command) else ''}"


class Cli(click.Group):
    """A group with lazy commands, near names for wrong ones, and errors made for people."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(module_name(cmd_name)).command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"there is no command '{name}'; {did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()), col_spacing=4)

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


def main() -> None:
    """The entry point of the `liuyi` program."""
    cli(prog_name="liuyi")
