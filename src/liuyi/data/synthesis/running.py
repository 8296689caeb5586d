"""What the steps of all generators do alike: open the endpoint, and write what was made with what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Staging
from liuyi.data.synthesis.ask import Sampling
from liuyi.data.synthesis.evalsets import finder
from liuyi.data.synthesis.novelty import Novelty
from liuyi.data.synthesis.params import AskParams, NewParams, TemplateParams
from liuyi.data.synthesis.queue import Patience
from liuyi.data.synthesis.report import Prices
from liuyi.data.synthesis.rows import Made, Written, write_chats
from liuyi.data.synthesis.session import Session
from liuyi.data.synthesis.task import Task
from liuyi.data.synthesis.templates import Template

if TYPE_CHECKING:
    from liuyi.data.synthesis.endpoint import Endpoint


@contextmanager
def running(ctx: Context, params: AskParams, generator: str, **task: object) -> Iterator[Task]:
    """The task of a step. `task` are further fields of it.

    Raises DataError unless either a checkpoint or an endpoint is there to be asked.
    """
    if isinstance(params, TemplateParams) and params.template is not None:
        task["template"] = Template.read(params.template)
    if isinstance(params, NewParams):
        task |= params.model_dump(include={"min_grade", "judge_model"})
        if params.judge_model and ctx.has("model"):
            raise DataError("a checkpoint is asked, so there is no other model that could judge", where=ctx.name)
    session = Session(
        _endpoint(ctx, params),
        ctx.workdir,
        concurrency=params.concurrency,
        patience=Patience(params.tries, params.retry_wait_s),
        max_requests=params.max_requests,
        max_tokens_out=params.max_tokens_out,
        on_progress=ctx.progress,
    )
    with session:
        sampling = Sampling(params.max_tokens, params.temperature, params.top_p)
        yield Task(generator, session, sampling, params.language, ctx.seed, **task)  # type: ignore[arg-type]


def _endpoint(ctx: Context, params: AskParams) -> Callable[[], Endpoint]:
    if ctx.has("model") == bool(params.endpoint):
        both = "both the input 'model' and" if params.endpoint else "neither the input 'model' nor"
        raise DataError(f"there is {both} an 'endpoint'", where=ctx.name, hint="give exactly one of them")
    if ctx.has("model"):
        checkpoint = ctx.input("model")

        def load() -> Endpoint:
            from liuyi.data.synthesis.engine import EngineEndpoint

            slots = min(params.concurrency, 64)
            return EngineEndpoint.load(checkpoint.path, checkpoint.digest, slots=slots, seed=ctx.seed)

        return load
    key = os.environ.get(params.api_key_env, "") if params.api_key_env else ""
    if params.api_key_env and not key:
        raise DataError(f"the environment variable {params.api_key_env} is empty", where=ctx.name)

    def connect() -> Endpoint:
        from liuyi.data.synthesis.endpoint import HttpEndpoint

        named = params.model_dump(include={"timeout_s", "structured"})
        return HttpEndpoint(params.endpoint, params.endpoint_model, key=key, **named)

    return connect


def novelty(ctx: Context, params: AskParams, max_rouge: float, seeds: Iterable[tuple[str, str]] = ()) -> Novelty:
    """What tells new instructions from known ones."""
    return Novelty(seeds, max_rouge, finder([found.path for found in ctx.inputs("evalsets")], params.ngram))


def give_chats(
    ctx: Context, params: AskParams, task: Task, made: Iterable[Made], figures: Sequence[str] = ()
) -> Written:
    """Write the output `chats`. Raises DataError when no row is kept."""
    with ctx.output("chats") as out:
        written = write_chats(out.path, made, task.session.tally, figures)
        finish(ctx, params, task, out, written)
    return written


def finish(ctx: Context, params: AskParams, task: Task, out: Staging, written: Written) -> None:
    """Write beside the rows what they cost and every answer. Raises DataError when no row was kept."""
    session, prices = task.session, _prices(params)
    session.finish()
    summary = session.tally.summary(prices)
    if not session.tally.kept:
        raise DataError("no row was kept", where=ctx.name, hint=summary)
    session.save_answers(out.path)
    session.tally.save(out.path, task.generator, session.model, prices, written.samples)
    out.metrics.update(session.tally.figures(prices))
    out.licences.update(written.licences)
    for name, counts in (("failed", session.tally.faults.tries), ("given_up", session.tally.faults.given_up)):
        for reason, count in counts.items():
            ctx.metric(f"{name}.{reason.replace(' ', '_')}", count)
    ctx.log(summary)


def _prices(params: AskParams) -> Prices | None:
    if params.price_in is None and params.price_out is None:
        return None
    return Prices(params.price_in or 0.0, params.price_out or 0.0)
