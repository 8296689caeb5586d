"""One of several processes that do a step together, started by an elastic agent: `train/launch.py`'s, or `torchrun`.

    torchrun --nnodes 2 --nproc-per-node 8 ... -m liuyi.train.rank [FOLDER [AGENT]]

FOLDER is where the step's process has left the order; left out, it is looked for in the home, by the rendezvous. AGENT
is the process that starts the ranks, with which they end; left out, it is the one that this one finds itself under. An
error that would come again ends all ranks by status 0, so that no agent starts them again; a rank that loses another
one, or stands still, ends by `START_AGAIN`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from liuyi.core.artifact import Artifact, Kind, Manifest
from liuyi.core.errors import LiuyiError, StepError
from liuyi.core.home import Home
from liuyi.core.runner.context import StepContext
from liuyi.core.runner.events import EventLog
from liuyi.core.runner.failure import as_error, pack, unpack
from liuyi.core.runner.lifetime import die_with_parent
from liuyi.core.runner.process import seed_everything
from liuyi.core.step import START_AGAIN, Context, Staging, get_step

if TYPE_CHECKING:
    from liuyi.train.params import ParallelParams
    from liuyi.train.world import World

FOLDER = "ranks"
ORDER_FILE, OUTPUTS_FILE, FAILURE_FILE = "order.json", "outputs.json", "failure.json"
LOOK_S = 0.2


class Given(BaseModel):
    """An artifact at an input port, which the step's process has verified."""

    model_config = ConfigDict(frozen=True)
    manifest: Manifest
    path: Path


class Order(BaseModel):
    """All that a rank is told."""

    model_config = ConfigDict(frozen=True)
    step: str
    name: str
    run_id: str
    seed: int
    params: dict[str, Any]
    inputs: dict[str, list[Given]]
    folder: Path
    """The recipe's, from which paths start."""
    workdir: Path
    rendezvous: str

    @classmethod
    def of(cls, ctx: Context, params: ParallelParams) -> Order:
        """What the process of a step that is to be done together would do by itself."""
        return cls(
            step=ctx.step.name,
            name=ctx.name,
            run_id=ctx.run_id,
            seed=ctx.seed,
            params=params.model_dump(mode="json"),
            inputs={
                port: [Given(manifest=given.manifest, path=given.path) for given in ctx.inputs(port)]
                for port in ctx.step.inputs
            },
            folder=Path.cwd(),
            workdir=ctx.workdir,
            rendezvous=params.rendezvous,
        )

    def save(self, folder: Path) -> None:
        (folder / ORDER_FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Order:
        return cls.model_validate_json((folder / ORDER_FILE).read_text(encoding="utf-8"))

    def join_command(self, nodes: int, local: int) -> str:
        """What another machine runs to take part."""
        return (
            f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PYTHONHASHSEED=0 torchrun --nnodes {nodes} --nproc-per-node {local} "
            f"--rdzv-backend c10d --rdzv-endpoint {self.rendezvous} --rdzv-id {self.rendezvous} --max-restarts 1000 "
            f"-m liuyi.train.rank {quote(str(self.workdir / FOLDER))}"
        )


class Made(BaseModel):
    """An output that rank 0 has written."""

    path: Path
    metrics: dict[str, float]
    licences: set[str]


def outputs(folder: Path) -> dict[str, Made]:
    """What rank 0 made, by port."""
    made = json.loads((folder / OUTPUTS_FILE).read_text(encoding="utf-8"))
    return {name: Made.model_validate(each) for name, each in made.items()}


def failure(folder: Path) -> LiuyiError | None:
    """The error that ended the work, if one did."""
    path = folder / FAILURE_FILE
    return unpack(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def tell_failure(folder: Path, error: LiuyiError) -> None:
    """Leave the error that ends the work; of several the first is kept."""
    draft = folder / f"{FAILURE_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(pack(error)), encoding="utf-8")
    try:
        os.link(draft, folder / FAILURE_FILE)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


@dataclass
class RankShelf:
    """Inputs as the order has them; outputs are filled beside it."""

    artifacts: Mapping[str, Artifact]
    folder: Path
    staged: int = 0

    def open(self, digest: str) -> Artifact:
        return self.artifacts[digest]

    def stage(self, kind: Kind) -> Staging:
        path = self.folder / f"output-{self.staged}"
        self.staged += 1
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return Staging(path, kind)

    def discard(self, staging: Staging) -> None:
        shutil.rmtree(staging.path, ignore_errors=True)


class RankContext(StepContext):
    """The `Context` of a rank. What rank 0 tells goes to the step's process; the others would say the same."""

    def __init__(self, order: Order, folder: Path, world: World) -> None:
        given = [each for port in order.inputs.values() for each in port]
        super().__init__(
            step=get_step(order.step),
            name=order.name,
            run_id=order.run_id,
            seed=order.seed,
            workdir=order.workdir,
            inputs={port: [each.manifest.digest for each in port_given] for port, port_given in order.inputs.items()},
            store=RankShelf({each.manifest.digest: Artifact(each.manifest, each.path) for each in given}, folder),
            events=EventLog(folder),
            record=lambda name, index, value: None,
        )
        self.world = world

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        if self.world.leads:
            super().progress(done, total, unit, **shown)

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        if self.world.leads:
            super().metric(name, value, index)

    def log(self, message: str) -> None:
        if self.world.leads:
            self._events.emit("log", step=self.name, text=message)


def find_order(rendezvous: str) -> Path:
    """The folder with the newest order of this rendezvous in the home. Raises StepError if there is none."""
    root = Home.find().work_root
    found = sorted(root.glob(f"*/{FOLDER}/{ORDER_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if Order.load(path.parent).rendezvous == rendezvous:
            return path.parent
    raise StepError(
        f"no step of this home meets others at '{rendezvous}'",
        where=str(root),
        hint="LIUYI_HOME must be the same folder on all machines, and --rdzv-id the step's rendezvous",
    )


def work(folder: Path) -> int:
    """Do this rank's part; the exit status."""
    # Where this process was started is left below.
    folder = folder.absolute()
    order = Order.load(folder)
    # One that an error has ended since may have lost the others on the way, and is not to be told as a death.
    if failure(folder) is not None:
        return 0
    if order.folder.is_dir():
        os.chdir(order.folder)
    if int(os.environ["RANK"]) == 0:
        (folder / OUTPUTS_FILE).unlink(missing_ok=True)
        EventLog(folder).emit("start")
    threading.Thread(target=_end_with_others, args=(folder,), name="failure", daemon=True).start()
    from liuyi.train.world import COLLECTIVE_S, join

    try:
        step = get_step(order.step)
        params: Any = step.params.model_validate(order.params)
        seed_everything(order.seed, step)
        # What ends a rank that waits too long is its watchdog, not the collective that it waits in.
        timeout_s = max(COLLECTIVE_S, 2 * params.hang_timeout_s)
        context = RankContext(order, folder, join(params.layout(), timeout_s=timeout_s))
        step.run(context, params)
        if context.world.leads:
            _hand_over(context, folder)
        # No collective: to write or to measure what was made may take the first longer than one may last.
        _wait_for(folder / OUTPUTS_FILE)
    except BaseException as error:
        lost = _is_lost_rank(error)
        if lost and failure(folder) is not None:
            # The rank that is lost has told of an error before it ended.
            return 0
        if not isinstance(error, LiuyiError):
            traceback.print_exc()
        if lost:
            return START_AGAIN
        told = as_error(error, "the step's log")
        tell_failure(folder, unpack(pack(told) | {"message": f"rank {os.environ['RANK']}: {told.message}"}))
    return 0


def _hand_over(context: RankContext, folder: Path) -> None:
    made = {
        name: Made(path=staging.path, metrics=staging.metrics, licences=staging.licences).model_dump(mode="json")
        for name, staging in context.finished().items()
    }
    draft = folder / f"{OUTPUTS_FILE}.tmp"
    draft.write_text(json.dumps(made), encoding="utf-8")
    draft.rename(folder / OUTPUTS_FILE)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(LOOK_S)


def _is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed, which it does when another rank is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _end_with_others(folder: Path) -> None:
    """End this process as soon as an error has ended the work, wherever it waits."""
    _wait_for(folder / FAILURE_FILE)
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    """Take part in the step whose order lies in the folder that the command line names."""
    die_with_parent(int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
    faulthandler.enable()
    # Ended by the agent because another rank died or stood still, it says where it was.
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
    try:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else find_order(os.environ["TORCHELASTIC_RUN_ID"])
    except LiuyiError as error:
        print(error, file=sys.stderr)
        return 1
    return work(folder)


if __name__ == "__main__":
    # The steps find this module by its name, and must find the same classes.
    from liuyi.train import rank

    status = rank.main()
    sys.stdout.flush()
    # Its work is done: what libraries have left to do at the end, such as the threads of an exporter, holds up nobody.
    os._exit(status)
