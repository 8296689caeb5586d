"""The worker of one run: goes through its steps, skips finished work, and has a process started for each of the others.

    python -m liuyi.core.runner.worker HOME RUN_ID

SIGTERM cancels: the step that runs is told to stop and, if it does not, is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from liuyi.core.errors import Cancelled, LiuyiError, StepError
from liuyi.core.home import Home
from liuyi.core.leases import COLLECTION
from liuyi.core.owner import this_process
from liuyi.core.recipe import Recipe, RecipeStep, StepOutput, parse_recipe
from liuyi.core.records import RunStep
from liuyi.core.runner.events import EventLog
from liuyi.core.runner.failure import as_error, killed_error, pack, unpack
from liuyi.core.runner.forkserver import ForkServer
from liuyi.core.runner.keys import device_class, step_key
from liuyi.core.runner.launch import TAKEN
from liuyi.core.runner.lifetime import Heartbeat, oom_kills
from liuyi.core.runner.options import WORKER_LOG, RunOptions
from liuyi.core.runner.process import (
    BEAT_S,
    BUSY,
    CANCELLED,
    DONE,
    LEASE_S,
    StepOrder,
    finished_outputs,
    lease_name,
    preloads,
)
from liuyi.core.runner.restarts import Restarts
from liuyi.core.step import START_AGAIN

GRACE_S = 10.0
"""How long a step that is told to stop may take before it is killed."""
POLL_S = 0.25


class Worker:
    """Carries out one run."""

    def __init__(self, home: Home, run_id: str) -> None:
        self._home, self._ledger = home, home.ledger
        self._run = self._ledger.run(run_id)
        self._folder = home.run_dir(run_id)
        self._events = EventLog(self._folder)
        self._log = self._folder / WORKER_LOG
        self._outputs: dict[tuple[str, str], str] = {}
        self._total = 0
        self._server: ForkServer | None = None
        self._resources = ExitStack()
        self._cancelled = False
        signal.signal(signal.SIGTERM, self._cancel)

    def _cancel(self, number: int, frame: object) -> None:
        self._cancelled = True

    def run(self) -> int:
        """Carry the run out and record how it ended. Gives the exit status of the worker."""
        me, lease = this_process(), f"run:{self._run.id}"
        if not self._ledger.acquire(lease, me, LEASE_S):
            return TAKEN

        def beat() -> None:
            self._ledger.renew(lease, me)
            self._ledger.update_run(self._run.id, heartbeat=time.time())

        self._ledger.update_run(
            self._run.id, status="running", worker=me, heartbeat=time.time(), error="", finished=None
        )
        self._events.emit("run", status="running", run=self._run.id, recipe=self._run.recipe)
        with Heartbeat(beat, BEAT_S), self._resources:
            error = self._carry_out()
        status = "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
        self._ledger.update_run(self._run.id, status=status, error=str(error or ""), finished=time.time())
        self._events.emit("run", status=status, error=pack(error) if error else None)
        self._ledger.release(lease, me)
        return int(error is not None)

    def _carry_out(self) -> LiuyiError | None:
        try:
            options = RunOptions.load(self._folder)
            os.chdir(options.folder)
            recipe = self._recipe(options)
            steps = recipe.until(options.until)
            self._total = len(steps)
            earlier = {step.name: step for step in self._ledger.steps(self._run.id)}
            for position, step in enumerate(steps):
                if step.name not in earlier or earlier[step.name].status != "done":
                    self._ledger.put_step(
                        self._run.id, step.name, step=step.step.name, status="waiting", position=position, error=""
                    )
            self._wait_for_collection(steps[0])
            for position, step in enumerate(steps):
                with self._told(step, position):
                    self._do(recipe, step, position, earlier.get(step.name), steps[position:])
        except LiuyiError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            return as_error(error, self._log)
        return None

    def _wait_for_collection(self, first: RecipeStep) -> None:
        """Begin once nothing is being removed: what is found done now must be there when it is read."""
        told = False
        while COLLECTION in self._ledger.leases():
            self._stop_if_cancelled()
            if not told:
                self._events.emit("log", step=first.name, text="'liuyi gc' is at work; waiting for it")
            told = True
            time.sleep(POLL_S)

    def _recipe(self, options: RunOptions) -> Recipe:
        store = self._home.store
        return parse_recipe(
            self._run.text,
            Path(self._run.source).name,
            overrides=self._run.overrides,
            folder=options.folder,
            stored=lambda ref: store.manifest(store.resolve(ref)),
        )

    @contextmanager
    def _told(self, step: RecipeStep, position: int) -> Iterator[None]:
        """Record how a step that does not succeed ended; its error names the step."""
        try:
            yield
        except Exception as raised:
            if not isinstance(raised, LiuyiError):
                traceback.print_exc()
            error = as_error(raised, self._log)
            status = "cancelled" if isinstance(error, Cancelled) else "failed"
            self._ledger.put_step(self._run.id, step.name, status=status, error=str(error))
            self._tell(step, position, status, error=pack(error))
            raise unpack(pack(error) | {"message": f"step '{step.name}': {error.message}"}) from raised

    def _do(
        self, recipe: Recipe, step: RecipeStep, position: int, earlier: RunStep | None, ahead: tuple[RecipeStep, ...]
    ) -> None:
        self._stop_if_cancelled()
        inputs = tuple(
            (port, self._outputs[source.step, source.output] if isinstance(source, StepOutput) else source.digest)
            for port, sources in step.inputs.items()
            for source in sources
        )
        device = device_class()
        key = step_key(step.step, step.params, inputs, seed=recipe.seed, device=device, folder=Path.cwd())
        waiting_for = ""
        while (outputs := finished_outputs(self._home, step.step, key)) is None:
            self._stop_if_cancelled()
            holder = self._ledger.leases().get(lease_name(key), "")
            if holder:
                if holder != waiting_for:
                    self._tell(step, position, "waiting", waiting_for=holder.split(":", 3)[-1])
                waiting_for = holder
                time.sleep(POLL_S)
                continue
            order = StepOrder(
                home=self._home.path,
                run_id=self._run.id,
                name=step.name,
                step=step.step.name,
                key=key,
                params=step.params.model_dump(mode="json"),
                inputs=inputs,
                seed=recipe.seed,
                device=device,
                log=self._folder / f"{step.name}.log",
            )
            if self._run_processes(order, step, position, ahead):
                outputs = finished_outputs(self._home, step.step, key)
                if outputs is None:
                    raise StepError("the step's outputs vanished as soon as they were made")
                self._settle(step, position, "done", key, outputs)
                return
        shutil.rmtree(self._home.work_root / key, ignore_errors=True)
        did_it = earlier is not None and earlier.status == "done" and earlier.key == key
        self._settle(step, position, "done" if did_it else "cached", key, outputs, again=did_it)

    def _run_processes(self, order: StepOrder, step: RecipeStep, position: int, ahead: tuple[RecipeStep, ...]) -> bool:
        """As `_run_process`, and once more whenever the process of a step that can go on from there has died."""
        restarts = Restarts(self._home.work_dir(order.key))
        while isinstance(death := self._run_process(order, step, position, ahead), LiuyiError):
            if not (step.step.starts_again and isinstance(death, StepError) and restarts.again()):
                raise death
            self._events.emit("log", step=step.name, text=f"{death.message}: starting it again")
        return death

    def _run_process(
        self, order: StepOrder, step: RecipeStep, position: int, ahead: tuple[RecipeStep, ...]
    ) -> bool | LiuyiError:
        """Have a process do the step; False if it turned out that another one does it or has done it.

        Raises what the process says that it met. Of one that ended without a word, the error that tells so is given.
        """
        self._ledger.put_step(self._run.id, step.name, key=order.key, status="running", error="", seconds=None)
        self._tell(step, position, "running")
        if self._server is None:
            modules = dict.fromkeys(module for each in ahead for module in preloads(each.step))
            self._server = self._resources.enter_context(ForkServer(list(modules), self._log))
        kills = oom_kills()
        pid = self._server.start(order.model_dump_json())
        patience: float | None = None
        while (ended := self._server.poll(POLL_S)) is None:
            if self._cancelled and patience is None:
                patience = time.monotonic() + GRACE_S
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            elif patience is not None and time.monotonic() > patience:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        if ended.status == CANCELLED or self._cancelled:
            raise Cancelled("the run was cancelled")
        if ended.status < 0:
            out_of_memory = ended.status == -signal.SIGKILL and oom_kills() > kills
            return killed_error(-ended.status, out_of_memory=out_of_memory, log=order.log)
        if ended.status == START_AGAIN:
            return StepError("the step's process stood still and was ended", hint=f"the stacks are in {order.log}")
        if ended.status not in (DONE, BUSY):
            raise unpack(ended.error) if ended.error else StepError("the process failed", hint=f"see {order.log}")
        return ended.status == DONE

    def _settle(
        self, step: RecipeStep, position: int, status: str, key: str, outputs: Mapping[str, str], *, again: bool = False
    ) -> None:
        """Record a step whose outputs are there."""
        execution = self._ledger.execution(key)
        seconds = execution.seconds if execution else None
        if not again:
            self._ledger.put_step(
                self._run.id, step.name, key=key, status=status, error="", seconds=seconds if status == "done" else None
            )
        self._outputs |= {(step.name, port): digest for port, digest in outputs.items()}
        metrics: dict[str, float] = {}
        for port, digest in outputs.items():
            prefix = f"{port}." if len(outputs) > 1 else ""
            manifest = self._home.store.manifest(digest)
            metrics |= {f"{prefix}{name}": value for name, value in manifest.metrics.items()}
            if manifest.kind == "verdict":
                self._note_verdict(step, digest)
        shown = "cached" if again else status
        self._tell(step, position, shown, seconds=seconds, metrics=metrics, outputs=dict(outputs))

    def _note_verdict(self, step: RecipeStep, digest: str) -> None:
        """Enter what a gate decided in the ledger, once for each metric that it compared."""
        known = {(v.step_name, v.digest) for v in self._ledger.verdicts(self._run.id)}
        if (step.name, digest) in known:
            return
        path = self._home.store.open(digest).file("verdict.json")
        verdict = json.loads(path.read_text(encoding="utf-8"))
        for comparison in verdict["comparisons"]:
            subset = comparison.get("subset")
            figures = {name: float(comparison[name]) for name in ("delta", "low", "high")}
            p_value = comparison["p_adjusted"] if comparison["p_adjusted"] is not None else comparison["p_value"]
            self._ledger.add_verdict(
                self._run.id,
                step.name,
                digest,
                verdict["stage"],
                verdict["decision"],
                metric=f"{comparison['metric']} ({subset})" if subset else comparison["metric"],
                p_value=p_value,
                **figures,
            )

    def _tell(self, step: RecipeStep, position: int, status: str, **fields: Any) -> None:
        self._events.emit(
            "step",
            step=step.name,
            kind=step.step.name,
            status=status,
            position=position + 1,
            steps=self._total,
            **fields,
        )

    def _stop_if_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled("the run was cancelled")


def main() -> int:
    """The worker process of the run that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    home, run_id = Home(Path(sys.argv[1])), sys.argv[2]
    os.environ["LIUYI_HOME"] = str(home.path)
    return Worker(home, run_id).run()


if __name__ == "__main__":
    sys.exit(main())
