"""Parameters survive the way to the process of a step, which gets all of them, defaults too."""

from __future__ import annotations

import json

import pytest

from liuyi.core.step import Params, all_steps


@pytest.mark.parametrize("name", list(all_steps()))
def test_params_are_read_back_as_they_were_written(name: str) -> None:
    params = all_steps()[name].params
    required = [field for field, info in params.model_fields.items() if info.is_required()]
    if required:
        pytest.skip(f"needs {', '.join(required)}")
    try:
        given: Params = params()
    except ValueError as error:
        pytest.skip(f"has no default: {error}")
    assert params.model_validate(json.loads(given.model_dump_json())) == given


@pytest.mark.parametrize(
    "name", [name for name, step in all_steps().items() if step.params.__module__.startswith("liuyi.")]
)
def test_every_parameter_says_what_it_is(name: str) -> None:
    fields = all_steps()[name].params.model_fields
    assert [field for field, info in fields.items() if not info.description] == []
