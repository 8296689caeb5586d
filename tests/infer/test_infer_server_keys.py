"""Who may call: API keys."""

from __future__ import annotations

import httpx
import openai
import pytest
from infer_support import backend_over, client_of, live_server

from liuyi.infer.engine import Engine
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


class TestKeys:
    def test_are_asked_for_and_not_told(
        self, model: Decoder, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = ["sk-first-secret", "sk-second-secret"]
        with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=1))}, keys=keys) as live:
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {keys[0]}"}):
                response = httpx.get(f"{live.url}/v1/models", headers=header)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            for key in keys:
                assert httpx.get(f"{live.url}/metrics", headers={"authorization": f"Bearer {key}"}).status_code == 200
            assert httpx.get(f"{live.url}/health").json()["status"] == "ok"
            with client_of(live) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
        assert not any(key in caplog.text for key in keys)
