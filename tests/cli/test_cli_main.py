"""The program as a whole: what is listed, what is imported, and how errors reach people."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from liuyi.cli import main as program
from liuyi.cli.common import figure_text, seconds_text, size_text
from liuyi.cli.lazy import module_name
from liuyi.core.errors import DataError
from liuyi.core.home import Home

HEAVY = ("torch", "daft", "pyarrow", "sqlalchemy", "alembic", "pydantic", "numpy", "scipy", "rich", "yaml", "fastapi")


def imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import liuyi") == set()


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = "from liuyi.cli.main import cli\ncli(['--help'], standalone_mode=False)"
    assert imported_by(code) == set()


def test_knowing_all_steps_and_their_parameters_imports_nothing_that_computes() -> None:
    """Every command that reads a recipe knows them, and so does the worker of a run whose steps are all done."""
    code = "import liuyi.core.runner.worker\nfrom liuyi.core.step import all_steps\nall_steps()"
    assert imported_by(code) & {"torch", "daft", "pyarrow", "numpy", "scipy", "fastapi"} == set()


@pytest.mark.parametrize("name", program.cli.lines)
def test_every_listed_command_is_there_and_explains_itself(name: str) -> None:
    result = CliRunner().invoke(program.cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f" {name} " in result.stdout


def test_every_command_module_is_listed() -> None:
    folder = Path(program.__file__).parent
    listed = {module_name("liuyi.cli", name) for name in program.cli.lines}
    defining = re.compile(r"^(def command\(|command\b.* = )", re.MULTILINE)
    defined = {f"liuyi.cli.{file.stem}" for file in folder.glob("*.py") if defining.search(file.read_text("utf-8"))}
    assert defined <= listed


def test_a_misspelt_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(program.cli, ["linaege"])
    assert result.exit_code == 2
    assert "did you mean 'lineage'?" in result.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Puts a command `doctor` in place that raises the listed error."""
    errors: list[Exception] = []

    @click.command()
    def command() -> None:
        raise errors[0]

    monkeypatch.setattr(program.Cli, "get_command", lambda self, ctx, name: command)
    return errors


def test_an_error_for_people_is_message_place_and_hint(failing: list[Exception]) -> None:
    failing.append(DataError("the column 'text' is missing", where="a.jsonl:3", hint="name it with --text"))
    result = CliRunner().invoke(program.cli, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: a.jsonl:3: the column 'text' is missing\n  name it with --text\n"


def test_an_unforeseen_error_is_one_line_and_a_way_to_see_more(failing: list[Exception]) -> None:
    failing.append(ZeroDivisionError("division\nby zero"))
    result = CliRunner().invoke(program.cli, ["doctor"])
    assert result.exit_code == 70
    assert result.stderr.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/root/x.html"), "/root/x.html: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_told_as_such(failing: list[Exception], error: OSError, told: str) -> None:
    failing.append(error)
    result = CliRunner().invoke(program.cli, ["doctor"])
    assert (result.exit_code, result.stderr) == (1, f"error: {told}\n")


def test_sigterm_ends_the_program_once_it_has_tidied_up(tmp_path: Path) -> None:
    part = tmp_path / "part"
    script = f"""
import time
from pathlib import Path
import click
from liuyi.cli import main as program

@click.command()
def command():
    part = Path({str(part)!r})
    part.touch()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        part.unlink()

program.Cli.get_command = lambda self, ctx, name: command
program.main()
"""
    with subprocess.Popen([sys.executable, "-c", script, "doctor"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert part.exists()
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
    assert not part.exists()


def test_debug_gives_the_traceback(failing: list[Exception]) -> None:
    failing.append(ZeroDivisionError("division by zero"))
    result = CliRunner().invoke(program.cli, ["--debug", "doctor"])
    assert result.exception is failing[0]


def test_figures_read_well() -> None:
    assert [seconds_text(s) for s in (4.21, 59.96, 75, 3700)] == ["4.2 s", "60.0 s", "1 min 15 s", "1 h 01 min"]
    assert [size_text(b) for b in (12, 1536, 5 * 2**30)] == ["12 B", "1.5 KiB", "5.0 GiB"]
    assert [figure_text(f) for f in (3.0, 1234567, 0.123456, 123456.7)] == ["3", "1,234,567", "0.1235", "123,457"]


def test_what_a_terminal_cannot_show_is_told_by_its_number(tmp_path: Path) -> None:
    with closing(Home(tmp_path)) as home:
        home.ledger.create_run(recipe="灯🔥", text="", source="", overrides=[], seed=1)
    code = "from liuyi.cli.main import main; main()"
    shown = [
        subprocess.run(
            [sys.executable, "-c", code, "--home", str(tmp_path), "runs", *options],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONIOENCODING": "gbk"},
        ).stdout.decode("gbk")
        for options in ((), ("--json",))
    ]
    assert "灯\\U0001f525" in shown[0]
    assert json.loads(shown[1])[0]["recipe"] == "灯🔥"
