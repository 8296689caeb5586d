"""From YAML to a `Recipe`: every mistake is found before anything runs, and all of them are told at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from liuyi.core.artifact import Manifest
from liuyi.core.digest import canonical_json
from liuyi.core.errors import LiuyiError, did_you_mean
from liuyi.core.recipe.document import Document, Keys, override, read_document
from liuyi.core.recipe.model import Recipe, RecipeStep, Source, StepOutput, StoredArtifact
from liuyi.core.recipe.wrong_params import explain
from liuyi.core.step import Input, Params, Step, all_steps

FIELDS = ("recipe", "description", "seed", "steps")
STEP_NAME = re.compile(r"[a-z][a-z0-9_-]*")
REFERENCE = re.compile(r"\$\{\s*([^}\s.]*)\s*(?:\.\s*([^}\s]*))?\s*\}")
ARTIFACT = "artifact:"
MAX_SEED = 2**63 - 1

Lookup = Callable[[str], Manifest]
"""From a digest or its beginning to the manifest of the stored artifact; raises LiuyiError for unknown ones."""


def parse_recipe(
    text: str,
    source: str,
    *,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    stored: Lookup | None = None,
) -> Recipe:
    """Read and check a recipe.

    `source` names the file in messages; `overrides` are `seed=2` or `step.field=value`; `folder` is where the paths
    of own data start, which are not looked for without it; `stored` looks up `artifact:` inputs, which are refused
    without it. Raises InvalidRecipe with every mistake.
    """
    document = read_document(text, source)
    if isinstance(document.data, dict):
        for each in overrides:
            override(document, each)
    recipe = _Checker(document, folder, stored).recipe()
    document.raise_problems()
    return recipe


@dataclass
class _Draft:
    """A step of the recipe as far as it is understood."""

    path: Keys
    step: Step
    params: Params | None
    inputs: dict[str, tuple[Source, ...]] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)


@dataclass
class _Checker:
    document: Document
    folder: Path | None
    stored: Lookup | None
    drafts: dict[str, _Draft] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        data = self.document.data
        if not isinstance(data, dict):
            self.document.problem((), "a recipe is a mapping", f"with the fields {', '.join(FIELDS)}")
            self.document.raise_problems()
        for name in data:
            if name not in FIELDS:
                self.document.problem((name,), f"a recipe has no field '{name}'", did_you_mean(name, FIELDS))
        title = self.text(data, "recipe", required=True)
        description = self.text(data, "description", required=False)
        seed = data.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            self.document.problem(("seed",), f"the seed must be a whole number from 0 on, got {seed!r}")
        bodies = self.bodies(data)
        for name, (body, step) in bodies.items():
            self.drafts[name] = self.draft(name, body, step)
        for name, (body, _) in bodies.items():
            self.connect(name, body)
        order = self.order()
        self.document.raise_problems()
        steps = {name: self.finished(name, self.drafts[name]) for name in order}
        return Recipe(title, description, seed, steps)

    def text(self, data: Mapping[str, Any], name: str, *, required: bool) -> str:
        value = data.get(name, None if required else "")
        if isinstance(value, str) and (value or not required):
            return value
        message = f"'{name}' must be text, got {value!r}" if name in data else f"the field '{name}' is missing"
        self.document.problem((name,) if name in data else (), message)
        return ""

    def bodies(self, data: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], Step]]:
        """The steps whose kind is known, each with its fields."""
        steps = data.get("steps")
        if not isinstance(steps, dict) or not steps:
            self.document.problem(("steps",), "a recipe needs steps", "steps: {name: {step: data.files, …}}")
            return {}
        known = all_steps()
        bodies = {}
        for name, body in steps.items():
            path: Keys = ("steps", name)
            if not STEP_NAME.fullmatch(name):
                self.document.problem(path, f"'{name}' cannot name a step", "use a-z, 0-9, _ and -, a letter first")
            if not isinstance(body, dict):
                self.document.problem(path, "a step is a mapping with the field 'step'")
            elif "step" not in body:
                self.document.problem(path, "the field 'step' is missing", "for example step: data.files")
            elif not isinstance(body["step"], str) or body["step"] not in known:
                hint = did_you_mean(str(body["step"]), known)
                self.document.problem((*path, "step"), f"there is no step '{body['step']}'", hint)
            else:
                bodies[name] = (body, known[body["step"]])
        return bodies

    def draft(self, name: str, body: Mapping[str, Any], step: Step) -> _Draft:
        path: Keys = ("steps", name)
        values: dict[str, Any] = {}
        fields = step.params.model_fields
        for key, value in body.items():
            if key == "step" or key in step.inputs:
                continue
            if key not in fields:
                hint = did_you_mean(key, [*step.inputs, *fields])
                self.document.problem((*path, key), f"{step.name} has no input or parameter '{key}'", hint)
            elif isinstance(value, str) and REFERENCE.fullmatch(value):
                hint = f"inputs of {step.name}: {', '.join(step.inputs) or 'none'}"
                self.document.problem((*path, key), f"'{key}' is a parameter and takes no {value}", hint)
            else:
                values[key] = value
        try:
            params = step.params.model_validate(values, context={"folder": self.folder})
            canonical_json(params.model_dump(mode="json"))
        except ValidationError as error:
            for place, message, hint in explain(step, error):
                told_already = place and place[0] in body and place[0] not in values
                if not told_already:
                    self.document.problem((*path, *place), message, hint)
            return _Draft(path, step, None)
        except ValueError as error:
            self.document.problem(path, f"a parameter cannot be written down: {error}")
            return _Draft(path, step, None)
        return _Draft(path, step, params)

    def connect(self, name: str, body: Mapping[str, Any]) -> None:
        """Read the inputs of a step and check that each has the right kind."""
        draft = self.drafts[name]
        for port_name, port in draft.step.inputs.items():
            path = (*draft.path, port_name)
            if body.get(port_name) is None:
                if not port.optional:
                    self.document.problem(
                        path, f"the input '{port_name}' ({' or '.join(port.kinds)}) is missing", self.offer(name, port)
                    )
                continue
            value = body[port_name]
            items = value if isinstance(value, list) else [value]
            if isinstance(value, list) and not port.many:
                self.document.problem(path, f"the input '{port_name}' takes one artifact, not a list")
                continue
            if not items and not port.optional:
                self.document.problem(path, f"the input '{port_name}' needs at least one artifact")
            places = [(*path, position) if isinstance(value, list) else path for position in range(len(items))]
            sources = [self.source(name, port, place, item) for place, item in zip(places, items, strict=True)]
            draft.inputs[port_name] = tuple(source for source in sources if source is not None)

    def source(self, name: str, port: Input, path: Keys, value: Any) -> Source | None:
        if isinstance(value, str) and value.startswith(ARTIFACT):
            return self.stored_artifact(port, path, value.removeprefix(ARTIFACT).strip())
        match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            form = "an input is written ${step.output} or artifact:<digest>"
            self.document.problem(path, f"{value!r} names no artifact", self.offer(name, port) or form)
            return None
        step_name, output_name = match[1], match[2] or ""
        steps = self.document.data["steps"]
        if step_name not in steps:
            self.document.problem(path, f"the recipe has no step '{step_name}'", did_you_mean(step_name, steps))
            return None
        if step_name not in self.drafts:
            return None
        self.drafts[name].needs.append(step_name)
        outputs = self.drafts[step_name].step.outputs
        if output_name not in outputs:
            said = f"has no output '{output_name}'" if output_name else "is not an artifact: say which output"
            self.document.problem(path, f"the step '{step_name}' {said}", did_you_mean(output_name, outputs))
            return None
        made = self.drafts[step_name]
        if made.params is not None and not made.step.gives(output_name, made.params):
            given = [str(StepOutput(step_name, each)) for each in outputs if made.step.gives(each, made.params)]
            message = f"the step '{step_name}' gives no '{output_name}' with its parameters"
            self.document.problem(path, message, f"it gives {', '.join(given)}")
            return None
        return self.right_kind(port, path, outputs[output_name].kind, StepOutput(step_name, output_name))

    def stored_artifact(self, port: Input, path: Keys, ref: str) -> Source | None:
        if self.stored is None:
            self.document.problem(path, f"artifact {ref} cannot be looked up without a store")
            return None
        try:
            manifest = self.stored(ref)
        except LiuyiError as error:
            self.document.problem(path, error.message, error.hint)
            return None
        return self.right_kind(port, path, manifest.kind, StoredArtifact(manifest.digest))

    def right_kind(self, port: Input, path: Keys, kind: str, source: Source) -> Source | None:
        if kind in port.kinds:
            return source
        hint = self.offer(str(path[1]), port)
        self.document.problem(path, f"{source} is a {kind}, but a {' or '.join(port.kinds)} is needed", hint)
        return None

    def offer(self, name: str, port: Input) -> str:
        """A hint with what the recipe has of the kind a port needs."""
        fitting = [
            str(StepOutput(other, output))
            for other, draft in self.drafts.items()
            for output, made in draft.step.outputs.items()
            if other != name and made.kind in port.kinds
            if draft.params is None or draft.step.gives(output, draft.params)
        ]
        return f"the recipe makes {', '.join(fitting[:5])}" if fitting else ""

    def order(self) -> list[str]:
        """The names of the steps so that each stands after what it needs; a cycle is noted as a mistake."""
        placed: dict[str, None] = {}
        on_the_way: list[str] = []
        told: set[str] = set()

        def place(name: str) -> None:
            if name in placed:
                return
            if name in on_the_way:
                cycle = on_the_way[on_the_way.index(name) :]
                if not told.intersection(cycle):
                    told.update(cycle)
                    text = " → ".join([*cycle, name])
                    self.document.problem(("steps", name), f"the steps need each other in a circle: {text}")
                return
            on_the_way.append(name)
            for need in self.drafts[name].needs:
                place(need)
            on_the_way.pop()
            placed[name] = None

        for name in self.drafts:
            place(name)
        return list(placed)

    def finished(self, name: str, draft: _Draft) -> RecipeStep:
        if draft.params is None:
            raise AssertionError(f"step '{name}' has no parameters and no problem was noted")
        place = self.document.where(draft.path).split(": ")[0]
        return RecipeStep(name, draft.step, draft.params, draft.inputs, place)
