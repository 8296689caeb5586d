"""Adapters over HTTP: chosen by the model's name, loaded and dropped while the server works, kept over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from infer_support import MESSAGES, LiveServer, backend_over, client_of, client_over, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.process.open import open_engine
from liuyi.infer.request import Request
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank, projection_shapes
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for seed, name in enumerate(("calm", "wild")):
        generator = torch.Generator().manual_seed(seed)
        modules = {
            target: LowRank(torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator), 0.5)
            for target, (out, into) in projection_shapes(model.config).items()
            if target.rpartition(".")[2] in PROJECTIONS
        }
        made[name] = tmp_path_factory.mktemp("adapters") / name
        Adapter(modules).save(made[name])
    return made


@pytest.fixture(scope="module")
def adapted(model: Decoder, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    backend = backend_over(Engine(model, tokenizer, max_slots=4), digest="d" * 64)
    with live_server({"tiny": backend}, adapter_loading=True) as live:
        yield live


def said(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=12)
    return answer.choices[0].message.content or ""


def test_are_loaded_chosen_recorded_and_dropped(adapted: LiveServer, folders: dict[str, Path]) -> None:
    url = f"{adapted.url}/v1/adapters"
    with client_of(adapted) as client:
        plain = said(client, "tiny")
        with pytest.raises(openai.NotFoundError):
            said(client, "wild")
        for name, folder in folders.items():
            made = httpx.post(url, json={"name": name, "path": str(folder)})
            assert made.status_code == 200, made.text
            assert made.json()["adapter_digest"] == Adapter.load(folder).digest
            assert made.json()["parent"] == "tiny"
        assert {model.id for model in client.models.list()} == {"tiny", "calm", "wild"}
        with pytest.raises(openai.BadRequestError, match="without adapters"):
            client.embeddings.create(model="wild", input="turn on")
        wild = Adapter.load(folders["wild"]).digest
        for name, made_by in (("tiny", "d" * 12), ("wild", f"{'d' * 12}-{wild[:12]}")):
            answer = client.completions.create(model=name, prompt="turn on", max_tokens=1)
            assert answer.system_fingerprint == f"liuyi-{made_by}"
        texts = {said(client, name) for name in ("tiny", "calm", "wild")}
        assert len(texts) == 3
        assert plain in texts
        eventually(lambda: any(answer.detail.get("adapter_digest") == wild for answer in adapted.answers), "no record")
        assert httpx.delete(f"{url}/wild").json()["deleted"]
        with pytest.raises(openai.NotFoundError):
            said(client, "wild")
        assert [entry["id"] for entry in httpx.get(url).json()["data"]] == ["calm"]


def test_say_what_is_wrong(adapted: LiveServer, folders: dict[str, Path], tmp_path: Path) -> None:
    url = f"{adapted.url}/v1/adapters"
    (tmp_path / "adapter_config.json").write_text("{")
    for body in (
        {"name": "x", "path": "/nowhere"},
        {"name": "x", "path": str(tmp_path)},
        {"name": "tiny", "path": str(folders["calm"])},
        {"name": "", "path": str(folders["calm"])},
        {"name": "x"},
    ):
        response = httpx.post(url, json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]
    assert httpx.delete(f"{url}/tiny").status_code == 400
    assert httpx.delete(f"{url}/none").status_code == 404


def test_are_not_loaded_unless_that_is_allowed(live: LiveServer, folders: dict[str, Path]) -> None:
    body = {"name": "calm", "path": str(folders["calm"])}
    assert httpx.post(f"{live.url}/v1/adapters", json=body).status_code == 404


def test_come_back_with_the_engines_successor(model: Decoder, tokenizer: Tokenizer, folders: dict[str, Path]) -> None:
    def engine() -> Engine:
        made = Engine(model, tokenizer, max_slots=2)
        made.adapters.load("calm", Adapter.load(folders["calm"]))
        return made

    async def lose() -> None:
        client = client_over(engine)
        await client.start()
        await client.load_adapter("wild", str(folders["wild"]))
        await client.drop_adapter("calm")
        request = Request(prompt_ids=[30, 31], max_tokens=8, adapter="wild")
        before = await client.generate([request])
        client.kill()
        while client.restarts == 0 or client.state != "ready":
            await asyncio.sleep(0.01)
        assert await client.generate([request]) == before
        assert list(client.adapters) == ["wild"]
        await client.close()

    asyncio.run(lose())


def test_are_opened_with_the_engine_and_beside_speculation(
    model: Decoder, tokenizer: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    save_model(tmp_path, model, tokenizer)
    request = Request(prompt_ids=list(range(30, 40)) * 3, max_tokens=20, adapter="wild")
    plain = open_engine(EngineSpec(model=str(tmp_path), adapters={"wild": str(folders["wild"])}))
    expected = plain.generate([request])
    for speculate in ("lookup", str(tmp_path)):
        spec = EngineSpec(model=str(tmp_path), adapters={"wild": str(folders["wild"])}, speculate=speculate)
        engine = open_engine(spec)
        assert engine.generate([request]) == expected
        assert engine.stats.drafted_tokens > 0


def test_one_that_cannot_be_read_any_more_is_not_known_to_the_successor(
    model: Decoder, tokenizer: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    async def lose() -> None:
        client = client_over(lambda: Engine(model, tokenizer, max_slots=2))
        await client.start()
        lost = shutil.copytree(folders["calm"], tmp_path / "lost")
        await client.load_adapter("lost", str(lost))
        await client.load_adapter("wild", str(folders["wild"]))
        shutil.rmtree(lost)
        client.kill()
        while client.restarts == 0 or client.state != "ready":
            await asyncio.sleep(0.01)
        assert list(client.adapters) == ["wild"]
        assert await client.generate([Request(prompt_ids=[30, 31], max_tokens=3, adapter="wild")])
        with pytest.raises(RequestError, match="lost"):
            await client.generate([Request(prompt_ids=[30, 31], max_tokens=3, adapter="lost")])
        await client.close()

    asyncio.run(lose())
