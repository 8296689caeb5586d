"""Checkpoints behind an fsspec address: copied, fetched, kept and dropped, and an address that is down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from drill import digest, small_run
from fsspec.implementations.local import LocalFileSystem
from train_support import Killed, KilledAt, Listener

from liuyi.core.errors import StepError
from liuyi.train import remote
from liuyi.train.checkpoint import Checkpoints
from liuyi.train.guards import GuardConfig
from liuyi.train.interfaces import LoopConfig
from liuyi.train.log import LOG_FILE
from liuyi.train.params import KeepParams
from liuyi.train.remote import COMPLETE, RemoteCheckpoints
from liuyi.train.retention import Name, Retention
from liuyi.train.snapshot import Snapshot
from waiting import wait_for


class Shelf(LocalFileSystem):
    """A local folder treated as remote, which can be down, damage what it is given, or take its time."""

    protocol = "shelf"
    down = False
    damaging = 0
    """So many of the next files are changed as they are written."""
    gate = threading.Event()
    """Nothing is opened before it is set."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path.removeprefix("shelf://").rstrip("/") or "/"

    def ls(self, *args: Any, **kwargs: Any) -> Any:
        self._demand_up()
        return super().ls(*args, **kwargs)

    def makedirs(self, *args: Any, **kwargs: Any) -> Any:
        self._demand_up()
        return super().makedirs(*args, **kwargs)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        self._demand_up()
        assert Shelf.gate.wait(240)
        file = super()._open(path, mode, *args, **kwargs)
        if "w" in mode and Shelf.damaging:
            Shelf.damaging -= 1
            file.write(b"!")
        return file

    def _demand_up(self) -> None:
        if Shelf.down:
            raise ConnectionError("no route to 'shelf://user:hunter2@host'")


fsspec.register_implementation("shelf", Shelf, clobber=True)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Shelf.down, Shelf.damaging = False, 0
    Shelf.gate.set()
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    yield f"shelf://{tmp_path / 'shelf'}"
    Shelf.down = False
    Shelf.gate.set()


def config(url: str, steps: int = 12, **more: Any) -> LoopConfig:
    return LoopConfig(steps, checkpoint_every_s=0.0, guard=GuardConfig(rollback_steps=10), checkpoint_url=url, **more)


@pytest.mark.parametrize("where", ["shelf", "memory"])
def test_a_fresh_machine_goes_on_where_the_last_one_was(tmp_path: Path, url: str, where: str) -> None:
    url = url if where == "shelf" else f"memory://{tmp_path.name}"
    expected, _, _ = small_run(tmp_path / "whole", steps=12)
    with pytest.raises(Killed):
        small_run(tmp_path / "one", steps=12, config=config(url), listener=KilledAt(8))
    listener = Listener()
    model, _, seen = small_run(tmp_path / "another", steps=12, config=config(url), listener=listener)
    assert any("was fetched from" in line for line in listener.logs)
    assert "resumed at step 7 of 12" in listener.logs
    assert seen.seen == list(range(7, 12))
    assert digest(model) == digest(expected)
    logs = [(tmp_path / run / "work" / LOG_FILE).read_bytes() for run in ("whole", "another")]
    assert logs[0] == logs[1]


def test_a_fresh_machine_rolls_back_too(tmp_path: Path, url: str) -> None:
    """To where the last one would have gone, which is not the checkpoint that it goes on from."""
    poisoned = (5, 6, 7)
    expected, whole, _ = small_run(tmp_path / "whole", steps=12, poisoned=poisoned)
    assert [jump.step for jump in whole.jumps] == [0]
    one = config(url, retention=Retention(1, every_steps=4))
    with pytest.raises(Killed):
        small_run(tmp_path / "one", steps=12, config=one, poisoned=poisoned, listener=KilledAt(7))
    listener = Listener()
    model, result, _ = small_run(tmp_path / "another", config=one, steps=12, poisoned=poisoned, listener=listener)
    assert "resumed at step 6 of 12" in listener.logs
    assert result.jumps == whole.jumps
    assert digest(model) == digest(expected)
    here = {path.name for path in (tmp_path / "another" / "work" / "checkpoints").iterdir()}
    assert {name.step for name in shelved(tmp_path, "work")} >= {0, 4, 8, 12}
    assert here == set(map(str, shelved(tmp_path, "work")))


def test_an_address_that_is_down_stops_nothing(tmp_path: Path, url: str) -> None:
    expected, _, _ = small_run(tmp_path / "whole", steps=12)

    class Outage(Listener):
        """The address is down from step 2 to step 9."""

        def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
            Shelf.down = 2 <= done < 9
            if done == 8:
                wait_for(lambda: any("failed" in line for line in self.logs))

    listener = Outage()
    model, _, _ = small_run(tmp_path / "run", steps=12, config=config(url), listener=listener)
    assert digest(model) == digest(expected)
    told = [line for line in listener.logs if "failed: ConnectionError" in line]
    assert told
    assert not any("hunter2" in line for line in listener.logs)
    assert Name(13, 12) in shelved(tmp_path, "work")


def test_a_slow_address_holds_nothing_up(tmp_path: Path, url: str) -> None:
    """Training ends while the first copy has not begun; only the newest is copied then, and the milestones."""
    Shelf.gate.clear()
    listener = Listener()
    run = threading.Thread(
        target=small_run,
        args=(tmp_path / "run",),
        kwargs={"config": config(url, retention=Retention(1, every_steps=5)), "listener": listener},
    )
    run.start()
    log = tmp_path / "run" / "work" / LOG_FILE
    wait_for(lambda: log.exists() and log.read_text().count("\n") == 12)
    assert not list((tmp_path / "shelf").glob(f"*/*/{COMPLETE}"))
    Shelf.gate.set()
    run.join()
    assert {name.step for name in shelved(tmp_path, "work")} == {0, 5, 10, 12}
    assert any("came before its turn" in line for line in listener.logs)


def shelved(tmp_path: Path, run: str) -> set[Name]:
    """The whole checkpoints on the shelf."""
    paths = (tmp_path / "shelf" / run).glob(f"*/{COMPLETE}")
    return {name for path in paths if (name := Name.parse(path.parent.name))}


def test_the_same_checkpoints_stay_here_and_there(tmp_path: Path, url: str) -> None:
    policy = Retention(2, every_steps=4)
    store = RemoteCheckpoints(url, "run", policy, print)
    with Checkpoints(tmp_path / "here", retention=policy, remote=store) as checkpoints:
        for step in range(10):
            checkpoints.save(Snapshot(step, {"model": {"w": torch.ones(2)}}, {}), anchors=[2])
            checkpoints.wait()
            finish(store)
    here = {path.name for path in (tmp_path / "here").iterdir()}
    assert {str(name) for name in shelved(tmp_path, "run")} == here
    assert {int(name.split("-step")[1]) for name in here} == {0, 2, 4, 8, 9}


def finish(store: RemoteCheckpoints) -> None:
    wait_for(lambda: not store.wanted(), pause_s=0.002)


def test_what_is_damaged_on_the_way_is_copied_again(tmp_path: Path, url: str) -> None:
    Shelf.damaging = 1
    told: list[str] = []
    store = RemoteCheckpoints(url, "run", Retention(), told.append)
    with Checkpoints(tmp_path / "here", remote=store) as checkpoints:
        checkpoints.save(Snapshot(0, {"model": {"w": torch.ones(2)}}, {}))
    assert any("does not read back as it was written" in line for line in told)
    assert shelved(tmp_path, "run") == {Name(1, 0)}


def test_half_and_damaged_copies_are_passed_over(tmp_path: Path, url: str) -> None:
    store = RemoteCheckpoints(url, "run", Retention(9), print)
    with Checkpoints(tmp_path / "here", retention=Retention(9), remote=store) as checkpoints:
        for step in range(3):
            checkpoints.save(Snapshot(step, {"model": {"w": torch.full((2,), step)}}, {}))
            checkpoints.wait()
            finish(store)
    there = tmp_path / "shelf" / "run"
    (there / "000003-step000000002" / COMPLETE).unlink()
    (there / "000002-step000000001" / "tensors-0.safetensors").write_bytes(b"x")
    told: list[str] = []
    with Checkpoints(tmp_path / "new", remote=RemoteCheckpoints(url, "run", Retention(), told.append)) as checkpoints:
        found = checkpoints.load()
    assert found is not None
    assert found.step == 0
    assert any("000002-step000000001" in line and "is damaged" in line for line in told)


def save_steps(checkpoints: Checkpoints, steps: Iterable[int]) -> None:
    for step in steps:
        checkpoints.save(Snapshot(step, {"model": {"w": torch.full((2,), step)}}, {}))
        checkpoints.wait()
        if checkpoints.remote:
            finish(checkpoints.remote)


def test_copies_of_what_is_no_longer_true_are_removed(tmp_path: Path, url: str) -> None:
    """By a rollback; the anchor that was there before counts again."""
    store = RemoteCheckpoints(url, "run", Retention(3), print)
    with Checkpoints(tmp_path / "here", retention=Retention(3), remote=store) as checkpoints:
        save_steps(checkpoints, range(4))
        checkpoints.forget_after(1)
        save_steps(checkpoints, [2])
    assert shelved(tmp_path, "run") == {Name(2, 1), Name(5, 2)}


def test_half_copies_keep_no_whole_one_from_staying(tmp_path: Path, url: str) -> None:
    half = tmp_path / "shelf" / "run" / "000099-step000000099"
    half.mkdir(parents=True)
    (half / "state-0.json").write_text("{")
    store = RemoteCheckpoints(url, "run", Retention(1), print)
    with Checkpoints(tmp_path / "here", retention=Retention(1), remote=store) as checkpoints:
        save_steps(checkpoints, [0])
    assert shelved(tmp_path, "run") == {Name(1, 0)}
    assert not half.exists()


def test_milestones_of_a_run_that_was_killed_are_copied_when_it_goes_on(tmp_path: Path, url: str) -> None:
    policy = Retention(1, every_steps=2)
    with Checkpoints(tmp_path / "here", retention=policy) as checkpoints:
        save_steps(checkpoints, range(4))
    store = RemoteCheckpoints(url, "run", policy, print)
    with Checkpoints(tmp_path / "here", retention=policy, remote=store):
        finish(store)
    assert {name.step for name in shelved(tmp_path, "run")} == {0, 2}


def test_what_is_damaged_here_is_not_copied(tmp_path: Path, url: str) -> None:
    with Checkpoints(tmp_path / "here") as checkpoints:
        save_steps(checkpoints, [0])
    (path,) = (tmp_path / "here").iterdir()
    (path / "tensors-0.safetensors").write_bytes(b"x")
    told: list[str] = []
    store = RemoteCheckpoints(url, "run", Retention(), told.append)
    store.offer(path)
    finish(store)
    assert "tensors-0.safetensors does not match its digest" in told[0]
    assert not shelved(tmp_path, "run")


@pytest.mark.parametrize("file", ["..", "../../x", ""])
def test_a_list_of_files_that_leave_the_folder_is_none(tmp_path: Path, url: str, file: str) -> None:
    there = tmp_path / "shelf" / "run" / "000001-step000000000"
    there.mkdir(parents=True)
    (there / COMPLETE).write_text(json.dumps({file: "0"}))
    (tmp_path / "here").mkdir()
    RemoteCheckpoints(url, "run", Retention(), print).fetch(tmp_path / "here")
    assert not list((tmp_path / "here").iterdir())


def test_the_end_waits_as_long_as_bytes_move(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: a chunk takes almost as long as the end is patient, and there are some forty."""
    chunks, clock = remote._chunks, [0.0]

    def slowly(file: Any) -> Iterator[bytes]:
        for chunk in chunks(file):
            time.sleep(0.01)
            clock[0] += 0.04
            yield chunk

    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(remote, "_chunks", slowly)
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(remote, "PATIENCE_S", 0.05)
    store = RemoteCheckpoints(url, "run", Retention(), print)
    with Checkpoints(tmp_path / "here", remote=store) as checkpoints:
        checkpoints.save(Snapshot(0, {"model": {"w": torch.zeros(4000)}}, {}))
    assert clock[0] > 1.0
    assert shelved(tmp_path, "run") == {Name(1, 0)}


def test_an_address_of_an_unknown_kind_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no way to this address: Protocol not known: nonsense"):
        small_run(tmp_path / "run", config=config("nonsense://bucket/runs"))


def test_nothing_is_begun_anew_while_the_address_cannot_be_read(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 0.1)
    with pytest.raises(Killed):
        small_run(tmp_path / "run", config=config(url), listener=KilledAt(5))
    Shelf.down = True
    with pytest.raises(StepError, match="there is no checkpoint here, and those at the address cannot be read"):
        small_run(tmp_path / "other", config=config(url))
    _, _, seen = small_run(tmp_path / "run", config=config(url, 7))
    assert seen.seen == [4, 5, 6]


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@host/bucket", "simplecache::s3://key:hunter2@bucket", "https://host/bucket?sig=hunter2"]
)
def test_an_address_has_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="belong in the environment"):
        KeepParams(checkpoint_url=url)


def test_an_address_without_a_password_stays() -> None:
    assert KeepParams(checkpoint_url="s3://bucket/runs").checkpoint_url == "s3://bucket/runs"
