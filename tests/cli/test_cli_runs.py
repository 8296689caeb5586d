"""The commands around runs, used as a person or a script would."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from liuyi.cli.main import cli
from liuyi.core.home import Home
from waiting import wait_for

RECIPE = """\
recipe: toy
description: A sum and a chain.
seed: 1
steps:
  a: {step: toy.number, value: 3}
  total:
    step: toy.sum
    numbers: ["${a.number}", "${a.number}"]
  fit: {step: toy.chain, links: 3, pause_s: 0.01}
"""
PROGRAM = [sys.executable, "-c", "from liuyi.cli.main import main; main()"]


@pytest.fixture
def folder(toy_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def statuses(home: Home) -> dict[str, str]:
    return {step.name: step.status for step in home.ledger.steps(home.ledger.run("last").id)}


def test_a_run_is_watched_to_its_end(folder: Path, toy_home: Home) -> None:
    first = call("run", "recipe.yaml", "--set", "a.value=4")
    assert first.exit_code == 0, first.output
    assert re.search(r"✓ 1/3 a +\d+\.\d s +value 4\n", first.stdout)
    assert "        total: the sum is 8\n" in first.stdout
    run_id = toy_home.ledger.run("last").id
    assert re.search(rf"done in .* · run {run_id}\n$", first.stdout)
    again = call("run", ".", "--set", "a.value=4", "--seed", "1", "--until", "total")
    assert again.exit_code == 0
    assert re.search(r"= 2/2 total +cached +value 8\n", again.stdout)
    assert statuses(toy_home) == {"a": "cached", "total": "cached"}


@pytest.mark.slow
def test_a_failed_run_is_an_error_with_the_way_on(folder: Path, toy_home: Home) -> None:
    (folder / "recipe.yaml").write_text("recipe: x\nsteps:\n  bad: {step: toy.fail, how: people}\n")
    result = call("run", ".")
    run_id = toy_home.ledger.run("last").id
    assert result.exit_code == 1
    assert re.search(r"✗ 1/1 bad +failed", result.stdout)
    assert result.stderr == (
        "error: table.csv:1: step 'bad': the table has no rows\n  give it some\n"
        f"  'liuyi resume {run_id}' tries again from the failed step\n"
    )
    shown = call("runs", "last").stdout
    assert "error: table.csv:1: step 'bad': the table has no rows\n  give it some\n" in shown
    assert "  about to fail\n  this goes to the log too\n" in shown
    assert call("resume").exit_code == 1
    assert len(toy_home.ledger.runs()) == 1


def test_all_mistakes_of_a_recipe_are_told_and_nothing_is_entered(folder: Path, toy_home: Home) -> None:
    result = call("run", "recipe.yaml", "--set", "fit.links=many", "--set", "fti.links=3")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: --set fti.links=3: the recipe has no step 'fti'",
        "  did you mean 'fit'?",
        "error: --set fit.links=many: 'links' should be a valid integer, got 'many'",
    ]
    assert call("run", "recipe.yaml", "--until", "totl").stderr == (
        "error: the recipe has no step 'totl'\n  did you mean 'total'?\n"
    )
    assert call("run", "recipe.yaml", "--check").stdout == "recipe.yaml is right: 3 steps\n"
    assert call("runs").stdout == "no run yet; start one with 'liuyi run quickstart'\n"
    assert toy_home.ledger.runs() == []


@pytest.mark.slow
def test_square_brackets_are_shown_as_they_were_written(folder: Path, toy_home: Home) -> None:
    odd = folder / "mine[/b]"
    odd.mkdir(parents=True)
    (odd / "recipe.yaml").write_text(RECIPE.replace("recipe: toy", "recipe: 'a[red]b[/b]'"))
    assert call("run", "mine[/b]", "--until", "a", "--check").stdout == "mine[/b]/recipe.yaml is right: 1 step\n"
    override = 'total.numbers=["${a.number}"]'
    assert call("run", "mine[/b]", "--until", "a", "--set", override).exit_code == 0
    assert re.search(r" a\[red\]b\[/b\] +done ", call("runs").stdout)
    shown = call("runs", "last").stdout
    assert " · a[red]b[/b] · done · " in shown
    assert f"from mine[/b]/recipe.yaml --set {override}\n" in shown


def test_a_detached_run_is_listed_watched_and_cancelled(folder: Path, toy_home: Home) -> None:
    started = call("run", ".", "--detach", "--set", "fit.links=600", "--set", "fit.pause_s=0.1")
    run_id = toy_home.ledger.run("last").id
    assert started.stdout == f"run {run_id} goes on; 'liuyi resume {run_id}' watches it\n"
    wait_for(lambda: statuses(toy_home).get("fit") == "running")
    listed = call("runs")
    assert re.search(rf"{run_id} +toy +running +2/3 ", listed.stdout)
    cancelled = call("cancel", run_id[:-2])
    assert cancelled.stdout == f"run {run_id} is cancelled; 'liuyi resume {run_id}' goes on with it\n"
    assert statuses(toy_home) == {"a": "done", "total": "done", "fit": "cancelled"}
    assert re.search(rf"{run_id} +toy +cancelled +2/3 ", call("runs").stdout)
    assert "is not active" in call("cancel").stderr
    assert "did you mean" in call("resume", run_id.replace("-", "x")).stderr


@pytest.mark.slow
def test_runs_as_json(folder: Path, toy_home: Home) -> None:
    call("run", ".")
    (run,) = json.loads(call("runs", "--json").stdout)
    assert run == json.loads(call("runs", "last", "--json").stdout)
    assert (run["recipe"], run["state"], run["text"]) == ("toy", "done", RECIPE)
    assert [step["name"] for step in run["steps"]] == ["a", "total", "fit"]
    digest = run["steps"][1]["outputs"]["number"]
    assert toy_home.store.open(digest).file("number.txt").read_text() == "6"
    assert Path(run["folder"], "events.jsonl").exists()


def test_a_run_without_its_worker_is_lost(folder: Path, toy_home: Home) -> None:
    run_id = toy_home.ledger.create_run(recipe="x", text="", source="x.yaml", overrides=[], seed=0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    from liuyi.core.owner import this_process

    worker = this_process().replace(f":{os.getpid()}:", f":{gone.pid}:")
    toy_home.ledger.update_run(run_id, status="running", worker=worker)
    assert re.search(rf"{run_id} +x +lost ", call("runs").stdout)
    assert f"'liuyi resume {run_id}' goes on with it" in call("runs", run_id).stdout


@pytest.mark.slow
def test_sigterm_cancels_the_run(folder: Path, toy_home: Home) -> None:
    diary = folder / "diary"
    args = ["run", ".", "--set", "fit.links=600", "--set", "fit.pause_s=0.1", "--set", f"fit.diary={diary}"]
    watching = subprocess.Popen([*PROGRAM, *args], stderr=subprocess.PIPE, text=True)
    wait_for(diary.exists)
    watching.terminate()
    _, errors = watching.communicate(timeout=240)
    assert watching.returncode == 130
    assert "goes on from here" in errors
    assert toy_home.ledger.run("last").status == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "exit_code", "status"), [("d", 0, "running"), ("c", 130, "cancelled")])
def test_ctrl_c_asks(answer: str, exit_code: int, status: str, folder: Path, toy_home: Home) -> None:
    """Also where the tests run as a background job of a shell, whose children ignore SIGINT."""
    diary = folder / "diary"
    args = ["run", ".", "--set", "fit.links=600", "--set", "fit.pause_s=0.1", "--set", f"fit.diary={diary}"]
    terminal, end = pty.openpty()
    watching = subprocess.Popen(
        [*PROGRAM, *args],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(end)
    seen = _read_until(terminal, "links · loss")
    assert "fit" in seen
    watching.send_signal(signal.SIGINT)
    _read_until(terminal, "[d]etach")
    os.write(terminal, f"{answer}\n".encode())
    seen = _read_until(terminal, "liuyi resume")
    assert watching.wait(240) == exit_code
    os.close(terminal)
    assert toy_home.ledger.run("last").status == status
    if status == "running":
        assert call("cancel").exit_code == 0


def _read_until(terminal: int, text: str, timeout_s: float = 240.0) -> str:
    seen = b""
    deadline = time.monotonic() + timeout_s
    while text.encode() not in seen:
        assert time.monotonic() < deadline, seen.decode(errors="replace")
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536)
    return seen.decode(errors="replace")


def test_steps_are_listed_and_shown(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = call("steps").stdout
    assert re.search(r"toy\.sum +numbers +number +Add numbers up\.", listed)
    assert re.search(r"toy\.chain +number\? +model ", listed)
    shown = call("steps", "toy.fail").stdout
    assert re.search(r"how +'people' or 'error' .* required", shown)
    assert re.search(r"links +integer +20", call("steps", "toy.chain").stdout)
    assert re.search(r"diary +path or none +none", call("steps", "toy.chain").stdout)
    described = json.loads(call("steps", "toy.sum", "--json").stdout)
    assert described["inputs"]["numbers"]["many"] is True
    assert "toy.sum" in {step["step"] for step in json.loads(call("steps", "--json").stdout)}
    training = call("steps", "finetune.sft").stdout
    assert training.index("\nepochs ") < training.index("\nmethod ") < training.index("\nprocesses ")
    assert call("steps", "toy.sun").stderr == "error: there is no step 'toy.sun'\n  did you mean 'toy.sum'?\n"


def test_schemas_are_printed(toys: Path) -> None:
    schema = json.loads(call("schema", "recipe").stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    assert jsonschema.Draft7Validator(schema).is_valid(yaml.safe_load(RECIPE))
    step = json.loads(call("schema", "step", "toy.sum").stdout)
    assert jsonschema.Draft7Validator(step).is_valid({"step": "toy.sum", "numbers": ["${a.number}"]})
    assert "did you mean 'toy.sum'?" in call("schema", "step", "toy.smu").stderr


def test_built_in_recipes_are_listed_and_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from liuyi import recipes

    monkeypatch.setenv("COLUMNS", "200")
    (files,) = recipes.__path__
    names = sorted(file.stem for file in Path(files).glob("*.yaml"))
    assert names
    listed = call("recipes").stdout
    for name in names:
        text = (Path(files) / f"{name}.yaml").read_text("utf-8")
        assert call("recipes", name).stdout == text
        assert re.search(rf"^{name} +{re.escape(yaml.safe_load(text)['description'])}", listed, re.MULTILINE)
