"""`liuyi report`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from liuyi.cli.main import cli
from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.core.home import Home
from liuyi.evaluate.report import build_report, write_report


def report(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home.path), "report", *arguments], env={"COLUMNS": "200"})


def publish(home: Home, kind: str, title: str) -> Artifact:
    staging = home.store.stage(kind)
    Effect(stage="data", title=title, summary=f"{title} in figures.").save(staging.path)
    return home.store.publish(staging)


def record(home: Home, *steps: tuple[str, Artifact, str]) -> str:
    """A run whose steps, by name, gave these artifacts and have this status."""
    run = home.ledger.create_run(recipe="mine", text="", source="", overrides=[], seed=1)
    for position, (name, artifact, status) in enumerate(steps):
        key = f"{position:064x}"
        home.ledger.record_execution(
            key=key,
            step="toy",
            version=1,
            params={},
            seed=1,
            device="cpu",
            inputs=[],
            outputs={"out": artifact.digest},
            seconds=1,
            run_id=run,
            created=time.time(),
        )
        home.ledger.put_step(run, name, step="toy", key=key, status=status, position=position)
    return run


def published_report(home: Home) -> Artifact:
    staging = home.store.stage("report")
    write_report(build_report([publish(home, "corpus", "Cleaning")], title="whole"), staging.path)
    return home.store.publish(staging)


def test_a_run_with_a_report(home: Home) -> None:
    made = published_report(home)
    record(home, ("report", made, "done"))
    result = report(home)
    assert result.exit_code == 0, result.output
    assert "Cleaning in figures." in result.output
    assert str(made.file("report.html")) in result.output
    by_digest = report(home, made.digest[:12])
    assert by_digest.output == result.output


def test_a_run_without_one_shows_what_is_there(home: Home) -> None:
    run = record(
        home,
        ("first", publish(home, "corpus", "Cleaning"), "cached"),
        ("second", publish(home, "verdict", "Comparing"), "done"),
        ("third", publish(home, "app", "Unfinished"), "running"),
    )
    result = report(home, run[:9])
    assert result.exit_code == 0, result.output
    assert result.output.index("Cleaning") < result.output.index("Comparing")
    assert "Unfinished" not in result.output
    page = home.run_dir(run) / "report.html"
    assert str(page) in result.output
    assert "Comparing" in page.read_text()


def test_one_artifact_and_a_file_of_ones_own(home: Home, tmp_path: Path) -> None:
    made = publish(home, "verdict", "Comparing")
    target = tmp_path / "deep" / "mine.html"
    result = report(home, made.digest[:10], "-o", str(target))
    assert result.exit_code == 0, result.output
    assert "Comparing" in target.read_text()
    said = json.loads(report(home, made.digest, "--json").stdout)
    assert said["sections"][0]["effect"]["title"] == "Comparing"


def test_the_page_is_opened(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", opened.append)
    made = published_report(home)
    assert report(home, made.digest, "--open").exit_code == 0
    assert opened == [made.file("report.html").as_uri()]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("last", "there is no run yet"),
        ("260101-000000-aaaa", "there is no run"),
        ("abcdef123456", "there is no artifact"),
    ],
)
def test_what_is_not_there(home: Home, ref: str, message: str) -> None:
    result = report(home, ref)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_artifact_without_an_effect(home: Home) -> None:
    staging = home.store.stage("corpus")
    (staging.path / "x").write_text("x")
    made = home.store.publish(staging)
    result = report(home, made.digest)
    assert result.exit_code == 1
    assert "has no effect to show" in result.output


def training(home: Home, status: str, *, key: str = "f" * 64) -> str:
    """A run with a training of 60 steps in its workdir, of which step 20 was skipped, that started again at 40."""
    run = home.ledger.create_run(recipe="mine", text="", source="", overrides=[], seed=1)
    home.ledger.put_step(run, "sft", step="finetune.sft", key=key, status=status, position=0, error="it is cold")
    rows = [{"step": n, "batch": n, "loss": 5 - n / 20, "lr": 0.1, "grad_norm": 1.0} for n in range(60)]
    rows[20] |= {"loss": None, "skipped": "non-finite"}
    log = "".join(json.dumps(row) + "\n" for row in rows)
    (home.work_dir(key) / "training.jsonl").write_text(log + '{"step": 60, "ba')
    said = {"step": 30, "prompt": "When?", "text": "At <b>seven</b>.", "ended": True}
    (home.work_dir(key) / "samples.jsonl").write_text(json.dumps(said) + "\n")
    speeds = [("tok_s", step, 900.0 + step) for step in (10, 30, 50)]
    home.ledger.add_metrics(run, "sft", [*speeds, ("bf16_mfu", 10, 0.6), ("bf16_mfu", 50, 0.7), ("resumed", 40, 1.0)])
    return run


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_training_that_is_not_done_shows_its_curves(home: Home, status: str) -> None:
    run = training(home, status)
    result = report(home, run, "--details")
    assert result.exit_code == 0, result.output
    assert "60 steps so far: loss 5 → 2.05. it is cold" in result.output
    page = (home.run_dir(run) / "report.html").read_text()
    for title in ("Loss", "Learning rate", "Tokens a second", "Fraction of the machine&#39;s bf16 GEMM peak", "When?"):
        assert title in page, title
    assert "marked: skipped: non-finite × 1, restarted × 1" in page
    assert "<title>restarted at 40</title>" in page
    assert "At &lt;b&gt;seven&lt;/b&gt;." in page


def test_speeds_come_from_the_ledger(home: Home) -> None:
    """They are no part of the artifact, which a killed run and an undisturbed one make alike."""
    run = training(home, "done")
    made = publish(home, "checkpoint", "The training")
    home.ledger.record_execution(
        key="f" * 64,
        step="finetune.sft",
        version=1,
        params={},
        seed=1,
        device="cpu",
        inputs=[],
        outputs={"checkpoint": made.digest},
        seconds=1,
        run_id=run,
    )
    for ref in (run, made.digest):
        (section,) = json.loads(report(home, ref, "--json").stdout)["sections"]
        titles = [block["title"] for block in section["effect"]["blocks"]]
        assert titles == ["Tokens a second", "Fraction of the machine's bf16 GEMM peak"]
        assert section["effect"]["summary"].endswith("It started again at one step.")
