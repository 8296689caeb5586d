"""A group whose commands are loaded only when they are called, so that its help imports none of them."""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Mapping
from typing import ClassVar

import click

from liuyi.core.errors import did_you_mean


def module_name(package: str, command: str) -> str:
    """The module that defines a command; a Python keyword gets an underscore."""
    return f"{package}.{command}{'_' if keyword.iskeyword(command) else ''}"


class LazyGroup(click.Group):
    """The command `name` is called `command` in the module `<package>.<name>`."""

    package: ClassVar[str]
    sections: ClassVar[Mapping[str, Mapping[str, str]]]
    """Section → command → its line of help."""

    @property
    def lines(self) -> dict[str, str]:
        """The line of help of each command."""
        return {name: line for section in self.sections.values() for name, line in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lines:
            return None
        command: click.Command = importlib.import_module(module_name(self.package, cmd_name)).command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.lines and not name.startswith("-"):
            raise click.UsageError(f"there is no command '{name}'; {did_you_mean(name, self.lines)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in self.sections.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()), col_spacing=4)
