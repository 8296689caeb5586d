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
