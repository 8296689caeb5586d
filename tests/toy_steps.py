"""Small steps for tests of the runner; the fixture `toys` makes a plugin of this file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from liuyi.core.errors import DataError
from liuyi.core.step import START_AGAIN, Context, Input, Output, Params, SourcePath, step
from liuyi.infer.errors import RequestError
from liuyi.train.params import ParallelParams

if TYPE_CHECKING:
    from liuyi.train.world import World

PRELOAD = ("colorsys",)


class NumberParams(Params):
    value: int
    file: SourcePath | None = None


@step("toy.number", version=1, inputs={}, outputs={"number": Output("corpus")})
def number(ctx: Context, params: NumberParams) -> None:
    """Write one number."""
    with ctx.output("number") as out:
        (out.path / "number.txt").write_text(str(params.value))
        out.metrics["value"] = params.value


class SumParams(Params):
    pass


@step("toy.sum", version=1, inputs={"numbers": Input("corpus", many=True)}, outputs={"number": Output("corpus")})
def add_up(ctx: Context, params: SumParams) -> None:
    """Add numbers up."""
    total = sum(int(each.file("number.txt").read_text()) for each in ctx.inputs("numbers"))
    ctx.log(f"the sum is {total}")
    with ctx.output("number") as out:
        (out.path / "number.txt").write_text(str(total))
        out.metrics["value"] = total


class ChainParams(Params):
    links: int = 20
    pause_s: float = 0.05
    diary: Path | None = None
    """A file that gets one line for each start and each link."""
    gate: Path | None = None
    """A file that has to be there before the second link."""


@step(
    "toy.chain", version=1, inputs={"number": Input("corpus", optional=True)}, outputs={"model": Output("checkpoint")}
)
def chain(ctx: Context, params: ChainParams) -> None:
    """Hash a value again and again, with a checkpoint after each time, as a training does."""
    checkpoint = ctx.workdir / "state.json"
    state = {"link": 0, "value": str(ctx.seed)}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
    _note(params.diary, f"start {os.getpid()} {os.getppid()} at {state['link']}")
    while state["link"] < params.links:
        time.sleep(params.pause_s)
        while state["link"] == 1 and params.gate and not params.gate.exists():
            time.sleep(0.01)
        state = {"link": state["link"] + 1, "value": hashlib.sha256(state["value"].encode()).hexdigest()}
        beside = checkpoint.with_suffix(".new")
        beside.write_text(json.dumps(state))
        _note(params.diary, f"link {state['link']}")  # before the rename: a kill between the two writes the line twice
        beside.rename(checkpoint)
        ctx.metric("loss", 1 / state["link"], index=state["link"])
        ctx.progress(state["link"], params.links, "links", loss=1 / state["link"])
    with ctx.output("model") as out:
        (out.path / "value.txt").write_text(state["value"])


class PhoenixParams(Params):
    deaths: int
    keeps: bool = True
    """Whether it keeps something of its work before it dies."""
    how: Literal["killed", "hangs"] = "killed"


@step("toy.phoenix", version=1, inputs={}, outputs={"number": Output("corpus")}, starts_again=True)
def phoenix(ctx: Context, params: PhoenixParams) -> None:
    """Die so many times, then say how often it was started."""
    diary = ctx.workdir / "diary"
    _note(diary, f"start {os.getpid()}")
    starts = len(diary.read_text().splitlines())
    if starts <= params.deaths:
        if params.keeps:
            (ctx.workdir / f"kept-{starts}").touch()
        if params.how == "hangs":
            os._exit(START_AGAIN)
        os.kill(os.getpid(), signal.SIGKILL)
    with ctx.output("number") as out:
        (out.path / "number.txt").write_text(str(starts))


def _note(diary: Path | None, line: str) -> None:
    if diary is not None:
        with diary.open("a") as file:
            file.write(line + "\n")


class FailParams(Params):
    how: Literal[
        "people", "error", "memory", "disk", "killed", "crash", "exit", "missing", "twice", "unknown", "nan", "empty"
    ]


@step("toy.fail", version=1, inputs={}, outputs={"number": Output("corpus")})
def fail(ctx: Context, params: FailParams) -> None:
    """Fail in a chosen way."""
    print("about to fail")
    print("this goes to the log too", file=sys.stderr)
    match params.how:
        case "people":
            raise DataError("the table has no rows", where="table.csv:1", hint="give it some")
        case "error":
            raise ZeroDivisionError("division by zero")
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(28, "No space left on device", "/somewhere")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.abort()
        case "exit":
            sys.exit("enough")
        case "twice":
            for _ in range(2):
                with ctx.output("number") as out:
                    (out.path / "number.txt").write_text("1")
        case "unknown":
            with ctx.output("numbre") as out:
                pass
        case "nan":
            with ctx.output("number") as out:
                (out.path / "number.txt").write_text("1")
                out.metrics["value"] = float("nan")
        case "empty":
            with ctx.output("number"):
                pass


class StubbornParams(Params):
    ready: Path


@step("toy.stubborn", version=1, inputs={}, outputs={"number": Output("corpus")})
def stubborn(ctx: Context, params: StubbornParams) -> None:
    """Do not listen when told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    params.ready.write_text(str(os.getpid()))
    time.sleep(600)


class FactsParams(Params):
    pass


@step(
    "toy.facts",
    version=1,
    inputs={},
    outputs={"facts": Output("report")},
    fingerprint=lambda _: os.environ.get("TOY_FACTS", ""),
)
def facts(ctx: Context, params: FactsParams) -> None:
    """Tell about this process."""
    import random

    import numpy as np

    told = {
        "cwd": str(Path.cwd()),
        "seed": ctx.seed,
        "random": random.random(),
        "numpy": float(np.random.random()),
        "preloaded": "colorsys" in sys.modules,
        "hash": hash("a"),
        "stdin": sys.stdin.read(),
        "run": ctx.run_id,
        "name": ctx.name,
    }
    with ctx.output("facts") as out:
        (out.path / "facts.json").write_text(json.dumps(told))


class GateParams(Params):
    decision: Literal["promoted", "held"] = "held"


@step("toy.gate", version=1, inputs={}, outputs={"verdict": Output("verdict")})
def gate(ctx: Context, params: GateParams) -> None:
    """Decide something."""
    comparison = {"metric": "exact match", "delta": 0.1, "low": 0.02, "high": 0.18, "p_value": 0.01, "p_adjusted": 0.02}
    verdict = {"stage": "fine-tuning", "decision": params.decision, "comparisons": [comparison], "rule": "better"}
    with ctx.output("verdict") as out:
        (out.path / "verdict.json").write_text(json.dumps(verdict))


class TogetherParams(ParallelParams):
    what: Literal["add", "fail", "bug", "refuse", "lose", "lose-and-fail", "die", "wait"] = "add"
    diary: Path


@step("toy.together", version=1, inputs={}, outputs={"sum": Output("report")}, starts_again=True)
def together(ctx: Context, params: TogetherParams) -> None:
    """Add up the ranks of several processes; of one of them something else may come."""
    from liuyi.train import launch

    launch.run(ctx, params, _add_up)


def _add_up(ctx: Context, params: TogetherParams, world: World) -> None:
    with params.diary.open("a") as diary:
        diary.write(f"{world.rank} {os.getpid()}\n")
    world.barrier()
    ctx.log("all are there")
    if world.rank == 1:
        lost = ctx.workdir / "lost"
        match params.what:
            case "lose" | "lose-and-fail" if not lost.exists():
                lost.touch()
                print("last words", end="")
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail" | "lose-and-fail":
                raise DataError("this is no number", where="numbers.txt", hint="write one")
            case "bug":
                raise ValueError("a mistake of ours")
            case "refuse":
                raise RequestError("the prompt is too long", param="prompt", hint="cut it")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                time.sleep(600)
    (total,) = world.sum([float(world.rank)])
    ctx.progress(1, 1, "sums", ranks=total)
    ctx.metric("total", total)
    ctx.metric("broken", float("nan"))
    if world.leads:
        with ctx.output("sum") as out:
            (out.path / "sum.txt").write_text(str(total))
            out.metrics["total"] = total
            out.licences.add("CC0-1.0")
