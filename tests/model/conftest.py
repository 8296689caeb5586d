"""Fixtures of the model room."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import MODELS, hf_model, our_model

from liuyi.model.decoder import Decoder


@pytest.fixture(params=list(MODELS))
def pair(request: pytest.FixtureRequest) -> tuple[Decoder, Any]:
    """Our decoder and the model of `transformers` with the same weights."""
    theirs = hf_model(request.param)
    return our_model(theirs), theirs
