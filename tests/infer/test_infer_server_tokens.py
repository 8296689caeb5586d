"""Tokens and embeddings over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from infer_support import MESSAGES, LiveServer, backend_over, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


def unit(model: Decoder, ids: list[int]) -> Any:
    """The normalised mean of the final hidden states, by one forward pass in training's way."""
    with torch.inference_mode():
        mean = model(torch.tensor([ids]))[0].mean(dim=0).numpy()
    return mean / np.linalg.norm(mean)


class TestEmbeddings:
    @pytest.mark.parametrize("form", ["float", "base64"])
    def test_are_unit_vectors_of_the_mean_hidden_state(
        self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer, form: Any
    ) -> None:
        texts = ["turn on the kitchen lights", "打开厨房的灯", "a"]
        answer = client.embeddings.create(model="tiny", input=texts, encoding_format=form)
        if form == "base64":  # the client decodes only what it asked for itself
            answer = client.embeddings.create(model="tiny", input=texts)
        ids = [tokenizer.encode(text) for text in texts]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
        for one, right in zip(answer.data, ids, strict=True):
            np.testing.assert_allclose(one.embedding, unit(model, right), atol=1e-5)
        given = client.embeddings.create(model="tiny", input=ids)
        for one, two in zip(answer.data, given.data, strict=True):
            np.testing.assert_array_equal(one.embedding, two.embedding)

    def test_there_may_be_more_texts_than_requests_in_the_queue(self, client: openai.OpenAI) -> None:
        texts = [str(number) for number in range(300)]
        answer = client.embeddings.create(model="tiny", input=texts)
        last = client.embeddings.create(model="tiny", input=texts[-1])
        assert [one.index for one in answer.data] == list(range(300))
        np.testing.assert_array_equal(answer.data[-1].embedding, last.data[0].embedding)

    def test_are_counted(self, model: Decoder, tokenizer: Tokenizer) -> None:
        with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=2))}) as live:
            for dimensions in (32, 5):
                body = {"model": "tiny", "input": "turn on", "dimensions": dimensions}
                answer = httpx.post(f"{live.url}/v1/embeddings", json=body)
                assert answer.status_code == (200 if dimensions == 32 else 400)
            figures = httpx.get(f"{live.url}/metrics").text.splitlines()
        tokens = len(tokenizer.encode("turn on"))
        assert 'liuyi_requests_total{model="tiny",status="200"} 1' in figures
        assert 'liuyi_requests_total{model="tiny",status="400"} 1' in figures
        assert f'liuyi_prompt_tokens_total{{model="tiny"}} {tokens}' in figures

    def test_say_what_is_wrong(self, live: LiveServer, live_engine: Engine) -> None:
        for change, param in (
            ({"input": ""}, "input"),
            ({"input": [[99_999]]}, "prompt"),
            ({"input": "x y " * 300}, "input"),
            ({"input": ["a"] * 2049}, "input"),
            ({"dimensions": 5}, "dimensions"),
            ({"model": "none"}, "model"),
        ):
            response = httpx.post(f"{live.url}/v1/embeddings", json={"model": "tiny", "input": "a"} | change)
            assert response.status_code in (400, 404), response.text
            assert response.json()["error"]["param"] == param
        eventually(lambda: live_engine.pool.used == 0 and live.backend.busy().queued_tokens == 0, "something is held")


class TestTokenize:
    def post(self, live: LiveServer, path: str, **body: Any) -> Any:
        response = httpx.post(f"{live.url}/{path}", json={"model": "tiny", **body})
        assert response.status_code == 200, response.text
        return response.json()

    def test_texts_there_and_back(self, live: LiveServer, tokenizer: Tokenizer) -> None:
        text = "turn on 厨房 lights"
        answer = self.post(live, "tokenize", prompt=text, return_token_strs=True)
        assert answer["tokens"] == tokenizer.encode(text)
        assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
        assert answer["max_model_len"] == 256
        assert self.post(live, "detokenize", tokens=answer["tokens"]) == {"prompt": text}
        assert httpx.post(f"{live.url}/detokenize", json={"model": "tiny", "tokens": [99_999]}).status_code == 400

    def test_conversations_as_the_model_is_shown_them(self, live: LiveServer, tokenizer: Tokenizer) -> None:
        for begins in (True, False):
            ids, _ = encode_chat(tokenizer, MESSAGES, add_generation_prompt=begins)
            assert self.post(live, "tokenize", messages=MESSAGES, add_generation_prompt=begins)["tokens"] == ids

    def test_what_is_far_longer_than_the_context_is_refused_unread(self, live: LiveServer) -> None:
        for body in ({"prompt": "x" * 1_000_000}, {"messages": [{"role": "user", "content": "x"}] * 256}):
            refused = httpx.post(f"{live.url}/tokenize", json={"model": "tiny", **body})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"

    def test_a_conversation_that_takes_too_long_to_render_is_refused(
        self, live: LiveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("liuyi.infer.server.model_backend.TEMPLATE_S", 0.0)
        refused = httpx.post(f"{live.url}/tokenize", json={"model": "tiny", "messages": MESSAGES})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
        assert "too long" in refused.json()["error"]["message"]
