"""Branching off from a long run: on from a milestone, with its weights, optimiser state and place in the data.

From a stable learning rate each milestone gives a finished model by a decay of its own, the cooldown, so that one long
run serves many lengths (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations", arXiv 2405.18392). A branch with the tokens, batches and seed of its run takes the very steps that the run
would have taken, had its own decay begun there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.errors import ModelError, StepError
from liuyi.core.step import Context
from liuyi.model.decoder import Decoder
from liuyi.pretrain.size import recommended
from liuyi.train.log import LOG_FILE
from liuyi.train.milestones import last_milestone, milestone, plant
from liuyi.train.stored import Stored
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.pretrain.steps import TrainParams


def branch_off(
    ctx: Context, params: TrainParams, model: Decoder, stream_tokens: int, world: World
) -> tuple[TrainParams, int]:
    """Have this run go on from a milestone; the params with the schedule from there on, and the milestone's step.

    Raises ModelError where the milestone is of another model or optimiser, or its learning rate was not stable, and
    DataError where there is none of the step that is asked for.
    """
    from liuyi.pretrain.train import optimiser_config, rows_in_batch

    artifact = ctx.input("milestones")
    step = last_milestone(artifact.path) if params.branch_step is None else params.branch_step
    made_by = artifact.manifest.step, artifact.manifest.params.get("optimiser")
    if made_by != ("pretrain.train", params.optimiser):
        raise ModelError(
            f"milestones of {made_by[0]} with {made_by[1]} are nothing for pretrain.train with {params.optimiser}",
            hint="a branch goes on with the optimiser state of its run",
        )
    folder = milestone(artifact.path, step)
    _demand_same_weights(Stored(folder), model)
    if world.leads:
        plant(artifact.path, [step], ctx.workdir)
    world.barrier()
    batch_tokens = rows_in_batch(model, params) * params.seq_len
    if not params.cooldown_steps:
        if (params.token_budget or params.epochs * stream_tokens) <= step * batch_tokens:
            raise ModelError(
                f"the run would end before step {step}, from where it is to go on",
                hint="set cooldown_steps, or a token_budget that counts the steps before the milestone too",
            )
        return params, step
    _demand_stable(folder / LOG_FILE, optimiser_config(params, recommended(model.config)).lr)
    total = step + params.cooldown_steps
    tokens = total * batch_tokens
    decay = params.cooldown_steps / total
    cooldown = {"token_budget": tokens, "schedule": "wsd", "warmup": 0.0, "decay": decay}
    return params.model_copy(update=cooldown), step


def refuse_to_begin_anew() -> None:
    """What a branch prepares for a start from nothing. Raises StepError: its weights would be those of another run."""
    raise StepError(
        "the checkpoints of this branch are damaged, the milestone that it began from among them",
        hint="run it again: it begins from the milestone once more",
    )


def _demand_same_weights(stored: Stored, model: Decoder) -> None:
    theirs = stored.shapes("model")
    ours = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wrong = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if wrong:
        raise ModelError(
            f"the milestone is of another model: '{wrong[0]}' is {theirs.get(wrong[0])} there and "
            f"{ours.get(wrong[0])} here",
            hint="give the step the checkpoint of the same run as `model`",
        )


def _demand_stable(log: Path, lr: float) -> None:
    lines = log.read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])["lr"] if lines else 0.0
    if last != lr:
        raise ModelError(
            f"a cooldown falls from the learning rate {lr:.3g}, and the step before the milestone had {last:.3g}",
            hint="take a milestone after the warm-up and before the decay, and the same lr",
        )
