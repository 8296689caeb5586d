"""What pydantic found wrong with parameters, said for people."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from liuyi.core.errors import did_you_mean
from liuyi.core.step import Step


def explain(step: Step, error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """For each mistake: its place among the parameters, what is wrong, and what would be right."""
    for each in error.errors(include_url=False):
        place = tuple(key for key in each["loc"] if isinstance(key, int) or key.isidentifier())
        name, kind = str(place[-1]) if place else "", each["type"]
        if kind == "missing":
            yield place, f"the parameter '{name}' is missing", _description(step, name) if len(place) == 1 else ""
        elif kind == "extra_forbidden":
            siblings = _siblings(step.params, place)
            yield place, f"there is no field '{name}' here", did_you_mean(name, siblings) if siblings else ""
        elif kind in ("value_error", "assertion_error"):
            text = each["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            yield place, text, ""
        else:
            text = each["msg"].removeprefix("Input ").split(", unable to")[0]
            text = text[0].lower() + text[1:]
            hint = _description(step, name) if len(place) == 1 else ""
            yield place, f"'{name}' {text}, got {_shown(each['input'])}", hint


def _description(step: Step, name: str) -> str:
    field = step.params.model_fields.get(name)
    return f"{name}: {field.description}" if field and field.description else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _siblings(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """The fields that may stand where the last key of `place` stands; none where the type is not one model."""
    for key in place[:-1]:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key)
        nested = [] if field is None else [found for found in _models(field.annotation)]
        if len(nested) != 1:
            return []
        model = nested[0]
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models named anywhere in a type: in `list[Source] | None` it is `Source`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
