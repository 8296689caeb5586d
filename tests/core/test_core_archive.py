"""Archives carry an artifact with its ancestry to another home; hostile ones carry nothing anywhere."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liuyi.core.archive import export_archive, import_archive
from liuyi.core.errors import ArtifactError, LiuyiError, OutOfDisk
from liuyi.core.gc import collect
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.lineage import trace
from world import World


@pytest.fixture
def other(tmp_path: Path) -> Home:
    return Home(tmp_path / "other")


@pytest.fixture
def archive(world: World, tmp_path: Path) -> Path:
    path = tmp_path / "sft.tar"
    export_archive(world.home, world.digests["sft"], path)
    return path


ANCESTRY = ("docs", "kept", "vocab", "tokens", "base", "chats", "sft")


def test_an_artifact_arrives_with_all_it_came_from(world: World, archive: Path, other: Home) -> None:
    packed = import_archive(other, archive)
    d = world.digests
    assert packed.root.digest == d["sft"]
    assert set(other.store.digests()) == {d[name] for name in ANCESTRY}
    assert all(other.store.verify(digest) == [] for digest in other.store.digests())
    assert other.store.manifest(d["tokens"]) == world.home.store.manifest(d["tokens"])
    here, there = trace(world.home, d["sft"], "up").as_json(), trace(other, d["sft"], "up").as_json()
    for said in (here, there):
        strip(said)
    assert there == here
    assert [pin.digest for pin in other.ledger.pins()] == [d["sft"]]
    assert collect(other).artifacts == ()


def strip(said: object) -> None:
    """Remove what belongs to a home and not to the lineage: its runs and its gates."""
    if isinstance(said, dict):
        for name in ("run", "passed_on_by"):
            said.pop(name, None)
        for value in said.values():
            strip(value)
    elif isinstance(said, list):
        for value in said:
            strip(value)


def test_the_same_content_gives_the_same_archive(world: World, archive: Path, tmp_path: Path) -> None:
    export_archive(world.home, world.digests["sft"], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "sft.tar", "again.tar"}


def test_any_tar_reads_it(archive: Path) -> None:
    import subprocess

    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert listed[0] == "liuyi.json"
    assert sum(name.endswith("manifest.json") for name in listed) == len(ANCESTRY)


def test_importing_twice_changes_nothing(archive: Path, other: Home) -> None:
    import_archive(other, archive)
    before = other.ledger.executions()
    import_archive(other, archive)
    assert other.ledger.executions() == before


def test_what_the_ledger_knows_better_stays(world: World, archive: Path, other: Home) -> None:
    (execution,) = [each for each in world.home.ledger.executions() if each.step == "finetune.sft"]
    other.ledger.record_execution(
        key=execution.key, step="mine", version=1, params={}, seed=1, device="", inputs=[], outputs={}, seconds=1
    )
    import_archive(other, archive)
    known = other.ledger.execution(execution.key)
    assert known is not None
    assert known.step == "mine"


def test_alone_an_artifact_travels_with_its_records_only(world: World, tmp_path: Path, other: Home) -> None:
    path = tmp_path / "alone.tar"
    packed = export_archive(world.home, world.digests["sft"], path, alone=True)
    assert packed.absent == ()
    import_archive(other, path)
    assert list(other.store.digests()) == [world.digests["sft"]]
    assert Graph(other).ancestors([world.digests["sft"]]) == {world.digests[name] for name in ANCESTRY}


def test_ancestors_that_are_gone_are_told(world: World, tmp_path: Path, other: Home) -> None:
    world.home.store.delete(world.digests["kept"])
    packed = export_archive(world.home, world.digests["sft"], tmp_path / "x.tar")
    assert packed.absent == (world.digests["kept"],)
    import_archive(other, tmp_path / "x.tar")
    assert world.digests["kept"] not in set(other.store.digests())


def test_damage_stops_an_export_and_leaves_no_file(world: World, tmp_path: Path) -> None:
    world.home.store.open(world.digests["docs"]).file("documents.parquet").write_bytes(b"bad")
    with pytest.raises(ArtifactError, match="is damaged"):
        export_archive(world.home, world.digests["sft"], tmp_path / "x.tar")
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]
    with pytest.raises(ArtifactError, match="cannot be written"):
        export_archive(world.home, world.digests["chats"], tmp_path / "nosuch" / "x.tar")


def test_a_full_disk_leaves_no_archive_and_no_artifact(world: World, small_disk: Path, archive: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"x" * 4_000_000)
    with pytest.raises(OutOfDisk, match="writing an archive"):
        export_archive(world.home, world.digests["sft"], small_disk / "x.tar")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    (small_disk / "ballast").write_bytes(b"x" * 1_900_000)
    full = Home(small_disk / "home")
    with pytest.raises(OutOfDisk):
        import_archive(full, archive)
    assert list(full.store.digests()) == []


Edit = Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]


def edited(archive: Path, edit: Edit) -> Path:
    with tarfile.open(archive) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    edit(members)
    path = archive.with_name("edited.tar")
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made, b"bad"


def replace_first_file(kind: bytes, link: str = "") -> Edit:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[2] = member(members[2][0].name, kind, link)

    return edit


def rename_first_file(name: str) -> Edit:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[2][0].name = name

    return edit


def change_index(**fields: object) -> Edit:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[0] = (members[0][0], json.dumps(json.loads(members[0][1]) | fields).encode())

    return edit


def escape(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Let a manifest itself name a path outside, with everything else as it should be."""
    from liuyi.core.digest import files_digest, sha256_bytes

    name = "../../../../escaped"
    digest = files_digest({name: sha256_bytes(b"bad")})
    entry = {"path": name, "bytes": 3, "sha256": sha256_bytes(b"bad")}
    manifest = json.dumps({"kind": "corpus", "digest": digest, "files": [entry]}).encode()
    index = json.dumps({"root": digest, "artifacts": [digest]}).encode()
    members[:] = [
        (tarfile.TarInfo("liuyi.json"), index),
        (tarfile.TarInfo(f"artifacts/{digest}/manifest.json"), manifest),
        (tarfile.TarInfo(f"artifacts/{digest}/{name}"), b"bad"),
    ]


HOSTILE: dict[str, tuple[Edit, str]] = {
    "absolute": (rename_first_file("/tmp/escaped"), "where artifacts/"),
    "upward": (rename_first_file("../escaped"), "where artifacts/"),
    "upward-manifest": (escape, "unsafe path"),
    "symlink": (replace_first_file(tarfile.SYMTYPE, "/etc/passwd"), "not a plain file"),
    "hardlink": (replace_first_file(tarfile.LNKTYPE, "/etc/passwd"), "not a plain file"),
    "device": (replace_first_file(tarfile.CHRTYPE), "not a plain file"),
    "pipe": (replace_first_file(tarfile.FIFOTYPE), "not a plain file"),
    "folder": (replace_first_file(tarfile.DIRTYPE), "not a plain file"),
    "content": (lambda members: members.__setitem__(2, (members[2][0], b"x" + members[2][1][1:])), "have changed"),
    "size": (lambda members: members.__setitem__(2, (members[2][0], b"x")), "bytes instead of"),
    "twice": (lambda members: members.insert(3, members[2]), "should be"),
    "more": (lambda members: members.append(member("more")), "also holds 'more'"),
    "missing": (lambda members: members.__delitem__(2), "should be"),
    "short": (lambda members: members.pop(), "ends before"),
    "unordered": (lambda members: members.reverse(), "where liuyi.json should be"),
    "empty": (lambda members: members.clear(), "ends before liuyi.json"),
    "future": (change_index(format=2), "format"),
    "root": (change_index(root="a" * 64), "does not list"),
    "digest": (change_index(artifacts=["../x"]), "artifacts.0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(name: str, archive: Path, other: Home, tmp_path: Path) -> None:
    edit, message = HOSTILE[name]
    path = edited(archive, edit)
    with pytest.raises(ArtifactError) as caught:
        import_archive(other, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert list(other.store.digests()) == []
    assert other.ledger.pins() == []
    assert other.ledger.executions() == []
    assert not other.store.staging.exists() or list(other.store.staging.iterdir()) == []
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped").exists()


def test_what_is_no_archive_is_told(other: Home, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_archive(other, path)
    path.write_bytes(b"this is not a tar file" * 100)
    with pytest.raises(ArtifactError, match="not a whole archive"):
        import_archive(other, path)


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_bytes_changed_anywhere_bring_in_nothing_but_what_was_sent(
    archive: Path, world: World, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sent = archive.read_bytes()
    damaged = bytearray(sent)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.sampled_from([len(sent), len(sent) // 2, len(sent) - 2000]))]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "x.tar").write_bytes(damaged)
    home = Home(folder / "home")
    try:
        import_archive(home, folder / "x.tar")
    except LiuyiError:
        assert list(home.store.digests()) == []
    assert set(home.store.digests()) <= set(world.home.store.digests())
    assert all(home.store.verify(digest) == [] for digest in home.store.digests())
    home.close()
