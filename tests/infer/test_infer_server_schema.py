"""Requests made from the server's own OpenAPI document, right and wrong ones: no answer is a failure of the server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from infer_support import LiveServer
from schemathesis import GenerationMode

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def document(live: LiveServer) -> Any:
    return httpx.get(f"{live.url}/openapi.json").json()


def test_the_document_names_every_route(document: dict[str, Any]) -> None:
    assert set(document["paths"]) >= {*ROUTES, "/v1/models", "/health", "/metrics"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("route", ROUTES)
def test_no_request_is_a_failure(live: LiveServer, document: dict[str, Any], route: str, mode: GenerationMode) -> None:
    operation = schemathesis.openapi.from_dict(document)[route]["POST"]

    @settings(max_examples=20, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        body = case.body
        if isinstance(body, dict):
            # A model that there is not would hide all other faults, and long answers only take time.
            body = {**body, "model": "tiny"} | ({"max_tokens": 2} if "max_tokens" in fields_of(document, route) else {})
        response = http.post(route, content=json.dumps(body, default=str), headers={"content-type": "application/json"})
        # Some ask for an answer within next to no time.
        late = (504,) if isinstance(body, dict) and "timeout" in body else ()
        assert response.status_code in (200, 400, *late), (response.status_code, response.text)
        if response.status_code == 400:
            assert response.json()["error"]["message"]

    with httpx.Client(base_url=live.url, timeout=60) as http:
        ask()


def fields_of(document: dict[str, Any], route: str) -> dict[str, Any]:
    """The fields that a route's body may have."""
    reference = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return dict(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])
