"""A local store: what is published comes back byte for byte, what is damaged is named, nothing is half there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.artifact import MANIFEST, Artifact, InputRef
from liuyi.core.errors import ArtifactError, OutOfDisk
from liuyi.core.step import Staging
from liuyi.core.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "cache")


def fill(staging: Staging, files: Mapping[str, bytes]) -> Staging:
    for name, data in files.items():
        path = staging.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return staging


def publish(store: Store, files: Mapping[str, bytes]) -> Artifact:
    return store.publish(fill(store.stage("corpus"), files), step="data.clean", step_key="k", output="corpus")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    }


part = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", MANIFEST)
)
names = st.lists(part, min_size=1, max_size=3).map("/".join)


@st.composite
def file_sets(draw: st.DrawFn) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, data in draw(st.dictionaries(names, st.binary(max_size=200), min_size=1, max_size=6)).items():
        if not any(f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/") for other in files):
            files[name] = data
    return files


@given(files=file_sets())
@settings(max_examples=25, deadline=None)
def test_any_files_come_back_and_their_digest_does_not_depend_on_the_order(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, Path(folder) / "cache")
        artifact = publish(store, files)
        assert contents(store.open(artifact.digest).path) == files
        assert artifact.manifest.size_bytes == sum(map(len, files.values()))
        again = publish(store, dict(reversed(files.items())))
        assert again.digest == artifact.digest
        pairs = sorted([name, hashlib.sha256(data).hexdigest()] for name, data in files.items())
        said = json.dumps(pairs, separators=(",", ":"), ensure_ascii=False).encode()
        assert artifact.digest == hashlib.sha256(said).hexdigest()
        assert list(store.digests()) == [artifact.digest]
        assert list(store.staging.iterdir()) == []


@given(files=file_sets(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_one_flipped_bit_is_found_and_named(files: dict[str, bytes], data: st.DataObject) -> None:
    files = {f"any/{name}": content for name, content in files.items()} | {"some": b"bytes"}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, Path(folder) / "cache")
        artifact = publish(store, files)
        entry = data.draw(st.sampled_from([entry for entry in artifact.manifest.files if entry.bytes]))
        bit = data.draw(st.integers(0, 8 * entry.bytes - 1))
        damaged = bytearray(artifact.file(entry.path).read_bytes())
        damaged[bit // 8] ^= 1 << bit % 8
        artifact.file(entry.path).write_bytes(damaged)
        with pytest.raises(ArtifactError) as caught:
            store.open(artifact.digest)
        assert artifact.digest[:12] in str(caught.value)
        assert f"{entry.path}: its bytes have changed" in str(caught.value)
        assert store.verify(artifact.digest) == [f"{entry.path}: its bytes have changed"]


def test_the_manifest_says_where_an_artifact_came_from(store: Store) -> None:
    staging = fill(store.stage("checkpoint"), {"model.safetensors": b"weights"})
    staging.metrics |= {"loss": 0.5, "bad": float("nan"), "steps": 3}
    staging.licences |= {"MIT", "Apache-2.0"}
    inputs = [InputRef(name="tokens", digest="a" * 64)]
    params = {"lr": 1e-3, "name": "中文"}
    store.publish(staging, step="pretrain.train", step_key="k" * 64, output="checkpoint", inputs=inputs, params=params)
    (manifest,) = store.list()
    assert (manifest.kind, manifest.step, manifest.step_key, manifest.output) == (
        "checkpoint",
        "pretrain.train",
        "k" * 64,
        "checkpoint",
    )
    assert manifest.inputs == tuple(inputs)
    assert manifest.params == params
    assert manifest.licences == ("Apache-2.0", "MIT")
    assert manifest.metrics["loss"] == 0.5
    assert manifest.metrics["bad"] != manifest.metrics["bad"]
    assert time.time() - time.mktime(time.strptime(manifest.created[:19], "%Y-%m-%dT%H:%M:%S")) < 100_000


def test_every_kind_of_damage_is_named(store: Store) -> None:
    def damaged() -> Artifact:
        files = {"documents.parquet": b"rows", "sub/more.json": b"{}"}
        artifact = publish(store, files)
        assert store.verify(artifact.digest) == []
        return artifact

    def what(artifact: Artifact) -> str:
        with pytest.raises(ArtifactError) as caught:
            store.open(artifact.digest)
        assert artifact.digest[:12] in str(caught.value)
        (problem,) = store.verify(artifact.digest)
        store.delete(artifact.digest)
        return problem

    artifact = damaged()
    artifact.file("sub/more.json").unlink()
    assert what(artifact) == "sub/more.json: missing"

    artifact = damaged()
    artifact.file("documents.parquet").write_bytes(b"ro")
    assert what(artifact) == "documents.parquet: has 2 bytes instead of 4"

    artifact = damaged()
    artifact.file("sub/extra.txt").write_bytes(b"")
    assert what(artifact) == "sub/extra.txt: not in the manifest"

    artifact = damaged()
    artifact.file("sub/more.json").unlink()
    artifact.file("sub/more.json").symlink_to(artifact.file("documents.parquet"))
    assert "sub/more.json: missing" in what(artifact)

    artifact = damaged()
    text = artifact.file(MANIFEST).read_text()
    artifact.file(MANIFEST).write_text(text[: len(text) // 2])
    assert what(artifact).startswith(f"{MANIFEST}: artifact {artifact.digest[:12]} has a broken {MANIFEST}")

    artifact = damaged()
    artifact.file(MANIFEST).write_text(text.replace('"bytes": 4', '"bytes": "four"'))
    assert "files.0.bytes" in what(artifact)

    artifact = damaged()
    artifact.file(MANIFEST).write_text(text.replace("sub/more.json", "../../../etc/passwd"))
    assert "unsafe path" in what(artifact)

    artifact = damaged()
    artifact.file(MANIFEST).write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    assert "newer version of Liuyi" in what(artifact)

    artifact = damaged()
    other = publish(store, {"x": b"y"})
    artifact.file(MANIFEST).write_bytes(other.file(MANIFEST).read_bytes())
    assert "belongs to other files" in what(artifact)


def test_without_its_manifest_an_artifact_is_not_whole(store: Store) -> None:
    artifact = publish(store, {"x": b"y"})
    artifact.file(MANIFEST).unlink()
    assert not store.has(artifact.digest)
    with pytest.raises(ArtifactError, match=f"has no {MANIFEST}"):
        store.open(artifact.digest)


def test_the_same_bytes_are_kept_once_with_the_first_manifest(store: Store) -> None:
    first = publish(store, {"x": b"y"})
    second = store.publish(fill(store.stage("corpus"), {"x": b"y"}), step="data.other", step_key="k2", output="o")
    assert second.digest == first.digest
    assert second.manifest == first.manifest
    assert list(store.staging.iterdir()) == []


def test_publishing_again_heals_a_damaged_artifact(store: Store) -> None:
    artifact = publish(store, {"x": b"y", "z": b"w"})
    artifact.file("x").write_bytes(b"Y")
    assert publish(store, {"x": b"y", "z": b"w"}).digest == artifact.digest
    assert store.verify(artifact.digest) == []


def test_unverified_opening_still_sees_what_is_missing(store: Store) -> None:
    artifact = publish(store, {"x": b"y", "z": b"w"})
    artifact.file("x").write_bytes(b"Y")
    assert store.open(artifact.digest, verify=False).digest == artifact.digest
    artifact.file("z").unlink()
    with pytest.raises(ArtifactError, match="z: missing"):
        store.open(artifact.digest, verify=False)


def test_an_artifact_is_found_by_a_unique_beginning(store: Store) -> None:
    digests = sorted(publish(store, {"x": str(number).encode()}).digest for number in range(40))
    assert all(store.resolve(digest[:16]) == digest == store.resolve(digest) for digest in digests)
    assert list(store.digests()) == digests
    with pytest.raises(ArtifactError, match="too short"):
        store.resolve(digests[0][:5])
    with pytest.raises(ArtifactError, match="not the beginning of a digest"):
        store.resolve("sft.checkpoint")
    with pytest.raises(ArtifactError, match="no artifact 'ffffff"):
        store.resolve("f" * 64)
    twin = digests[0][:8] + "0" * 56
    store._local.folder(digests[0]).rename(store._local.folder(twin).with_name(twin))
    store._local.folder(digests[1]).rename(store._local.root / twin[:2] / (digests[0][:8] + "1" * 56))
    with pytest.raises(ArtifactError, match="beginning of 2 artifacts") as caught:
        store.resolve(digests[0][:8])
    assert twin[:16] in str(caught.value)


def test_what_an_artifact_cannot_hold_is_refused(store: Store, tmp_path: Path) -> None:
    def refused(staging: Staging) -> str:
        with pytest.raises(ArtifactError) as caught:
            store.publish(staging, step="data.clean", output="corpus")
        assert not staging.path.exists()
        return str(caught.value)

    assert "at least one file" in refused(store.stage("corpus"))

    staging = fill(store.stage("corpus"), {"x": b""})
    (staging.path / "link").symlink_to(tmp_path)
    assert "files and folders only" in refused(staging)

    staging = fill(store.stage("corpus"), {"x": b""})
    os.mkfifo(staging.path / "pipe")
    assert "files and folders only" in refused(staging)

    staging = fill(store.stage("corpus"), {MANIFEST: b"{}"})
    assert f"cannot write {MANIFEST}" in refused(staging)

    staging = store.stage("corpus")
    (Path(os.fsdecode(os.fsencode(staging.path) + b"/\xff"))).write_bytes(b"")
    assert "not UTF-8" in refused(staging)
    assert list(store.digests()) == []


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="the store cannot be written: Not a directory"):
        Store(str(tmp_path / "file" / "store"), tmp_path).stage("corpus")


def test_a_deleted_artifact_is_gone(store: Store) -> None:
    artifact = publish(store, {"x": b"y"})
    store.delete(artifact.digest)
    store.delete(artifact.digest)
    assert not store.has(artifact.digest)
    assert list(store.digests()) == []
    assert list(store.staging.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_published(small_disk: Path) -> None:
    store = Store(str(small_disk / "store"), small_disk / "cache")
    artifact = publish(store, {"x": b"y"})
    staging = fill(store.stage("corpus"), {"big": b"x" * 500_000})
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 4_000_000)
    with pytest.raises(OutOfDisk, match="no space left while publishing") as caught:
        store.publish(staging, step="data.clean", output="corpus")
    assert "MB are free" in str(caught.value)
    assert list(store.digests()) == [artifact.digest]
    assert list(store.staging.iterdir()) == []
    (small_disk / "ballast").unlink()
    assert publish(store, {"big": b"x" * 500_000}).manifest.size_bytes == 500_000
    with pytest.raises(OutOfDisk, match="preparing"):
        [store.stage("corpus") for _ in range(200)]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_quota_that_is_reached_leaves_nothing_half_published(
    store: Store, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = publish(store, {"x": b"kept"})
    staging = fill(store.stage("corpus"), {"x": b"y", "z": b"w"})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OutOfDisk, match="publishing"):
            store.publish(staging, step="data.clean", output="corpus")
    assert list(store.digests()) == [kept.digest]
    assert list(store.staging.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from liuyi.core.store import Store

store = Store(sys.argv[1], Path(sys.argv[1]))
for number in range(10_000):
    staging = store.stage("corpus")
    (staging.path / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        (staging.path / name).write_bytes(f"{sys.argv[2]} {number} {name}".encode() * 1000)
    store.publish(staging, step="data.clean", output="corpus")
    if number % 10 == 0:
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_artifacts_only(store: Store) -> None:
    from liuyi.core.owner import is_alive

    for round_ in range(6):
        command = [sys.executable, "-c", WRITER, str(store._local.root), str(round_)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    digests = list(store.digests())
    assert len(digests) >= 6
    assert all(store.verify(digest) == [] for digest in digests)
    assert all(is_alive(folder.name) is False for folder in store.staging.iterdir())


def test_processes_that_publish_the_same_bytes_agree(store: Store) -> None:
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)

    def work() -> None:
        for number in range(20):
            barrier.wait()
            publish(store, {"x": str(number).encode() * 1000})

    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    digests = list(store.digests())
    assert len(digests) == 20
    assert all(store.verify(digest) == [] for digest in digests)
    assert list(store.staging.iterdir()) == []
