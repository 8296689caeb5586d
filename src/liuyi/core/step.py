"""A step: typed params, named inputs and outputs with their kinds, a version, and a function of a context.

    class CleanParams(Params):
        min_chars: int = Field(200, ge=0, description="shorter documents are dropped")

    @step("data.clean", version=1, inputs={"corpus": Input("corpus")}, outputs={"corpus": Output("corpus")})
    def clean(ctx: Context, params: CleanParams) -> None:
        "One line that `liuyi steps` shows."
        source = ctx.input("corpus")
        with ctx.output("corpus") as out:
            (out.path / "documents.parquet").write_bytes(...)
            out.metrics["documents"] = 10

Modules that define steps are named by entry points of the group `liuyi.steps`, so a plugin's step is no
different from ours. They import heavy libraries inside the functions: loading the registry must be quick. What the
steps of a module import in common, such as torch, it may name in a tuple `PRELOAD`: a run then imports it once for all.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)

from liuyi.core.artifact import KINDS, Artifact, Kind
from liuyi.core.digest import sha256_tree
from liuyi.core.errors import LiuyiError, RecipeError, did_you_mean

START_AGAIN = 4
"""The exit status by which the process of a step asks to be started again."""


class Params(BaseModel):
    """Base of every step's parameters: unknown names are refused, and `true` for a number; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1: `shard: true` would shard nothing."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"'{info.field_name}' is no switch: it takes no {str(value).lower()}")
        return value


def _takes_bool(annotation: Any) -> bool:
    if annotation in (bool, Any) or isinstance(annotation, bool):
        return True
    return any(map(_takes_bool, typing.get_args(annotation)))


def _at_hand(path: Path, info: ValidationInfo) -> Path:
    path = path.expanduser()
    folder = (info.context or {}).get("folder")
    if folder is not None and not (folder / path).exists():
        raise ValueError(f"there is no file or folder '{path}' in {folder}")
    return path


def _path_or_content(path: Path, info: SerializationInfo) -> str | list[str]:
    folder = (info.context or {}).get("folder")
    return str(path) if folder is None else [str(path), sha256_tree(folder / path)]


SourcePath = Annotated[Path, AfterValidator(_at_hand), PlainSerializer(_path_or_content)]
"""A parameter that names a file or folder of the user's own data, relative to the recipe's folder, which is the
current folder of every step. That it exists is checked before anything runs, and its content is part of the step
key: a changed file means that the step is run again."""


def _absent_from_key(value: Any, info: SerializationInfo) -> Any:
    return value if (info.context or {}).get("folder") is None else None


BesideKey = PlainSerializer(_absent_from_key)
"""Marks a parameter that says how fast and never what, as `Annotated[int, BesideKey]`: it is no part of the step key,
so what was done with another value is gone on with."""


@dataclass(frozen=True)
class Input:
    """An input port: the kinds it takes, whether it may be left out, whether it takes several artifacts."""

    kind: Kind | tuple[Kind, ...]
    doc: str = ""
    optional: bool = False
    many: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.kind if isinstance(self.kind, tuple) else (self.kind,)


@dataclass(frozen=True)
class Output:
    """An output port and the kind it gives."""

    kind: Kind
    doc: str = ""
    when: Callable[[Any], bool] | None = None
    """With which params it is given; with all of them when None."""


@dataclass
class Staging:
    """A folder being filled; it becomes an artifact when its `with` block ends without an error."""

    path: Path
    kind: Kind
    metrics: dict[str, float] = field(default_factory=dict)
    licences: set[str] = field(default_factory=set)


class Context(Protocol):
    """What a step may use while it runs. Nothing else of the spine is visible to it."""

    workdir: Path
    """A folder of this step key's own; it survives kills, and is removed once the outputs are published."""
    seed: int
    run_id: str
    name: str
    """The step's name in the recipe."""
    step: Step

    def input(self, name: str) -> Artifact:
        """The one artifact at an input port, already verified."""

    def inputs(self, name: str) -> list[Artifact]:
        """All artifacts at an input port: none, one or several, in the recipe's order."""

    def has(self, name: str) -> bool:
        """Whether an optional input was given."""

    def output(self, name: str) -> AbstractContextManager[Staging]:
        """Open an output port for writing; each port is written exactly once."""

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        """Tell how far the step is; `shown` are figures beside the bar, such as `loss=2.3`. Cheap to call often."""

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        """Record one metric, at training step `index` if it is a curve, in the ledger and the event stream."""

    def log(self, message: str) -> None:
        """One line for people in the run's log."""


@dataclass(frozen=True)
class Step:
    """A registered step."""

    name: str
    version: int
    params: type[Params]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    run: Callable[[Context, Any], None]
    fingerprint: Callable[[Any], str] | None = None
    """Names whatever else the outcome depends on, such as the versions of installed packages; part of the step key."""
    starts_again: bool = False
    """Whether its process is started again when it dies: what it keeps in `workdir` lets it go on from there."""

    @property
    def always(self) -> set[str]:
        """The outputs that are given whatever the params are."""
        return {name for name, port in self.outputs.items() if port.when is None}

    def gives(self, name: str, params: Params) -> bool:
        """Whether an output is given with these params."""
        when = self.outputs[name].when
        return when is None or when(params)

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.run) or ""


_steps: dict[str, Step] = {}


def step(
    name: str,
    *,
    version: int,
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Output],
    fingerprint: Callable[[Any], str] | None = None,
    starts_again: bool = False,
) -> Callable[[Callable[[Context, Any], None]], Callable[[Context, Any], None]]:
    """Register a function `(ctx, params) -> None` as a step; its params type is read from its annotation."""

    def register(function: Callable[[Context, Any], None]) -> Callable[[Context, Any], None]:
        params = typing.get_type_hints(function)["params"]
        kinds = [kind for port in inputs.values() for kind in port.kinds] + [port.kind for port in outputs.values()]
        for kind in kinds:
            if kind not in KINDS:
                raise LiuyiError(f"step '{name}' names the unknown kind '{kind}'", hint=did_you_mean(kind, KINDS))
        clash = (set(inputs) | {"step"}) & set(params.model_fields)
        if clash:
            raise LiuyiError(f"step '{name}' uses {sorted(clash)} both as input and as parameter")
        known = _steps.get(name)
        if known and known.run.__code__ != function.__code__:
            raise LiuyiError(f"two steps are named '{name}'", where=function.__module__)
        _steps[name] = Step(name, version, params, dict(inputs), dict(outputs), function, fingerprint, starts_again)
        return function

    return register


@functools.cache
def _load() -> None:
    for entry in entry_points(group="liuyi.steps"):
        entry.load()


def all_steps() -> dict[str, Step]:
    """Every registered step by name, the plugins' among them."""
    _load()
    return dict(sorted(_steps.items()))


def get_step(name: str) -> Step:
    """The step of that name.

    Raises RecipeError with the nearest known name if there is none.
    """
    steps = all_steps()
    if name not in steps:
        raise RecipeError(f"there is no step '{name}'", hint=did_you_mean(name, steps))
    return steps[name]
