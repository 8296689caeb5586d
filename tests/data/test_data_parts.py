"""Work in parts: the same whatever engine does it, and whatever is killed on the way; memory that does not grow."""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from data_support import corpus, document, prose

from liuyi.cli.run import command as run_command
from liuyi.core.artifact import Artifact
from liuyi.core.errors import StepError
from liuyi.data import parts
from liuyi.data.attributes import read_groups, with_columns
from liuyi.data.clean.run import clean, measure_group
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS, Groups, document_schema, write_table
from liuyi.data.engine import ENGINE_VARIABLE, ENGINES, chosen_engine, engine
from liuyi.data.parts import map_groups
from liuyi.data.select.edits import Edits
from liuyi.data.select.run import decide, write
from liuyi.data.select.thresholds import Thresholds

GROUPS = 8
ROWS = 40


def count(group: pa.Table) -> pa.Table:
    """What each document of a group is made of, and by which process."""
    pid = pa.array([os.getpid()] * group.num_rows)
    return pa.table({"letters": pc.utf8_length(group["text"]), "pid": pid})


def die_once(flag: Path, group: pa.Table) -> pa.Table:
    """Kill the worker the first time the fourth group is met."""
    if "case 3." in group["text"][0].as_py() and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return count(group)


def fail(group: pa.Table) -> pa.Table:
    """Fail at the third group."""
    if "case 2." in group["text"][0].as_py():
        raise ValueError("the third group cannot be read")
    return count(group)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A corpus of several small row groups."""
    documents = [document(f"case {n // ROWS}. {prose(n)}", f"pkg{n % 9}", f"{n}.txt") for n in range(GROUPS * ROWS)]
    made = corpus(tmp_path_factory.mktemp("grouped") / "corpus", documents)
    table = pq.read_table(made.file(DOCUMENTS))
    pq.write_table(table, made.file(DOCUMENTS), row_group_size=ROWS)
    return made


@pytest.fixture(scope="module")
def cleaned(grouped: Artifact, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The attributes of that corpus, made without disturbance."""
    folder = tmp_path_factory.mktemp("cleaned")
    clean(grouped.path, folder, folder, jaccard=0.8)
    return (folder / ATTRIBUTES).read_bytes()


@pytest.fixture(autouse=True)
def workers_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def letters(tables: Iterator[pa.Table]) -> list[int]:
    return [number for table in tables for number in table["letters"].to_pylist()]


def expected(grouped: Artifact) -> list[int]:
    return [len(text) for text in pq.read_table(grouped.file(DOCUMENTS))["text"].to_pylist()]


def test_parts_come_in_order_from_other_processes(grouped: Artifact, tmp_path: Path) -> None:
    done: list[int] = []
    tables = list(map_groups(count, grouped.path, ["text"], tmp_path, workers=2, on_progress=done.append))
    assert letters(iter(tables)) == expected(grouped)
    assert done == [ROWS * (number + 1) for number in range(GROUPS)]
    assert os.getpid() not in {pid for table in tables for pid in table["pid"].to_pylist()}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(grouped: Artifact, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    assert letters(map_groups(partial(die_once, flag), grouped.path, ["text"], tmp_path)) == expected(grouped)
    assert flag.exists()


@pytest.mark.slow
def test_a_group_that_fails_is_named_and_the_others_are_kept(grouped: Artifact, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="row group 2 of the documents: ValueError: the third group cannot be read"):
        list(map_groups(fail, grouped.path, ["text"], tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    assert len(kept) == GROUPS - 1
    assert letters(map_groups(count, grouped.path, ["text"], tmp_path)) == expected(grouped)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


@pytest.mark.slow
def test_parts_that_are_not_whole_are_done_again(grouped: Artifact, tmp_path: Path) -> None:
    list(map_groups(count, grouped.path, ["text"], tmp_path))
    parts = sorted((tmp_path / "parts").glob("*.parquet"))
    for part, damaged in zip(parts, (b"", parts[1].read_bytes()[:-9], bytes(900)), strict=False):
        part.write_bytes(damaged)
    assert letters(map_groups(count, grouped.path, ["text"], tmp_path)) == expected(grouped)


@pytest.mark.slow
def test_cleaning_goes_on_after_a_kill_at_any_moment(grouped: Artifact, cleaned: bytes, tmp_path: Path) -> None:
    out, workdir = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    workdir.mkdir()
    code = (
        "import sys; from pathlib import Path; from liuyi.data.clean.run import clean\n"
        "if __name__ == '__main__': clean(*map(Path, sys.argv[1:]), jaccard=0.8, workers=1)"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    step = subprocess.Popen([sys.executable, str(script), str(grouped.path), str(out), str(workdir)])
    wanted = random.randint(1, GROUPS - 2)
    from waiting import wait_for  # not at the top, which the engine's processes read too

    wait_for(lambda: len(list(workdir.glob("parts/*.parquet"))) >= wanted, pause_s=0.005)
    workers = psutil.Process(step.pid).children(recursive=True)
    step.kill()
    step.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("parts/*.parquet")}
    assert wanted <= len(kept)
    (out / DOCUMENTS).unlink(missing_ok=True)
    clean(grouped.path, out, workdir, jaccard=0.8)
    assert (out / ATTRIBUTES).read_bytes() == cleaned
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_an_engine_that_gives_nothing_is_not_asked_for_ever(
    grouped: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(parts, "_run", lambda *args: iter(asked.append(args) or ()))
    with pytest.raises(StepError, match="gave less than it was asked for"):
        list(map_groups(count, grouped.path, ["text"], tmp_path))
    assert len(asked) == 3


def test_an_engine_that_is_not_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "rey")
    with pytest.raises(StepError, match="no data engine 'rey'") as caught:
        engine()
    assert caught.value.hint == "did you mean 'ray'?"


def test_ray_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StepError, match="needs Ray") as caught:
        engine()
    assert "liuyi[ray]" in caught.value.hint


def test_the_engine_is_chosen_where_a_run_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("recipe: docs\nsteps:\n  docs:\n    step: data.python_docs\n")
    monkeypatch.setenv("LIUYI_HOME", str(tmp_path / "home"))
    for name in ENGINES:
        monkeypatch.setenv(ENGINE_VARIABLE, "")
        done = CliRunner().invoke(run_command, [str(recipe), "--engine", name, "--check"])
        assert done.exit_code == 0, done.output
        assert chosen_engine() == name
    assert "spark" in CliRunner().invoke(run_command, [str(recipe), "--engine", "spark", "--check"]).output


RAY = """
import os, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
source, out, workdir = map(Path, sys.argv[2:])

if __name__ == "__main__":
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    os.environ["PYTHONPATH"] = sys.argv[1]
    import ray
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.argv[1]}})
    assert len(ray.nodes()) == 2
    from liuyi.data.clean.run import clean
    from liuyi.data.parts import map_groups
    from test_data_parts import die_once, letters
    clean(source, out, workdir, jaccard=0.8)
    survived = letters(map_groups(partial(die_once, out / "flag"), source, ["text"], out))
    assert (out / "flag").exists()
    (out / "letters").write_text(" ".join(map(str, survived)))
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'liuyi[ray]'")
def test_ray_gives_the_same_and_replaces_a_killed_worker(grouped: Artifact, cleaned: bytes, tmp_path: Path) -> None:
    out, workdir, script = tmp_path / "out", tmp_path / "work", tmp_path / "main.py"
    out.mkdir()
    workdir.mkdir()
    script.write_text(RAY)
    arguments = [str(Path(__file__).parent), str(grouped.path), str(out), str(workdir)]
    made = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | {ENGINE_VARIABLE: "ray"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    assert (out / ATTRIBUTES).read_bytes() == cleaned
    assert list(map(int, (out / "letters").read_text().split())) == expected(grouped)


LIMITED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])

if __name__ == "__main__":
    from test_data_parts import limited_work
    limited_work(*map(Path, sys.argv[2:]))
"""
LARGE_DOCUMENTS, LARGE_CHARS = 6_000, 60_000
LIMIT_BYTES = 320 << 20
"""What a process may hold beyond what it holds once everything is imported; the texts are 360 MB."""


def limited_work(large: Path, out: Path) -> None:
    """Add a column to a corpus and select from it, in a process that cannot hold its texts."""
    status = Path("/proc/self/status").read_text()
    held = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData")))
    resource.setrlimit(resource.RLIMIT_DATA, (held + LIMIT_BYTES, held + LIMIT_BYTES))
    schema = pa.schema([("letters", pa.int32())])
    assert with_columns(large, out / "counted", schema, map(count, read_groups(large, ["text"]))) == LARGE_DOCUMENTS
    thresholds = Thresholds(drop_duplicates=False, min_stop_words=0)
    decision = decide(large, thresholds, Edits(), heldout_fraction=0.1)
    written = write(large, decision, Edits(), out / "train", out / "heldout")
    assert sum(written.documents.values()) == LARGE_DOCUMENTS
    assert written.documents["heldout"] > 0
    with pytest.raises((MemoryError, pa.ArrowMemoryError)):
        pq.ParquetFile(large / DOCUMENTS).read(["text"], use_threads=False)["text"].combine_chunks()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A corpus of 360 MB that takes little room on disk, with attributes."""
    folder = tmp_path / "large"
    folder.mkdir()
    pages = [prose(n, 12_000)[:LARGE_CHARS] for n in range(4)]
    measured = measure_group(pa.table({"text": pages})).drop_columns("signature")
    for name, value in (("duplicate_of", ""), ("duplicate_kind", ""), ("duplicate_similarity", 1.0)):
        measured = measured.append_column(name, pa.array([value] * 4))
    with Groups(folder / DOCUMENTS, document_schema()) as documents:
        for start in range(0, LARGE_DOCUMENTS, 4):
            rows = [vars(document(page, f"pkg{start % 50}", str(start + n))) for n, page in enumerate(pages)]
            documents.add(pa.Table.from_pylist(rows, schema=document_schema()))
    ids = pq.read_table(folder / DOCUMENTS, columns=["id"])["id"]
    table = pa.concat_tables([measured] * (LARGE_DOCUMENTS // 4)).add_column(0, "id", ids)
    write_table(table, folder / ATTRIBUTES)
    return folder


@pytest.mark.slow
def test_a_corpus_larger_than_the_memory_goes_through(large: Path, tmp_path: Path) -> None:
    for name in ("counted", "train", "heldout"):
        (tmp_path / name).mkdir()
    script = tmp_path / "main.py"
    script.write_text(LIMITED)
    arguments = [str(Path(__file__).parent), str(large), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        # else allocators reserve gigabytes that they may never use
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert pq.read_metadata(large / DOCUMENTS).num_row_groups > 3
    assert max(size for size in group_bytes(tmp_path / "train" / DOCUMENTS)) < 18e6


def group_bytes(path: Path) -> list[int]:
    """The bytes of text in each row group."""
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(number, columns=["text"]) for number in range(file.num_row_groups))
        return [pc.sum(pc.binary_length(group["text"])).as_py() for group in groups]
