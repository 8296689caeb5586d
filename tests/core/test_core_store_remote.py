"""A store behind an fsspec address: files first, manifest last, read through a cache that mends itself."""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.artifact import MANIFEST, Artifact
from liuyi.core.errors import ArtifactError, OutOfDisk
from liuyi.core.store import Store


class Bucket(LocalFileSystem):
    """A local folder that is treated as remote, whose writes can be made to fail."""

    protocol = "bucket"
    root_marker = "/"
    fail_after: int | None = None
    error = errno.EIO

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path.removeprefix("bucket://").rstrip("/") or "/"

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and Bucket.fail_after is not None:
            if Bucket.fail_after == 0:
                raise OSError(Bucket.error, "the test says so", path)
            Bucket.fail_after -= 1
        return super()._open(path, mode, *args, **kwargs)


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(params=["memory", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    Bucket.fail_after, Bucket.error = None, errno.EIO
    if request.param == "bucket":
        yield f"bucket://{tmp_path / 'remote'}"
    else:
        address = f"memory://liuyi-{secrets.token_hex(4)}/store"
        yield address
        filesystem, root = fsspec.core.url_to_fs(address)
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)
    Bucket.fail_after = None


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    return Store(url, tmp_path / "cache")


def publish(store: Store, text: str = "y") -> Artifact:
    staging = store.stage("corpus")
    (staging.path / "sub").mkdir()
    (staging.path / "x").write_text(text)
    (staging.path / "sub" / "z").write_text("w")
    return store.publish(staging, step="data.clean", step_key="k", output="corpus")


def remote_file(url: str, digest: str, name: str) -> tuple[Any, str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return filesystem, f"{root}/{digest[:2]}/{digest}/{name}"


def test_what_one_machine_publishes_another_reads(store: Store, url: str, tmp_path: Path) -> None:
    artifact = publish(store)
    assert artifact.file("x").read_text() == "y"
    other = Store(url, tmp_path / "other-cache")
    assert list(other.digests()) == [artifact.digest]
    assert list(other.list()) == [artifact.manifest]
    assert other.has(artifact.digest)
    assert other.verify(artifact.digest) == []
    found = other.open(artifact.digest[:10])
    assert found.manifest == artifact.manifest
    assert (found.file("x").read_text(), found.file("sub/z").read_text()) == ("y", "w")
    assert found.path != artifact.path
    assert abs(other.published(artifact.digest) - store.published(artifact.digest)) < 1


@given(files=st.dictionaries(st.text("ab*?[]{} %#+~中é.", min_size=1, max_size=6), st.binary(max_size=50), min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_names_survive_the_way_there_and_back(files: dict[str, bytes]) -> None:
    files = {f"f{name}": data for name, data in files.items()}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"bucket://{folder}/remote", Path(folder) / "cache")
        staging = store.stage("corpus")
        for name, data in files.items():
            (staging.path / name).write_bytes(data)
        artifact = store.publish(staging, step="data.clean", output="corpus")
        shutil.rmtree(Path(folder) / "cache")
        opened = store.open(artifact.digest)
        assert {path.name: path.read_bytes() for path in opened.path.iterdir() if path.name != MANIFEST} == files


def test_the_cache_is_used_and_mended(store: Store, url: str) -> None:
    artifact = publish(store)
    filesystem, path = remote_file(url, artifact.digest, "x")
    artifact.file("x").write_text("Y")
    assert store.open(artifact.digest).file("x").read_text() == "y"
    artifact.file("sub/z").unlink()
    assert store.open(artifact.digest).file("sub/z").read_text() == "w"
    filesystem.rm_file(path)
    assert store.open(artifact.digest).file("x").read_text() == "y"
    assert store.verify(artifact.digest) == ["x: missing"]


def test_damage_there_is_named_and_never_reaches_the_cache(store: Store, url: str, tmp_path: Path) -> None:
    artifact = publish(store)
    other = Store(url, tmp_path / "other-cache")
    filesystem, path = remote_file(url, artifact.digest, "x")
    filesystem.pipe_file(path, b"Y")
    with pytest.raises(ArtifactError) as caught:
        other.open(artifact.digest)
    assert "x: its bytes have changed" in str(caught.value)
    assert artifact.digest[:12] in str(caught.value)
    assert other.verify(artifact.digest) == ["x: its bytes have changed"]
    filesystem.pipe_file(path, b"longer")
    assert other.verify(artifact.digest) == ["x: has 6 bytes instead of 1"]
    filesystem.rm_file(path)
    with pytest.raises(ArtifactError, match="x: missing"):
        other.open(artifact.digest)
    filesystem.pipe_file(path, b"y")
    filesystem.pipe_file(remote_file(url, artifact.digest, "extra")[1], b"")
    assert other.verify(artifact.digest) == ["extra: not in the manifest"]
    assert not other._local.has(artifact.digest)
    assert list(other.staging.iterdir()) == []
    filesystem.pipe_file(remote_file(url, artifact.digest, MANIFEST)[1], b"{")
    with pytest.raises(ArtifactError, match=f"broken {MANIFEST}"):
        other.open(artifact.digest)


def test_a_hostile_manifest_writes_nowhere_else(store: Store, url: str, tmp_path: Path) -> None:
    name = "../../../../escaped"
    sha256 = hashlib.sha256(b"bad").hexdigest()
    digest = hashlib.sha256(json.dumps([[name, sha256]], separators=(",", ":")).encode()).hexdigest()
    files = [{"path": name, "bytes": 3, "sha256": sha256}]
    manifest = json.dumps({"kind": "corpus", "digest": digest, "files": files})
    filesystem, path = remote_file(url, digest, MANIFEST)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, manifest.encode())
    with pytest.raises(ArtifactError, match="unsafe path"):
        store.open(digest)
    assert not list(tmp_path.rglob("escaped"))


def test_deleting_takes_the_cached_copy_too(store: Store) -> None:
    artifact, kept = publish(store), publish(store, "kept")
    store.delete(artifact.digest)
    store.delete(artifact.digest)
    assert not store.has(artifact.digest)
    assert list(store.digests()) == [kept.digest]
    assert not artifact.path.exists()
    with pytest.raises(ArtifactError, match="no artifact"):
        store.open(artifact.digest)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_upload_that_breaks_off_is_invisible_and_can_be_done_again(tmp_path: Path, writes: int) -> None:
    store = Store(f"bucket://{tmp_path / 'remote'}", tmp_path / "cache")
    Bucket.fail_after = writes
    with pytest.raises(OSError, match="the test says so"):
        publish(store)
    Bucket.fail_after = None
    assert list(store.digests()) == []
    artifact = publish(store)
    assert store.verify(artifact.digest) == []
    assert list(store.digests()) == [artifact.digest]


def test_a_full_bucket_is_told_as_such(tmp_path: Path) -> None:
    store = Store(f"bucket://{tmp_path / 'remote'}", tmp_path / "cache")
    Bucket.fail_after, Bucket.error = 1, errno.EDQUOT
    with pytest.raises(OutOfDisk, match="uploading"):
        publish(store)
    Bucket.fail_after, Bucket.error = None, errno.EIO
    assert list(store.digests()) == []


def test_a_full_cache_is_told_as_such(small_disk: Path, tmp_path: Path) -> None:
    address = f"bucket://{tmp_path / 'remote'}"
    artifact = publish(Store(address, tmp_path / "cache"), "x" * 4_000_000)
    store = Store(address, small_disk)
    with pytest.raises(OutOfDisk, match="fetching"):
        store.open(artifact.digest)
    assert list(store.staging.iterdir()) == []
    assert not store._local.has(artifact.digest)


@pytest.mark.parametrize("url", ["nosuch://user:hunter2@host/x", "https://user:hunter2@host/x?token=hunter2"])
def test_an_address_never_shows_its_password(url: str, tmp_path: Path) -> None:
    try:
        said = f"{Store(url, tmp_path)!r} {Store(url, tmp_path).url}"
    except ArtifactError as error:
        said = f"{error} {error!r}"
    assert "user" in said
    assert "hunter2" not in said
