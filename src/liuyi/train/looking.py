"""Who looks on at a step's training, as its parameters say, and what is kept of it with what was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liuyi.core.step import Context
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.curves import SAMPLES_FILE
from liuyi.train.export import Exporter, External
from liuyi.train.export_tools import TOOLS
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.params import LoopParams, SamplesParams
from liuyi.train.samples import Prompt, Samples


def let_export(trainer: Trainer[Any, Any], ctx: Context, params: LoopParams) -> None:
    """Have figures go to the tools that `params` name. The first process speaks for all."""
    if not trainer.world.leads:
        return
    run = External(
        project=params.export_project,
        name=f"{ctx.name}-{ctx.run_id}",
        folder=Path(params.export_folder),
        params=params.model_dump(mode="json"),
        tags={"run": ctx.run_id, "step": ctx.name},
    )
    trainer.onlookers += [
        Exporter(name, TOOLS[name], run, ctx.workdir, ctx.log) for name in dict.fromkeys(params.export)
    ]


def let_speak(
    trainer: Trainer[Any, Any],
    ctx: Context,
    params: SamplesParams,
    tokenizer: Tokenizer,
    prompts: Callable[[Sequence[str]], Sequence[Prompt]],
) -> None:
    """Have the model say something every so many steps; `prompts` makes them of the texts that `params` have."""
    if params.samples_every:
        trainer.onlookers.append(
            Samples(
                prompts(params.sample_prompts),
                tokenizer,
                params,
                trainer.model.config,
                lambda: trainer.over,
                ctx.workdir,
                ctx.log,
                trainer.meter.dtype,
                trainer.world,
            )
        )


def keep_logs(workdir: Path, folder: Path) -> None:
    """Copy what training wrote of itself beside what was trained: its log, and samples where there are any."""
    for name in (LOG_FILE, SAMPLES_FILE):
        if (workdir / name).exists():
            shutil.copy(workdir / name, folder / name)
