"""Steps that several processes do together: launched from the step's own process, watched, and started again.

    @step("pretrain.train", ...)
    def train(ctx: Context, params: TrainParams) -> None:
        launch.run(ctx, params, pretrain)       # pretrain(ctx, params, world), in every process

With `processes: 1` the function is called as it is. With more, PyTorch's elastic agent starts as many ranks
(`train/rank.py`) and, whenever one of them dies, ends them all and starts them again; they go on from the last
checkpoint. They and the step's process share a folder: the order says what to do, `events.jsonl` brings back what rank
0 tells, `outputs.json` what it made, and `failure.json` the error that ended the work.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from liuyi.core.cores import cores
from liuyi.core.errors import StepError
from liuyi.core.runner.events import Event, EventLog, follow_events
from liuyi.core.runner.failure import as_error
from liuyi.core.runner.restarts import Restarts
from liuyi.core.step import Context
from liuyi.train.loop import CHECKPOINTS
from liuyi.train.params import ParallelParams
from liuyi.train.rank import FOLDER, Order, RankContext, failure, outputs, tell_failure
from liuyi.train.world import World

MAX_RESTARTS = 1000
"""Of one launch. What ends a run that gets nowhere is `Restarts`, long before."""
MONITOR_S = 0.1
MOST_A_CORE = 8
"""Processes that train on the CPU: more than anybody tries out a layout with, and each takes half a gigabyte."""
JOIN_S = 3600
"""How long machines wait for one another."""
LOGS = ".logs"
"""Hidden, since its names are drawn and new after each start: they are no progress (`Restarts`)."""

P = TypeVar("P", bound=ParallelParams)


def run(ctx: Context, params: P, function: Callable[[Context, P, World], None]) -> None:
    """Call `function(ctx, params, world)` in as many processes as `params` ask for.

    Raises what one of them raised, and StepError when they die again and again without a new checkpoint.
    """
    if isinstance(ctx, RankContext):
        function(ctx, params, ctx.world)
    elif params.processes == 1:
        function(ctx, params, World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    else:
        _launch(ctx, params)


def _launch(ctx: Context, params: ParallelParams) -> None:
    local = params.processes // params.nodes
    most = MOST_A_CORE * cores()
    if local > most and not torch.cuda.is_available():
        raise StepError(f"{local} processes are too many for this machine: {most} at most", hint="lower 'processes'")
    folder = ctx.workdir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    order = Order.of(ctx, params)
    order.save(folder)
    EventLog(folder).close()
    spread = f" on each of {params.nodes} machines" if params.nodes > 1 else ""
    ctx.log(f"starting {local} processes{spread}")
    if params.nodes > 1:
        ctx.log(f"on each of the other machines run: {order.join_command(params.nodes, local)}")
    with _Listener(ctx, folder), _own_signals():
        _run_agent(folder, params)
    found = failure(folder)
    if found is not None:
        raise found
    for name, made in outputs(folder).items():
        with ctx.output(name) as out:
            for path in made.path.iterdir():
                shutil.move(path, out.path / path.name)
            out.metrics.update(made.metrics)
            out.licences.update(made.licences)


def _run_agent(folder: Path, params: ParallelParams) -> None:
    """Start this machine's ranks, and start them again whenever one dies, until all have ended well."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    local = params.processes // params.nodes
    alone = params.nodes == 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // local)))
    # Ranks that meet in the agents' store find there what the ranks before a restart have left, and wait for these
    # (https://github.com/pytorch/pytorch/issues/135712); so each start has a store of its own.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=params.nodes,
        max_nodes=params.nodes,
        nproc_per_node=local,
        run_id=params.rendezvous or "liuyi",
        rdzv_backend="c10d",
        rdzv_endpoint=params.rendezvous or "127.0.0.1:0",
        rdzv_configs={"join_timeout": JOIN_S},
        max_restarts=MAX_RESTARTS,
        monitor_interval=MONITOR_S,
        local_addr="127.0.0.1" if alone else None,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / LOGS), tee=Std.ALL),
        log_line_prefix_template="rank ${rank}: ",
    )
    try:
        # Unbuffered, so that the last words of a rank that is killed are told.
        elastic_launch(config, sys.executable)("-P", "-u", "-m", "liuyi.train.rank", str(folder), str(os.getpid()))
    except ChildFailedError as error:
        raise StepError(f"the ranks died {MAX_RESTARTS} times", hint="their last words are in the log") from error


_TAKEN_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def _own_signals() -> Iterator[None]:
    """The agent takes the signals over that end a process; what it was sent is delivered to this process after it.

    Raises StepError where this process goes on in spite of the signal, since the ranks are gone.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    handlers = {number: signal.getsignal(number) for number in _TAKEN_OVER}
    stopped_by = 0
    try:
        yield
    except SignalException as stopped:
        stopped_by = stopped.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped_by:
        signal.raise_signal(stopped_by)
        raise StepError(f"the ranks were ended by {signal.Signals(stopped_by).name}")


class _Listener:
    """Tells a step's context what rank 0 tells, from a thread of its own, and ends ranks that start in vain."""

    def __init__(self, ctx: Context, folder: Path) -> None:
        self._ctx, self._folder = ctx, folder
        self._restarts = Restarts(ctx.workdir / CHECKPOINTS)
        self._starts = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ranks", daemon=True)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        try:
            for event in follow_events(self._folder, more=lambda: not self._over.is_set()):
                if event is not None:
                    self._tell(event)
        except Exception as error:
            tell_failure(self._folder, as_error(error, "the step's log"))

    def _tell(self, event: Event) -> None:
        match event["event"]:
            case "progress":
                self._ctx.progress(event["done"], event["total"], event["unit"], **_numbers(event["shown"]))
            case "metric":
                value = event["value"]
                self._ctx.metric(event["name"], float("nan") if value is None else value, event["index"])
            case "log":
                self._ctx.log(event["text"])
            case "start":
                self._count_start()

    def _count_start(self) -> None:
        self._starts += 1
        if self._starts == 1:
            return
        if self._restarts.again():
            self._ctx.log("a process has died: all of them start again from the last checkpoint")
        else:
            error = StepError("processes died again and again without a new checkpoint", hint="the log names them")
            tell_failure(self._folder, error)


def _numbers(figures: dict[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in figures.items()}
