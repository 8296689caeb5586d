"""Run a registered step in the test's own process, on artifacts of a home, and enter it in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liuyi.core.artifact import Artifact, InputRef
from liuyi.core.home import Home
from liuyi.core.runner.context import StepContext
from liuyi.core.runner.events import EventLog
from liuyi.core.step import get_step

SEED = 1


def run_step(
    home: Home, workdir: Path, name: str, inputs: Mapping[str, Artifact | Sequence[Artifact]], **params: Any
) -> dict[str, Artifact]:
    """The step's published outputs by port, which name what they were made from; its seed is `SEED`."""
    step = get_step(name)
    digests = {
        port: [given.digest] if isinstance(given, Artifact) else [artifact.digest for artifact in given]
        for port, given in inputs.items()
    }
    events = EventLog(workdir)
    context = StepContext(
        step=step,
        name=name.partition(".")[2],
        run_id="test",
        seed=SEED,
        workdir=workdir,
        inputs=digests,
        store=home.store,
        events=events,
        record=lambda metric, index, value: None,
    )
    try:
        step.run(context, step.params(**params))
        refs = [InputRef(name=port, digest=digest) for port, given in digests.items() for digest in given]
        return {
            port: home.store.publish(staging, step=name, output=port, inputs=refs, params=params)
            for port, staging in context.finished().items()
        }
    finally:
        events.close()
        context.discard()


def record(home: Home, name: str, step_name: str, params: Mapping[str, Any], made: Mapping[str, Artifact]) -> None:
    """Enter a step that `run_step` has done as step `name` of a run of its own."""
    step = get_step(step_name)
    inputs = next(iter(made.values())).manifest.inputs
    run = home.ledger.create_run(recipe="r", text="", source="", overrides=(), seed=SEED)
    home.ledger.put_step(run, name, step=step_name, key="k", status="done", position=0)
    home.ledger.record_execution(
        key="k",
        step=step_name,
        version=step.version,
        params=step.params(**params).model_dump(mode="json"),
        seed=SEED,
        device="cpu",
        inputs=[(ref.name, ref.digest) for ref in inputs],
        outputs={port: artifact.digest for port, artifact in made.items()},
        seconds=1.0,
    )
