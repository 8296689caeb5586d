"""Collection removes what nothing needs, and nothing else: checked against a closure computed here from scratch."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from liuyi.core.errors import LedgerError
from liuyi.core.gc import collect
from liuyi.core.home import Home
from liuyi.core.owner import this_process
from liuyi.core.recipe import RecipeSource
from liuyi.core.runner.launch import start_run
from world import World


def orphan(world: World, name: str = "orphan") -> str:
    """An artifact that the ledger knows and no run needs."""
    staging = world.home.store.stage("corpus")
    (staging.path / "x").write_text(name)
    artifact = world.home.store.publish(staging, step="data.lost", output="corpus")
    world.home.ledger.record_artifact(artifact.manifest)
    return artifact.digest


def stored(world: World) -> set[str]:
    return set(world.home.store.digests())


def test_what_a_run_made_and_used_is_kept(world: World) -> None:
    before = stored(world)
    lost = orphan(world)
    plan = collect(world.home, dry_run=True)
    assert [item.name for item in plan.artifacts] == [lost]
    assert stored(world) == before | {lost}
    done = collect(world.home)
    assert done == plan
    assert done.bytes == len("orphan")
    assert (done.kept, stored(world)) == (len(before), before)


def test_a_forgotten_run_frees_what_only_it_needed(world: World) -> None:
    home, d = world.home, world.digests
    other = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
    inputs = [("corpus", d["kept"])]
    made = world.make("other", "data.other", {"o": ("corpus", {"a": 1})}, inputs, run_id=other)["o"]
    home.ledger.update_run(other, status="done")
    home.run_dir(world.run_id)
    home.ledger.pin(d["chats"], "good conversations")
    collect(home, forget=[world.run_id])
    assert stored(world) == {made, d["kept"], d["docs"], d["chats"]}
    assert [run.id for run in home.ledger.runs()] == [other]
    assert not (home.runs_dir / world.run_id).exists()
    assert home.ledger.producers(d["sft"])[0].step == "finetune.sft"
    home.ledger.unpin(d["chats"])
    assert [item.name for item in collect(home).artifacts] == [d["chats"]]


def test_a_pin_keeps_all_that_an_artifact_came_from(world: World) -> None:
    d = world.digests
    world.home.ledger.pin(d["base"])
    collect(world.home, forget=[world.run_id])
    assert stored(world) == {d[name] for name in ("base", "tokens", "vocab", "kept", "docs")}


def test_what_a_recipe_names_is_kept(world: World) -> None:
    lost = orphan(world)
    world.home.ledger.create_run(
        recipe="r", text=f"steps: {{a: {{model: 'artifact:{lost[:9]}'}}}}", source="", overrides=[], seed=1
    )
    run = world.home.ledger.runs()[0]
    world.home.ledger.update_run(run.id, status="failed")
    assert collect(world.home).artifacts == ()


def test_an_active_run_protects_all_that_it_might_use(world: World) -> None:
    home = world.home
    world.home.ledger.update_run(world.run_id, status="done")
    active = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
    home.ledger.update_run(active, status="running", worker=this_process(), heartbeat=time.time())
    before = stored(world)
    just_published = orphan(world)
    with pytest.raises(LedgerError, match="still running"):
        collect(home, forget=[active])
    collect(home, forget=[world.run_id])
    assert stored(world) == before | {just_published}
    home.ledger.update_run(active, status="done")
    collect(home)
    assert stored(world) == set()


def test_a_run_that_begins_meanwhile_stops_the_collection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    home = world.home
    lost = {orphan(world, str(number)) for number in range(3)}
    delete = home.store.delete

    def delete_and_start(digest: str) -> None:
        delete(digest)
        run_id = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
        home.ledger.update_run(run_id, status="running", worker=this_process())

    monkeypatch.setattr(home.store, "delete", delete_and_start)
    with pytest.raises(LedgerError, match="a run began meanwhile"):
        collect(home)
    assert len(stored(world) & lost) == 2


@pytest.mark.slow
def test_a_run_waits_for_a_collection_and_uses_nothing_that_it_removed(toy_home: Home, tmp_path: Path) -> None:
    """Its work was done and then forgotten; it would find it, and lose it before the next step reads it."""
    path = tmp_path / "recipe.yaml"
    number = "${a.number}"
    path.write_text(
        "recipe: r\nsteps:\n  a: {step: toy.number, value: 3}\n"
        f"  b: {{step: toy.sum, numbers: ['{number}', '{number}']}}\n"
    )
    source = RecipeSource("recipe.yaml", path, tmp_path)
    first = start_run(toy_home, source)
    assert [event["status"] for event in first.events() if event and event["event"] == "run"] == ["running", "done"]
    toy_home.ledger.acquire("gc", this_process())
    second = start_run(toy_home, source)
    for event in second.events():
        if event is not None and event["event"] == "log" and "'liuyi gc' is at work" in event["text"]:
            assert [step.status for step in toy_home.ledger.steps(second.run_id)] == ["waiting", "waiting"]
            for digest in list(toy_home.store.digests()):
                toy_home.store.delete(digest)
            toy_home.ledger.release("gc", this_process())
    assert second.run().status == "done"
    assert [step.status for step in toy_home.ledger.steps(second.run_id)] == ["done", "done"]


def test_a_collection_that_lost_its_lease_removes_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    home = world.home
    lost = {orphan(world, str(number)) for number in range(3)}
    delete = home.store.delete

    def delete_and_lose(digest: str) -> None:
        delete(digest)
        home.ledger.release("gc", this_process())
        home.ledger.acquire("gc", "elsewhere:1:1")

    monkeypatch.setattr(home.store, "delete", delete_and_lose)
    with pytest.raises(LedgerError, match="took over"):
        collect(home)
    assert len(stored(world) & lost) == 2


def test_two_collections_do_not_work_at_once(world: World) -> None:
    world.home.ledger.acquire("gc", "elsewhere:1:1")
    with pytest.raises(LedgerError, match="another 'liuyi gc'"):
        collect(world.home)


def test_what_the_ledger_does_not_know_is_left_alone_unless_asked(world: World, tmp_path: Path) -> None:
    staging = world.home.store.stage("corpus")
    (staging.path / "x").write_text("another ledger's")
    foreign = world.home.store.publish(staging, step="data.else", output="corpus").digest
    world.home.work_dir("unknown")
    found = collect(world.home)
    assert foreign in stored(world)
    assert {item.name for item in found.unknown} == {foreign, str(world.home.work_root / "unknown")}
    collect(world.home, unknown=True)
    assert foreign not in stored(world)
    assert not (world.home.work_root / "unknown").exists()


def test_a_ledger_of_another_store_removes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(world)
    monkeypatch.setenv("LIUYI_LEDGER_URL", str(tmp_path / "empty.db"))
    found = collect(Home(world.home.path))
    assert (found.artifacts, len(found.unknown)) == ((), len(before))
    assert stored(world) == before


def test_leftovers_of_dead_processes_go_and_those_of_the_living_stay(world: World) -> None:
    home = world.home
    host, pid, start = this_process().split(":")
    dead = home.store.staging / f"{host}:{pid}:{int(start) + 1}:aa"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(b"x" * 1000)
    foreign = home.store.staging / "elsewhere:1:1:bb"
    foreign.mkdir()
    mine = home.store.stage("corpus").path
    for key in ("done", "failed", "leased"):
        home.work_dir(key)
    run_id = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
    home.ledger.update_run(run_id, status="failed")
    home.ledger.put_step(run_id, "a", key="done", status="done")
    home.ledger.put_step(run_id, "b", key="failed", status="failed")
    home.ledger.put_step(run_id, "c", key="leased", status="done")
    home.ledger.acquire("step:leased", this_process())
    found = collect(home)
    assert {(item.name, item.bytes) for item in found.folders} == {(str(dead), 1000), (str(home.work_root / "done"), 0)}
    assert not dead.exists()
    assert foreign.exists()
    assert mine.exists()
    assert {path.name for path in home.work_root.iterdir()} == {"failed", "leased"}
    home.ledger.release("step:leased", this_process())
    collect(home, forget=[run_id], unknown=True)
    assert list(home.work_root.iterdir()) == []


@pytest.mark.parametrize("seed", range(5))
def test_any_history_keeps_exactly_its_closure(home: Home, seed: int) -> None:
    """A random history of runs, pins and forgettings, against the closure over the edges that were drawn."""
    chance = random.Random(seed)
    world = World(home)
    home.ledger.update_run(world.run_id, status="done")
    made: list[str] = []
    parents: dict[str, list[str]] = {}
    uses: dict[str, set[str]] = {}
    for number in range(25):
        if number % 5 == 0:
            run_id = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=number)
            home.ledger.update_run(run_id, status="done")
            uses[run_id] = set()
        sources = chance.sample(made, min(len(made), chance.randint(0, 3)))
        inputs = [("i", digest) for digest in sources]
        digest = world.make(f"s{number}", "x.y", {"o": ("corpus", {"n": number})}, inputs, run_id=run_id)["o"]
        made.append(digest)
        parents[digest] = sources
        uses[run_id] |= {digest, *sources}
    pinned = set(chance.sample(made, 2))
    for digest in pinned:
        home.ledger.pin(digest)
    forgotten = chance.sample(sorted(uses), 3)
    expected: set[str] = set()
    ahead = pinned.union(*(used for run_id, used in uses.items() if run_id not in forgotten))
    while ahead:
        digest = ahead.pop()
        if digest not in expected:
            expected.add(digest)
            ahead |= set(parents[digest])
    collect(home, forget=forgotten)
    assert set(home.store.digests()) == expected
