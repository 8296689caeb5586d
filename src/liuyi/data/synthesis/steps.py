"""Where synthetic data meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Input, Output, step
from liuyi.data.synthesis.params import ASKED, EVIDENCE, AskParams, NewParams, TemplateParams

_CHATS = {"chats": Output("chats", EVIDENCE)}
_SEEDS = Input("chats", "examples: their first questions", many=True)
_DOCUMENTS = Input("corpus", "documents to make rows from")

Style = Literal["easy", "encyclopedic", "terse", "dialogue"]


class SelfInstructParams(TemplateParams, NewParams):
    rows: int = Field(1000, ge=1, description="new tasks to find; those whose answers fail are not replaced")
    examples: int = Field(8, ge=1, le=64, description="tasks shown in a request; a quarter of them made before")
    per_request: int = Field(8, ge=1, le=64, description="tasks asked for in a request")
    temperature: float = Field(1.0, ge=0, le=2, description="of answers; 0 takes the most probable token each time")


@step("data.self_instruct", version=2, inputs={**ASKED, "seeds": _SEEDS}, outputs=_CHATS, starts_again=True)
def self_instruct(ctx: Context, params: SelfInstructParams) -> None:
    """New tasks after the example of a few, with answers (self-instruct)."""
    from liuyi.data.synthesis.generators.self_instruct import self_instruct
    from liuyi.data.synthesis.rows import read_seeds
    from liuyi.data.synthesis.running import give_chats, novelty, running

    seeds = read_seeds(found.file("chats.parquet") for found in ctx.inputs("seeds"))
    if not seeds:
        raise DataError("there are no seeds", where=ctx.name)
    with running(ctx, params, "self_instruct") as task:
        new = novelty(ctx, params, params.max_rouge, ((seed.id, seed.instruction) for seed in seeds))
        named = params.model_dump(include={"rows", "examples", "per_request"})
        give_chats(ctx, params, task, self_instruct(task, seeds, new, **named))


class EvolInstructParams(TemplateParams, NewParams):
    rounds: int = Field(2, ge=1, le=10, description="how often each task is made harder")
    breadth: float = Field(0.15, ge=0, le=1, description="share of evolutions that give a rarer task, not a harder one")
    max_rouge: float = Field(0.95, gt=0, le=1, description="as for data.self_instruct, but children resemble parents")
    temperature: float = Field(1.0, ge=0, le=2, description="of answers; 0 takes the most probable token each time")


@step("data.evol_instruct", version=2, inputs={**ASKED, "seeds": _SEEDS}, outputs=_CHATS, starts_again=True)
def evol_instruct(ctx: Context, params: EvolInstructParams) -> None:
    """Tasks made harder, or rarer, round by round, with answers (evol-instruct)."""
    from liuyi.data.synthesis.generators.evol_instruct import evol_instruct
    from liuyi.data.synthesis.rows import read_seeds
    from liuyi.data.synthesis.running import give_chats, novelty, running

    seeds = read_seeds(found.file("chats.parquet") for found in ctx.inputs("seeds"))
    with running(ctx, params, "evol_instruct") as task:
        new = novelty(ctx, params, params.max_rouge, ((seed.id, seed.instruction) for seed in seeds))
        made = evol_instruct(task, seeds, new, rounds=params.rounds, breadth=params.breadth)
        give_chats(ctx, params, task, made)


class MagpieParams(AskParams, NewParams):
    samples: int = Field(1000, ge=1, description="instructions to draw; what is kept is fewer")
    pre_query: str = Field(
        "", description="with an endpoint: what its chat template puts before a user's first words, as it stands"
    )
    stop: tuple[str, ...] = Field((), description="with an endpoint: what ends a user's turn, such as `<|im_end|>`")
    instruction_tokens: int = Field(256, ge=1, description="longest instruction; a longer one is dropped")
    instruction_temperature: float = Field(1.0, gt=0, le=2, description="of instructions; `temperature` is of answers")
    license: str = Field("unknown", description="the licence of the rows")


@step("data.magpie", version=2, inputs=ASKED, outputs=_CHATS, starts_again=True)
def magpie(ctx: Context, params: MagpieParams) -> None:
    """Instructions that the model writes from nothing but the beginning of a user's turn, with answers (Magpie)."""
    from liuyi.data.synthesis.ask import Sampling
    from liuyi.data.synthesis.generators.magpie import magpie, pre_query
    from liuyi.data.synthesis.running import give_chats, novelty, running
    from liuyi.model.load import load_tokenizer

    with running(ctx, params, "magpie", license=params.license) as task:
        prompt = params.pre_query
        if ctx.has("model"):
            prompt = prompt or pre_query(load_tokenizer(ctx.input("model").path))
        elif not prompt:
            raise DataError("an endpoint needs 'pre_query'", where=ctx.name, hint=r'such as "<|im_start|>user\n"')
        drawn = Sampling(params.instruction_tokens, params.instruction_temperature)
        made = magpie(
            task,
            novelty(ctx, params, params.max_rouge),
            prompt=prompt,
            stop=params.stop,
            instructions=drawn,
            samples=params.samples,
        )
        give_chats(ctx, params, task, made)


class RephraseParams(TemplateParams):
    styles: tuple[Style, ...] = Field(
        ("easy", "encyclopedic", "terse", "dialogue"), min_length=1, description="each passage once in each"
    )
    passage_chars: int = Field(1500, ge=100, description="longest passage; longer documents are divided")


@step(
    "data.rephrase",
    version=2,
    inputs={**ASKED, "corpus": _DOCUMENTS},
    outputs={"corpus": Output("corpus", f"attributes.parquet has each document's lineage, {EVIDENCE}")},
    starts_again=True,
)
def rephrase(ctx: Context, params: RephraseParams) -> None:
    """What documents say once more in other styles (WRAP)."""
    from liuyi.data.synthesis.generators.rephrase import rephrase
    from liuyi.data.synthesis.rows import read_sources, write_corpus
    from liuyi.data.synthesis.running import finish, novelty, running

    with running(ctx, params, "rephrase") as task, ctx.output("corpus") as out:
        sources = read_sources(ctx.input("corpus").path)
        named = params.model_dump(include={"styles", "passage_chars"})
        made = rephrase(task, sources, novelty(ctx, params, 1.0), **named)
        finish(ctx, params, task, out, write_corpus(out.path, made, task.session.tally))


class BackTranslateParams(TemplateParams, NewParams):
    passage_chars: int = Field(2000, ge=100, description="longest passage; longer documents are divided")
    least_passage_chars: int = Field(200, ge=1, description="shorter passages are passed over")
    questions: int = Field(1, ge=1, le=20, description="questions about each passage")
    min_support: float = Field(0.5, ge=0, le=1, description="least share of an answer's words that the passage has")


@step("data.back_translate", version=2, inputs={**ASKED, "corpus": _DOCUMENTS}, outputs=_CHATS, starts_again=True)
def back_translate(ctx: Context, params: BackTranslateParams) -> None:
    """Questions that passages of documents answer, with answers that rest on them (back-translation)."""
    from liuyi.data.synthesis.generators.back_translate import back_translate
    from liuyi.data.synthesis.rows import read_sources
    from liuyi.data.synthesis.running import give_chats, novelty, running

    with running(ctx, params, "back_translate") as task:
        sources = read_sources(ctx.input("corpus").path)
        named = params.model_dump(include={"passage_chars", "least_passage_chars", "questions", "min_support"})
        made = back_translate(task, sources, novelty(ctx, params, params.max_rouge), **named)
        give_chats(ctx, params, task, made)


class PersonasParams(TemplateParams, NewParams):
    passage_chars: int = Field(1500, ge=100, description="how much of each document is read")
    tasks: int = Field(1, ge=1, le=20, description="tasks of each persona")
    temperature: float = Field(1.0, ge=0, le=2, description="of answers; 0 takes the most probable token each time")


@step("data.personas", version=2, inputs={**ASKED, "corpus": _DOCUMENTS}, outputs=_CHATS, starts_again=True)
def personas(ctx: Context, params: PersonasParams) -> None:
    """Tasks of people who would read the documents, with answers (personas)."""
    from liuyi.data.synthesis.generators.personas import personas
    from liuyi.data.synthesis.rows import read_sources
    from liuyi.data.synthesis.running import give_chats, novelty, running

    with running(ctx, params, "personas") as task:
        sources = read_sources(ctx.input("corpus").path)
        new = novelty(ctx, params, params.max_rouge)
        made = personas(task, sources, new, passage_chars=params.passage_chars, tasks=params.tasks)
        give_chats(ctx, params, task, made)


class VerifiedParams(TemplateParams):
    tasks: tuple[str, ...] = Field((), description="tasks of reasoning-gym, such as gsm_symbolic")
    problems_per_task: int = Field(100, ge=1, description="problems of each of them")
    samples: int = Field(4, ge=1, le=256, description="solutions asked for a problem")
    keep: int = Field(1, ge=1, le=256, description="most right solutions kept of a problem, the first different ones")
    pairs: int = Field(1, ge=0, le=256, description="most preferences of right to wrong solutions from a problem")
    min_pass_rate: float = Field(0.0, ge=0, le=1, description="problems solved less often are left out")
    max_pass_rate: float = Field(1.0, ge=0, le=1, description="problems solved more often are left out")
    license: str = Field("unknown", description="the licence of problems that reasoning-gym makes")

    @model_validator(mode="after")
    def _bounds(self) -> VerifiedParams:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError("min_pass_rate is above max_pass_rate")
        return self


@step(
    "data.verified",
    version=2,
    inputs={**ASKED, "problems": Input("chats", "own problems: question and reference", optional=True, many=True)},
    outputs={
        **_CHATS,
        "preferences": Output("preferences", "right before wrong solutions; problems.parquet has each pass rate"),
    },
    starts_again=True,
)
def verified(ctx: Context, params: VerifiedParams) -> None:
    """Solutions whose results were checked: right ones to learn from, wrong ones to prefer them to."""
    import shutil
    from itertools import chain

    import pyarrow.parquet as pq

    from liuyi.data.instructions.tables import PREFERENCES
    from liuyi.data.synthesis.generators.verified import verified
    from liuyi.data.synthesis.preferences import PROBLEMS, write_pairs
    from liuyi.data.synthesis.problems import different, gym_problems, own_problems
    from liuyi.data.synthesis.rows import read_seeds
    from liuyi.data.synthesis.running import give_chats, novelty, running

    if not params.tasks and not ctx.has("problems"):
        raise DataError("there are no problems", where=ctx.name, hint="name 'tasks', or give the input 'problems'")
    own = read_seeds(found.file("chats.parquet") for found in ctx.inputs("problems"))
    problems = chain(
        gym_problems(params.tasks, params.problems_per_task, ctx.seed, params.license) if params.tasks else (),
        own_problems(own),
    )
    with running(ctx, params, "verified") as task:
        named = params.model_dump(include={"samples", "keep", "min_pass_rate", "max_pass_rate"})
        solved = verified(task, different(problems), novelty(ctx, params, 1.0), **named)
        made = (solution for one in write_pairs(ctx.workdir, solved, params.pairs) for solution in one.solutions)
        written = give_chats(ctx, params, task, made, figures=("pass_rate",))
    with ctx.output("preferences") as out:
        for name in (PREFERENCES, PROBLEMS):
            shutil.move(ctx.workdir / name, out.path / name)
        out.metrics["rows"] = pq.read_metadata(out.path / PREFERENCES).num_rows
        out.licences.update(written.licences)
