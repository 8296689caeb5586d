"""The training loop: pretraining, fine-tuning and preference objectives differ only in their batches and objective.

An objective gives the *sum* of its losses over a micro-batch and the number of tokens (or pairs) it summed over; the
gradient is divided once by the count of the whole global batch, so eight micro-batches of one row train as one of
eight. The state before every step is a pure function of the start, the seed and the step: where checkpoints fell and
how often the run was killed changes nothing.

Several processes (`train/world.py`) run the same loop, each on its share of every batch. They add up what they saw and
decide from the sums, so all of them step, skip, roll back and stop together; the first one writes and tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from liuyi.core.errors import DataError, StepError
from liuyi.train.checkpoint import Checkpoints
from liuyi.train.corruption import Corrupted, agree, checksum, demand_sound, same_as_first_copy
from liuyi.train.guards import Guard, Reason, demand_numbers
from liuyi.train.inject import Injector, parse_faults
from liuyi.train.interfaces import B, Deaf, LoopConfig, M, Monitor, Objective, Observer, Result
from liuyi.train.log import TrainingLog, read_log
from liuyi.train.memory import keeping_freed_memory
from liuyi.train.meter import Meter
from liuyi.train.onlookers import Onlooker, looking_on
from liuyi.train.optim import Optimiser
from liuyi.train.parallel.gradients import gradient_norm, local, sum_gradients
from liuyi.train.parallel.shard import hold_gradients
from liuyi.train.parallel.stragglers import Stragglers
from liuyi.train.remote import RemoteCheckpoints
from liuyi.train.rng import load_rng_state, rng_state
from liuyi.train.saving import Saver
from liuyi.train.schedule import Schedule
from liuyi.train.snapshot import Held, Snapshot
from liuyi.train.stored import Stored
from liuyi.train.watchdog import Watchdog
from liuyi.train.world import World

CHECKPOINTS = "checkpoints"
MAX_RECOVERIES = 3
"""Corruptions in a row, without a step between them, after which the machine is not trusted."""


class Trainer(Generic[M, B]):
    """One run in `workdir`: starts, or goes on where the last checkpoint there stands.

    `batches(index)` gives global batch `index` as micro-batches, `schedule(step)` the learning rates' factor;
    `prepare` sets up the weights of a run that starts, and is not called when one goes on. With several processes the
    model is laid out over the `world` already, `batches` gives this process's share, in as many micro-batches as the
    others have, and all see the same `workdir`.
    Raises DataError for a batch without a target and StepError when rollbacks do not help.
    """

    def __init__(
        self,
        model: M,
        batches: Callable[[int], Sequence[B]],
        objective: Objective[M, B],
        optimiser: Optimiser,
        schedule: Schedule,
        *,
        config: LoopConfig,
        workdir: Path,
        observer: Observer,
        monitor: Monitor | None = None,
        prepare: Callable[[], None] = lambda: None,
        onlookers: Sequence[Onlooker] = (),
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.model = model
        self.batches = batches
        self.objective = objective
        self.optimiser = optimiser
        self.schedule = schedule
        self.config = config
        self.observer = observer if self.world.leads else Deaf()
        # Of a hang everybody speaks, since it may be the others that wait.
        self.told_of_hangs = observer.log if self.world.leads else partial(print, flush=True)
        self.stragglers = Stragglers(self.world)
        self.monitor = monitor
        self.onlookers = list(onlookers)
        self.meter = Meter(model, objective, workdir, self.world, self.observer)
        self.row: dict[str, Any] = {}
        """What the last step wrote to the log."""
        self.prepare = prepare
        self.device = next(model.parameters()).device
        self.guard = Guard(config.guard)
        self.step = 0
        self.tokens = 0
        self._learnt = 0
        """As `tokens`, but since this process began, and of steps that a rollback undid too."""
        self.stopped = ""
        self.checksum = 0
        """Of weights and optimiser state, as the last step left them."""
        self.recoveries = 0
        self._recovered_at = (-1, 0)
        workdir.mkdir(parents=True, exist_ok=True)
        self.injector = Injector(parse_faults(config.inject), workdir, self.world.rank)
        self.log = TrainingLog(workdir)
        self.checkpoints = Checkpoints(
            workdir / CHECKPOINTS,
            self.observer.log,
            world=self.world,
            retention=config.retention,
            remote=RemoteCheckpoints.of(config.checkpoint_url, workdir.name, config.retention, self.observer.log),
        )

    def run(self) -> Result:
        """Train to the last step, or until the monitor ends it; the model then holds the final weights."""
        self.model.train()
        self.watchdog = Watchdog(self.config.hang_timeout_s, self.told_of_hangs)
        self.saver = Saver(
            self.checkpoints,
            self.log.path,
            self.observer,
            self.watchdog,
            always_wait=not self.config.checkpoint_every_s,
        )
        with looking_on(self.onlookers), keeping_freed_memory(), self.checkpoints, self.watchdog:
            if self._go_back():
                self.observer.log(f"resumed at step {self.step} of {self.config.steps}")
                self.observer.metric("resumed", 1.0, self.step)
            else:
                self.prepare()
                demand_numbers(self.model)
                if self.world.leads:
                    self.log.begin()
                self.checksum = checksum(self.optimiser.tensors())
                self._save(must=True)
            self.optimiser.reserve_state()
            saved = time.monotonic()
            self.meter.begin()
            while not self.over:
                try:
                    self._guarded_step()
                except Corrupted as found:
                    self._recover(found)
                    continue
                self._tell()
                now = time.monotonic()
                due = self.world.leads and now - saved >= self.config.checkpoint_every_s
                milestone = self.config.retention.is_milestone(self.step)
                if self.over or milestone or self.world.any(due):
                    self._save(must=self.over, wait=milestone)
                    saved = now
        return self._result()

    @property
    def over(self) -> bool:
        """Whether the last step is done, or the monitor has ended the run."""
        return self.step >= self.config.steps or bool(self.stopped)

    def _tell(self) -> None:
        """Let whoever watches see the step that was done."""
        figures = self.meter.after_step(self.step, self.row, self._learnt)
        self.observer.progress(self.step, self.config.steps, "steps", **figures)
        for onlooker in self.onlookers:
            self.watchdog.beat(f"looking on after step {self.step}")
            onlooker.after_step(self.model, self.row, figures)

    def _guarded_step(self) -> float:
        """One step under the watchdog, the faults that are asked for, and the checks for corruption."""
        step = self.step
        self.watchdog.beat(f"step {step}")
        self.injector.before_step(step)
        every = self.config.verify_every
        loss = self._step_twice() if every and step % every == every - 1 else self._take_step()
        self.injector.after_step(step, {name: local(weight) for name, weight in self.optimiser.parameters.items()})
        return loss

    def _step_twice(self) -> float:
        """A step taken, undone and taken again. Raises Corrupted where the second differs from the first."""
        before = self.checkpoints.hold(self._snapshot())
        # What is told of a step is told once.
        told, self.observer, learnt = self.observer, Deaf(), self._learnt
        try:
            with self.meter.not_counted():
                first = self._take_step(), self.checksum
        finally:
            self.observer, self._learnt = told, learnt
        self._restore(before)
        second = self._take_step(), self.checksum
        exactly = self.device.type == "cpu"
        differs = not agree(first[0], second[0], exactly=exactly) or (exactly and first[1] != second[1])
        demand_sound(self.world, not differs, f"step {before.step} came out differently the second time")
        same = same_as_first_copy(self.world, self.checksum)
        demand_sound(self.world, same, f"copies of the weights have come apart by step {self.step}")
        return second[0]

    def _recover(self, found: Corrupted) -> None:
        """Go back to the newest sound checkpoint; the steps from there are taken again."""
        at, times = self._recovered_at
        self._recovered_at = (self.step, times + 1 if self.step <= at else 1)
        self.recoveries += 1
        self.observer.log(f"silent corruption: {found}; going back to the last checkpoint")
        self.observer.metric("recovered", 1.0, self.step)
        if self._recovered_at[1] > MAX_RECOVERIES:
            raise StepError(
                f"silent corruption {MAX_RECOVERIES + 1} times in a row: {found}",
                hint="memory or processor of this machine are not to be trusted; test them",
            )
        self.optimiser.zero_grad()
        if not self._go_back():
            raise StepError("no sound checkpoint is left to go back to")

    def _take_step(self) -> float:
        """Do one step, or skip it, or roll back; the mean loss that was seen."""
        started, waited_s = time.perf_counter(), self.world.waited_s
        index = self.guard.batch_index(self.step)
        factor = self.schedule(self.step)
        loss, count, metrics = self._accumulate(index)
        if not count:
            raise DataError(f"batch {index} has no token to learn from", hint="look at how its rows were made")
        grad_norm, grad_scale = self._measure_gradient(count)
        decision, reason = self.guard.judge(self.step, loss, grad_norm)
        if decision == "step":
            # Found out while it is stepped, which costs no reading of its own: what it became is thrown away.
            before, after = self.optimiser.step(factor, grad_scale)
        else:
            before = after = checksum(self.optimiser.tensors())
        changed = f"weights or optimiser state changed by themselves before step {self.step}"
        demand_sound(self.world, before == self.checksum, changed)
        self.checksum = after
        row: dict[str, Any] = {
            "step": self.step,
            "batch": index,
            "loss": loss,
            "lr": factor * self.optimiser.config.lr,
            "grad_norm": grad_norm,
            **metrics,
        }
        if decision == "step":
            self.tokens += count
            self._learnt += count
        else:
            row["skipped"] = reason
            self.observer.log(f"step {self.step}: {reason} loss {loss:.4g}, gradient norm {grad_norm:.4g}: skipped")
        self.optimiser.zero_grad()
        self.row = row
        self._write_log(row)
        self._look_for_stragglers(time.perf_counter() - started - (self.world.waited_s - waited_s))
        if decision == "rollback":
            self._roll_back(reason)
            return loss
        self.step += 1
        if self.monitor:
            self._let_look(self.monitor)
        return loss

    def _let_look(self, monitor: Monitor) -> None:
        """Have the monitor look at what the step has made; all ranks stop if it ends the run."""
        self.watchdog.beat(f"the look after step {self.step}")
        self.stopped = monitor.after_step(self.model, self.step)
        if self.world.any(bool(self.stopped)):
            disagree = f"after step {self.step} some ranks would stop and others go on"
            demand_sound(self.world, bool(self.stopped), disagree)
            self.checksum = checksum(self.optimiser.tensors())
            self.observer.log(f"stopped after step {self.step}: {self.stopped}")

    def _accumulate(self, index: int) -> tuple[float, int, dict[str, float]]:
        """Forward and backward of every micro-batch: mean loss, count and mean metrics of the global batch."""
        total, count = 0.0, 0
        sums: dict[str, float] = {}
        factor = self.injector.loss_factor(index)
        micro_batches = self.batches(index)
        once = len(micro_batches) == 1 and self.world.size == 1
        self.optimiser.keep_gradients_as_made(once and getattr(self.objective, "uses_weights_once", False))
        for number, batch in enumerate(micro_batches, 1):
            started = time.perf_counter()
            hold_gradients(self.model, number < len(micro_batches))
            loss = self.objective(self.model, batch.to(self.device))
            summed = loss.total if factor == 1.0 else loss.total * factor
            # A share without a target has a gradient of zero, which the others wait for.
            if loss.count or self.world.size > 1:
                summed.backward()  # type: ignore[no-untyped-call]
            total += summed.item()
            self.injector.slow_down(self.step, time.perf_counter() - started)
            self.watchdog.beat(f"step {self.step}")
            self.meter.saw(batch.packed)
            count += loss.count
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        total, counted, *values = self.world.sum([total, count, *sums.values()])
        count = int(counted)
        means = {name: value / max(count, 1) for name, value in zip(sums, values, strict=True)}
        return total / max(count, 1), count, means

    def _measure_gradient(self, count: int) -> tuple[float, float]:
        """The norm of the mean's gradient, and what turns the summed one into it, no longer than `clip_norm`."""
        sum_gradients(self.optimiser.parameters.values(), self.world)
        grads = [p.grad for p in self.optimiser.parameters.values() if p.grad is not None]
        norm = gradient_norm(grads, self.world) / count
        return norm, min(1.0, self.config.clip_norm / max(norm, 1e-12)) / count

    def _look_for_stragglers(self, computed_s: float) -> None:
        """Report, now and then, how long each rank computes at a step compared with the others."""
        report = self.stragglers.after_step(computed_s)
        for rank, ratio in enumerate(report.ratios if report else ()):
            self.observer.metric(f"relative_step_time_rank_{rank}", ratio, self.step)
        if report and report.slow:
            self.observer.log(f"step {self.step}: {report}")

    def _roll_back(self, reason: Reason) -> None:
        """Go back to the anchor and pass over the batches from there to here.

        The state at the anchor comes from the newest checkpoint before it, by taking the steps in between once more.
        """
        guard, jump = self.guard, self.guard.jump(self.step, reason)
        jumps = [*guard.jumps, jump]
        if len(jumps) > guard.config.max_rollbacks:
            raise StepError(
                f"{reason} losses at step {self.step} again, after {len(guard.jumps)} rollbacks",
                hint="a lower learning rate, or a look at the data, should help",
            )
        step = self.step
        if not self._go_back(at_most=jump.step):
            raise StepError(f"no checkpoint is left to roll back to from step {step}")
        self.observer.log(f"step {step}: rolling back to step {jump.step}, passing over {jump.batches} batches")
        self.checkpoints.forget_after(jump.step)
        guard.jumps = jumps

    def _go_back(self, at_most: int | None = None) -> bool:
        """Restore the newest sound checkpoint, at or before step `at_most` if that is given; False if there is none.

        One whose tensors were no longer what the step before had left is passed over for the one before it.
        """
        self.saver.settle(self.step)
        while found := self._load(at_most):
            self._restore(found)
            if not found.same_layout:
                self.checksum = checksum(self.optimiser.tensors())
            if not self.world.any(checksum(self.optimiser.tensors()) != self.checksum):
                return True
            self.observer.log(f"the checkpoint of step {found.step} was corrupt before it was written: passing over it")
            self.checkpoints.forget(found)
        return False

    def _load(self, at_most: int | None) -> Stored | None:
        """The newest checkpoint that is as it was written; to find out takes long where it is large."""
        self.watchdog.beat("reading a checkpoint")
        return self.checkpoints.load(at_most)

    def _write_log(self, row: dict[str, Any]) -> None:
        if not self.world.leads:
            return
        self.log.write(row)
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                self.observer.metric(name, value, self.step)

    def _save(self, *, must: bool, wait: bool = False) -> None:
        self.saver.save(self._snapshot(), self.guard.anchors(self.step), must=must, wait=wait)

    def _snapshot(self) -> Snapshot:
        tensors: dict[str, dict[str, Tensor]] = {
            "model": {name: parameter.data for name, parameter in self.optimiser.parameters.items()},
            "optimiser": self.optimiser.state(),
        }
        state: dict[str, Any] = {
            "tokens": self.tokens,
            "stopped": self.stopped,
            "guard": self.guard.state(),
            "log_bytes": self.log.size_bytes if self.world.leads else 0,
        }
        if self.monitor:
            tensors["monitor"] = self.monitor.tensors()
            state["monitor"] = self.monitor.state()
        return Snapshot(self.step, tensors, state, {"checksum": self.checksum, "rng": rng_state()})

    @torch.no_grad()
    def _restore(self, found: Held | Stored) -> None:
        parameters = self.optimiser.parameters
        for name, weight in found.group("model", parameters.get):
            parameters[name].copy_(weight)
        self.optimiser.load_state(found.group("optimiser", lambda key: parameters[key.rsplit(":", 1)[0]]))
        self.step, self.tokens, self.stopped = found.step, found.state["tokens"], found.state["stopped"]
        self.checksum = found.own["checksum"]
        self.guard.load_state(found.state["guard"])
        load_rng_state(found.own["rng"])
        if self.world.leads and isinstance(found, Stored):
            self.log.replace(found.path)
        elif self.world.leads:
            self.log.cut(found.state["log_bytes"])
        if self.monitor:
            tensors = {name: kept.clone() for name, kept in found.group("monitor", self.monitor.tensors().get)}
            self.monitor.load(tensors, found.state["monitor"])

    def _result(self) -> Result:
        self.world.barrier()
        rows = read_log(self.log.path.parent)
        losses = [row["loss"] for row in rows if "skipped" not in row]
        if not losses:
            raise StepError(f"nothing was learnt: every one of {len(rows)} steps was skipped, {rows[-1]['skipped']}")
        last = losses[-max(1, len(losses) // 20) :]
        return Result(
            steps=self.step,
            tokens=self.tokens,
            loss=sum(last) / len(last),
            skipped=self.guard.skipped,
            jumps=self.guard.jumps,
            recoveries=self.recoveries,
            stopped=self.stopped,
            figures=self.meter.summary(),
        )
