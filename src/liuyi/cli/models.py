"""Which model or application a command means, and how it is opened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import ArtifactError, LiuyiError

if TYPE_CHECKING:
    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home
    from liuyi.infer.server.backend import ChatBackend

SERVED = ("app", "checkpoint")
"""What is looked for where nobody says what to serve."""


@dataclass(frozen=True)
class Chosen:
    """What will answer: an artifact, a folder of Hugging Face files, or a GGUF file."""

    name: str
    path: Path
    artifact: Artifact | None = None
    base: Artifact | None = None
    """The model that an adapter was trained on."""

    @property
    def description(self) -> str:
        """One line for people."""
        if self.artifact is None:
            return f"model in {self.path}"
        return f"{self.artifact.kind} {self.artifact.digest[:12]}"


def choose(home: Home, ref: str | None) -> Chosen:
    """The model or application that `ref` names; without it the newest application, else checkpoint, of the last run.

    An adapter stands for the model that it was trained on, with the adapter in its weights. `ref` is the beginning of
    a digest, run/step.output, a folder with a config.json, or a GGUF file.
    Raises LiuyiError, saying what would be right, if it names none.
    """
    from liuyi.core.refs import resolve_artifact

    if ref is not None and (found := model_at(Path(ref))) is not None:
        return found
    digest = resolve_artifact(home, ref) if ref is not None else newest(home)
    kind = home.store.manifest(digest).kind
    if kind not in (*SERVED, "adapter"):
        raise ArtifactError(f"{digest[:12]} is a {kind}, which cannot answer", hint="name a checkpoint or an app")
    artifact = home.store.open(digest)
    base = _base(home, artifact) if kind == "adapter" else None
    return Chosen(_name(home, artifact), artifact.path, artifact, base)


def model_at(path: Path) -> Chosen | None:
    """The model in a folder or a GGUF file; None if there is neither at `path`.

    Raises LiuyiError for a folder without a model, and for any other file.
    """
    from liuyi.model.load import is_gguf, name_of

    if path.is_file() and is_gguf(path):
        return Chosen(name_of(path), path.resolve())
    if (path / "config.json").is_file():
        return Chosen(name_of(path), path.resolve())
    if path.is_dir():
        raise LiuyiError("the folder holds no model", where=str(path), hint="a model folder has a config.json")
    if path.is_file():
        hint = "name the folder that holds its config.json and safetensors files, or a GGUF file"
        raise LiuyiError("the file is no model by itself", where=str(path), hint=hint)
    return None


def newest(home: Home) -> str:
    """Digest of the newest application of the latest run that made something to serve, else of its newest checkpoint.

    Raises LiuyiError if no run did.
    """
    kinds = home.ledger.artifacts()
    for run in home.ledger.runs(limit=None):
        made = {execution.key: execution.outputs.values() for execution in home.ledger.executions_of(run.id)}
        outputs = [digest for step in reversed(home.ledger.steps(run.id)) for digest in made.get(step.key, ())]
        for kind in SERVED:
            for digest in outputs:
                if kinds.get(digest) == kind:
                    return digest
    raise LiuyiError(
        "no run has made a model yet",
        hint="name a model's folder or a GGUF file, or make one with: liuyi run quickstart",
    )


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model is opened; None leaves it to the engine. Meanings as in `EngineSpec` and `ModelBackend`."""

    weights: str | None = None
    kv: str | None = None
    kv_tokens: int | None = None
    slots: int | None = None
    max_tokens: int | None = None
    max_queue_tokens: int | None = None
    speculate: str | None = None
    adapters: dict[str, str] | None = None
    tool_format: str | None = None
    chat_template: str | None = None


def given_options(opening: Opening) -> dict[str, Any]:
    """The options that were given, by their names in `Opening`."""
    return {name: value for name, value in asdict(opening).items() if value is not None}


def refuse_for_backend(opening: Opening, name: str | None, *, adapter_loading: bool = False) -> None:
    """Raises LiuyiError if an option was given that means nothing for an engine that is already running."""
    given = [*given_options(opening), *(["name"] if name is not None else [])]
    for option in given + ["adapter_loading"] * adapter_loading:
        raise LiuyiError(f"--{option.replace('_', '-')} does not go with --backend: that engine is already open")


def open_backend(chosen: Chosen, home: Home, opening: Opening | None = None, *, max_queue: int = 256) -> ChatBackend:
    """Whatever was chosen, ready to be started. Raises LiuyiError if an option does not go with it."""
    given = given_options(opening or Opening())
    if chosen.artifact is not None and chosen.artifact.kind == "app":
        for name in given:
            option = "--" + name.replace("_", "-")
            raise LiuyiError(f"{option} is for models; an application brings its own", where=chosen.description)
        from liuyi.apply.app import AppConfig
        from liuyi.apply.backend import open_app

        model = home.store.open(AppConfig.load(chosen.path).model)
        return open_app(chosen.artifact, model, max_waiting=max_queue)
    from liuyi.infer.process.messages import EngineSpec
    from liuyi.infer.server.model_backend import ModelBackend

    of_server = {name: given.pop(name, None) for name in ("max_queue_tokens", "tool_format", "chat_template")}
    if "slots" in given:
        given["max_slots"] = given.pop("slots")
    digest = chosen.artifact.digest if chosen.artifact is not None else ""
    if chosen.base is not None:
        spec = EngineSpec(model=str(chosen.base.path), merged=str(chosen.path), **given)
    else:
        spec = EngineSpec(model=str(chosen.path), **given)
    return ModelBackend.load(spec, digest=digest, max_queue=max_queue, **of_server)


def _base(home: Home, adapter: Artifact) -> Artifact:
    """The model that an adapter was trained on. Raises ArtifactError where the adapter does not know it."""
    for made_from in adapter.manifest.inputs:
        if made_from.name == "model":
            return home.store.open(made_from.digest)
    raise ArtifactError(
        f"adapter {adapter.digest[:12]} does not say which model it was trained on",
        hint=f"serve that model, and the adapter with it: --adapter NAME={adapter.path}",
    )


def _name(home: Home, artifact: Artifact) -> str:
    """The name of the step that made it in the latest run, else its kind with the beginning of its digest."""
    steps = home.ledger.steps_with_key(artifact.manifest.step_key)
    return steps[-1].name if steps else f"{artifact.kind}-{artifact.digest[:8]}"
