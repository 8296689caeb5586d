"""The commands around artifacts, as a person or a script calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from liuyi.cli.main import cli
from liuyi.core.home import Home
from world import World


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def call(world: World, *args: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--home", str(world.home.path), *args])
    assert result.exit_code == status, result.output
    return result


def said(world: World, *args: str, status: int = 0) -> Any:
    return json.loads(call(world, *args, "--json", status=status).stdout)


def damage(world: World, name: str) -> str:
    digest = world.digests[name]
    path = world.home.store.open(digest).file("documents.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return digest


def test_show_tells_what_an_artifact_is_and_what_is_in_it(world: World) -> None:
    shown = call(world, "show", "last/clean.kept").stdout
    for part in (world.digests["kept"], "data.select", "documents.parquet", "near-duplicate", "document 1", "BSD-3"):
        assert part in shown
    found = said(world, "show", world.digests["kept"][:8], "--rows", "2")
    assert found["kind"] == "corpus"
    assert found["tables"]["documents.parquet"]["rows"] == 4
    assert [row["id"] for row in found["tables"]["documents.parquet"]["head"]] == ["00" * 8, "01" * 8]
    assert found["tables"]["dropped.parquet"]["rows"] == 2
    assert said(world, "show", "last/docs", "--rows", "0")["tables"]["documents.parquet"]["head"] == []


def test_show_tells_what_rows_and_answers_are(world: World) -> None:
    row = said(world, "show", "chat-1")
    assert row["messages"][0]["content"] == "turn on lamp 1"
    assert row["held by"] == [f"chats {world.digests['chats'][:12]}"]
    assert said(world, "show", "07" * 8)["left out by"] == [f"corpus {world.digests['kept'][:12]}"]
    assert "template-1" in call(world, "show", "chat-1").stdout
    world.home.ledger.add_answer("answer-1", world.digests["sft"], None, "r", {"finish_reason": "stop"})
    assert said(world, "show", "answer-1")["detail"] == {"finish_reason": "stop"}


def test_show_prints_markup_as_it_is(world: World) -> None:
    staging = world.home.store.stage("report")
    (staging.path / "[bold]x[").write_text("")
    artifact = world.home.store.publish(staging, step="x.y", output="[red]", params={"[b]": "[/b]"})
    shown = call(world, "show", artifact.digest).stdout
    assert "[bold]x[" in shown
    assert "[/b]" in shown
    assert "[red]" in shown


def test_lineage_draws_both_ways_and_gives_json(world: World) -> None:
    tree = call(world, "lineage", "last/sft").stdout
    lines = tree.splitlines()
    assert lines[0].startswith(f"checkpoint {world.digests['sft'][:12]}  finetune.sft  run {world.run_id}")
    assert "what it came from" in tree
    assert "what came of it" in tree
    assert "4  requests  Apache-2.0" in tree
    assert "licences: CC-BY-4.0, MIT" in tree
    assert tree.count(world.run_id) == 1
    up, down = call(world, "lineage", "last/sft", "--up").stdout, call(world, "lineage", "last/sft", "--down").stdout
    assert ("what it came from" in up, "what came of it" in up) == (True, False)
    assert ("what it came from" in down, "what came of it" in down) == (False, True)
    found = said(world, "lineage", "last/sft")
    assert found["up"][0]["digest"] == world.digests["base"]
    assert {node["kind"] for node in found["down"]} == {"evaluation", "checkpoint", "verdict"}


def test_lineage_of_a_dropped_document_gives_the_reason(world: World) -> None:
    assert "left it out: near-duplicate" in call(world, "lineage", "07" * 8).stdout
    assert "requests/doc7.rst  Apache-2.0" in call(world, "lineage", "07" * 8).stdout
    assert "nothing that is known" in call(world, "lineage", "last/desk.chats", "--up").stdout or "conversation" in (
        call(world, "lineage", "last/desk.chats", "--up").stdout
    )


def test_what_names_nothing_is_one_clear_error(world: World) -> None:
    for command in ("show", "lineage", "verify", "pin"):
        result = call(world, command, "last/stf", status=1)
        assert result.stderr == f"error: run {world.run_id} has no step 'stf'\n  did you mean 'sft'?\n"


def test_verify_names_what_is_damaged_and_removes_it_when_told(world: World) -> None:
    assert "14 checked, 0 damaged" in call(world, "verify", "--all").stdout
    digest = damage(world, "docs")
    shown = call(world, "verify", "last/docs", "last/sft", status=1).stdout
    assert "documents.parquet: its bytes have changed" in shown
    assert "2 checked, 1 damaged" in shown
    found = said(world, "verify", "--all", status=1)
    assert found == {
        "checked": 14,
        "damaged": {digest: ["documents.parquet: its bytes have changed"]},
        "removed": [],
    }
    assert said(world, "verify", "--all", "--remove", status=1)["removed"] == [digest]
    assert said(world, "verify", "--all")["checked"] == 13
    assert call(world, "verify", status=2).stderr.endswith("say which artifacts, or --all\n")


def test_a_damaged_artifact_is_told_by_name(world: World) -> None:
    digest = damage(world, "docs")
    error = call(world, "show", "last/docs", status=1).stderr
    assert f"corpus {digest[:12]} is damaged: documents.parquet: its bytes have changed" in error
    assert f"liuyi verify --remove {digest[:12]}" in error


def test_gc_says_and_does_the_same(world: World) -> None:
    assert "0 B would be removed, 14 artifacts kept" in call(world, "gc", "--dry-run").stdout
    plan = said(world, "gc", "--dry-run", "--forget", "last")
    assert plan["forgotten_runs"] == [world.run_id]
    assert len(plan["artifacts"]) == 14
    assert len(list(world.home.store.digests())) == 14
    done = said(world, "gc", "--keep-runs", "0")
    assert done["artifacts"] == plan["artifacts"]
    assert done["bytes"] == sum(item["bytes"] for item in plan["artifacts"])
    assert list(world.home.store.digests()) == []
    assert "0 artifacts kept" in call(world, "gc").stdout


def test_a_pin_is_set_listed_and_removed(world: World) -> None:
    assert "nothing is pinned" in call(world, "pin").stdout
    assert "the [good] one" in call(world, "pin", "last/base", "--note", "the [good] one").stdout
    assert [pin["digest"] for pin in said(world, "pin")] == [world.digests["base"]]
    call(world, "gc", "--forget", "last")
    assert len(list(world.home.store.digests())) == 5
    call(world, "pin", "--remove", world.digests["base"][:10])
    assert said(world, "pin") == []
    assert "is not pinned" in call(world, "pin", "--remove", world.digests["base"], status=1).stderr


def test_an_artifact_travels_to_another_home(world: World, tmp_path: Path) -> None:
    path = tmp_path / "sft.tar"
    shown = call(world, "export", "last/gate.checkpoint", "-o", str(path)).stdout
    assert f"checkpoint {world.digests['sft'][:12]} with 6 that it came from" in shown
    result = CliRunner().invoke(cli, ["--home", str(tmp_path / "other"), "import", str(path)])
    assert result.exit_code == 0, result.output
    assert f"artifact:{world.digests['sft'][:12]}" in result.stdout
    assert "licences: MIT" in result.stdout
    assert len(list(Home(tmp_path / "other").store.digests())) == 7


def test_export_and_import_refuse_what_makes_no_sense(world: World, tmp_path: Path) -> None:
    assert (
        "is not a model"
        in call(world, "export", "last/docs", "--to", "hf", "-o", str(tmp_path / "out"), status=1).stderr
    )
    call(world, "export", "last/sft", "--to", "hf", "--alone", "-o", str(tmp_path / "out"), status=2)
    path = tmp_path / "x.tar"
    path.write_text("no archive")
    refused = call(world, "import", str(path), status=1).stderr
    assert "not a whole archive" in refused
    assert "a folder or a .gguf file" in refused
    call(world, "import", str(path), "--licence", "MIT", status=2)
    (tmp_path / "empty").mkdir()
    assert "config.json" in call(world, "import", str(tmp_path / "empty"), status=1).stderr
