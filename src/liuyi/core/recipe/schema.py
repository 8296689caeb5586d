"""JSON Schema of recipes, for the completion and checking that editors offer.

Draft 7, which the YAML language servers of editors know best: a step's fields follow from its `step` by if/then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from liuyi.core.recipe.check import MAX_SEED, STEP_NAME
from liuyi.core.step import Input, Step, all_steps

DRAFT = "http://json-schema.org/draft-07/schema#"
INPUT_PATTERN = r"^(\$\{\s*[a-z][a-z0-9_-]*\s*\.\s*[a-z][a-z0-9_]*\s*\}|artifact:\s*[0-9a-f]{6,64})$"


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe that uses the steps registered on this machine."""
    steps = all_steps()
    rules = [
        {"if": {"properties": {"step": {"const": name}}, "required": ["step"]}, "then": {"$ref": _ref(name)}}
        for name in steps
    ]
    return {
        "$schema": DRAFT,
        "title": "Liuyi recipe",
        "type": "object",
        "required": ["recipe", "steps"],
        "additionalProperties": False,
        "properties": {
            "recipe": {"type": "string", "minLength": 1, "description": "The recipe's name."},
            "description": {"type": "string", "description": "What it does, for people."},
            "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
            "steps": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{STEP_NAME.pattern}$"},
                "additionalProperties": {
                    "type": "object",
                    "required": ["step"],
                    "properties": {"step": {"enum": list(steps), "description": "Which registered step to run."}},
                    "allOf": rules,
                },
            },
        },
        "definitions": _definitions(steps),
    }


def step_schema(step: Step) -> dict[str, Any]:
    """The schema of one step's fields in a recipe."""
    return {"$schema": DRAFT, "$ref": _ref(step.name), "definitions": _definitions({step.name: step})}


def _ref(name: str) -> str:
    return f"#/definitions/step:{name}"


def _definitions(steps: Mapping[str, Step]) -> dict[str, Any]:
    """One definition a step, and those of the models that their parameters name."""
    models = {step.params for step in steps.values()}
    keys = {model: (model, "validation") for model in models}
    made, top = models_json_schema(list(keys.values()), ref_template="#/definitions/{model}")  # type: ignore[arg-type]
    definitions = dict(top.get("$defs", {}))
    found = {name: _step(step, _resolve(made[keys[step.params]], definitions)) for name, step in steps.items()}  # type: ignore[index]
    own = {made[key]["$ref"].rpartition("/")[2] for key in keys.values() if "$ref" in made[key]}  # type: ignore[index]
    shared = {name: schema for name, schema in definitions.items() if name not in own}
    return {f"step:{name}": schema for name, schema in found.items()} | shared


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    return definitions[reference.rpartition("/")[2]] if reference else schema


def _step(step: Step, params: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {name: _input(port) for name, port in step.inputs.items()}
    needed = [name for name, port in step.inputs.items() if not port.optional]
    return {
        "title": step.name,
        "description": step.doc,
        "type": "object",
        "additionalProperties": False,
        "required": ["step", *needed, *params.get("required", [])],
        "properties": {"step": {"const": step.name}, **inputs, **params.get("properties", {})},
    }


def _input(port: Input) -> dict[str, Any]:
    kinds = " or ".join(port.kinds)
    one: dict[str, Any] = {"type": "string", "pattern": INPUT_PATTERN}
    text = f"{port.doc} ({kinds})" if port.doc else f"A {kinds}."
    if not port.many:
        return {**one, "description": text}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": int(not port.optional)}], "description": text}
