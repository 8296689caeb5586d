"""Faults: whatever clients, models or the machine do, each is told clearly, and everything is back where it was."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from infer_support import LONG, MESSAGES, LiveServer, backend_over, eventually, live_server

from liuyi.core.errors import LiuyiError, ModelError
from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.process.client import EngineClient, Patience
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.process.open import open_engine
from liuyi.infer.process.spawn import spawn
from liuyi.infer.server.model_backend import ModelBackend
from liuyi.infer.server.run import make_server, serve
from liuyi.infer.server.sockets import bind
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.gguf_export import export_gguf
from liuyi.model.tokenizer import Tokenizer


def idle(live: LiveServer, engine: Engine) -> None:
    """Nothing runs, waits, or holds a block."""

    def holds() -> bool:
        load = live.backend.busy()
        return not (engine.has_work or engine.pool.used or load.waiting or load.queued_tokens or load.running)

    eventually(holds, f"something is left: {live.backend.busy()}", 240)
    assert live.backend.busy().alive


def head(live: LiveServer, body: dict[str, Any]) -> bytes:
    """A request as bytes, for clients that misbehave below HTTP."""
    content = json.dumps(body).encode()
    address = live.url.removeprefix("http://")
    lines = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


def connect(live: LiveServer) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.fixture(scope="module")
def roomy_engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, max_slots=16)


@pytest.fixture(scope="module")
def roomy(roomy_engine: Engine) -> Iterator[LiveServer]:
    with live_server({"tiny": backend_over(roomy_engine, max_queue_tokens=1 << 20)}) as server:
        yield server


@pytest.mark.slow
def test_two_hundred_clients_of_which_half_hang_up(roomy: LiveServer, roomy_engine: Engine) -> None:
    def ask(at: int) -> str:
        chance = random.Random(at)
        body = LONG | {"max_tokens": 12, "seed": at % 7, "stream": bool(at % 3), "n": 1 + at % 2}
        if at % 2:
            with connect(roomy) as hasty:
                request = head(roomy, body | {"max_tokens": 200})
                hasty.sendall(request[: chance.randint(1, len(request))] if at % 5 == 0 else request)
                time.sleep(chance.random() * 0.3)
            return ""
        response = httpx.post(f"{roomy.url}/v1/chat/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return response.text

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert sum(bool(answer) for answer in answers) == 100
    assert all(answer.endswith("[DONE]\n\n") for at, answer in enumerate(answers) if answer and at % 3)
    idle(roomy, roomy_engine)


@pytest.mark.slow
def test_slow_readers_cost_nobody_else_and_are_let_go(live: LiveServer, live_engine: Engine) -> None:
    readers = []
    for _ in range(12):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = live.url.removeprefix("http://").split(":")
        reader.connect((host, int(port)))
        reader.sendall(head(live, LONG | {"stream": True, "n": 2, "logprobs": True, "top_logprobs": 20}))
        readers.append(reader)
    response = httpx.post(f"{live.url}/v1/chat/completions", json=LONG | {"max_tokens": 5}, timeout=240)
    assert response.status_code == 200
    idle(live, live_engine)
    for reader in readers:
        reader.close()
    with httpx.Client() as http:
        eventually(lambda: "liuyi_http_requests_inside 0" in http.get(f"{live.url}/metrics").text, "a reader is inside")


@pytest.mark.slow
def test_the_memory_for_keys_and_values_runs_out_and_all_are_answered(model: Decoder, tokenizer: Tokenizer) -> None:
    runner = open_runner(model, weights="reference", kv_tokens=8 * 32)
    engine = Engine(runner, tokenizer, max_slots=8)
    with live_server({"tiny": backend_over(engine, max_queue_tokens=100_000)}) as live:

        def ask(at: int) -> Any:
            body = {"model": "tiny", "prompt": [30 + at] * 40, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
            return httpx.post(f"{live.url}/v1/completions", json=body, timeout=120).json()

        alone = [ask(at) for at in range(8)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert [one["choices"] for one in together] == [one["choices"] for one in alone]
        assert engine.stats.preemptions > 0
        idle(live, engine)


def test_a_prompt_longer_than_the_context_says_so(live: LiveServer, live_engine: Engine) -> None:
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "x y " * 300}]}),
        ("completions", {"prompt": [30] * 256}),
        ("completions", {"prompt": ["short", "x y " * 300]}),
        ("embeddings", {"input": [30] * 256}),
    ):
        response = httpx.post(f"{live.url}/v1/{path}", json={"model": "tiny", **body})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded"), path
        assert "256" in response.json()["error"]["message"] or "255" in response.json()["error"]["message"]
    idle(live, live_engine)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999999) %}{{ a }}{% endfor %}", "Range too big"),
        ("{{ 'x' * 999999999 }}", "must not"),
        ("{{ messages.__class__.__mro__ }}", "must not"),
        (f"{'{% for a in range(9999) %}' * 3}{'{% endfor %}' * 3}", "must not"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "must not"),
        ("{% if %}", "not valid"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages[7].content }}", "no element"),
    ],
)
def test_a_hostile_chat_template_is_refused_and_text_still_answered(
    model: Decoder, tokenizer: Tokenizer, template: str, said: str
) -> None:
    hostile = Tokenizer(tokenizer.backend, {**tokenizer.settings, "chat_template": template})
    engine = Engine(model, hostile, max_slots=2)
    with live_server({"tiny": backend_over(engine)}) as live:
        began = time.monotonic()
        response = httpx.post(f"{live.url}/v1/chat/completions", json=LONG, timeout=30)
        assert response.status_code == 400, response.text
        assert said in response.json()["error"]["message"]
        assert time.monotonic() - began < 20
        body = {"model": "tiny", "prompt": "turn on", "max_tokens": 2}
        assert httpx.post(f"{live.url}/v1/completions", json=body).status_code == 200
        idle(live, engine)


@pytest.fixture(scope="module")
def folder(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def gguf(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    export_gguf(model, tokenizer, path)
    return path


class TestCorruptModels:
    """Cut short, or with bytes of the header changed: a ModelError that names the file, or a model; nothing else."""

    @pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.99])
    def test_files_cut_short(self, folder: Path, gguf: Path, tmp_path: Path, kept: float) -> None:
        copy = shutil.copytree(folder, tmp_path / "cut")
        for path in (copy / "model.safetensors", Path(shutil.copy(gguf, tmp_path / "cut.gguf"))):
            size = int(kept if kept >= 1 else kept * path.stat().st_size)
            os.truncate(path, size)
            with pytest.raises(ModelError) as caught:
                open_engine(EngineSpec(model=str(path if path.suffix == ".gguf" else copy)))
            assert path.stem in str(caught.value)

    def test_bytes_changed_in_the_header(self, folder: Path, gguf: Path, tmp_path: Path) -> None:
        chance = random.Random(5)
        copy = shutil.copytree(folder, tmp_path / "changed")
        for source, changed in (
            (folder / "model.safetensors", copy / "model.safetensors"),
            (gguf, tmp_path / "c.gguf"),
        ):
            good = source.read_bytes()
            refused = 0
            for _ in range(60):
                bad = bytearray(good)
                for _ in range(chance.randint(1, 4)):
                    bad[chance.randrange(min(2000, len(bad)))] = chance.randrange(256)
                changed.write_bytes(bad)
                try:
                    open_engine(EngineSpec(model=str(changed if changed.suffix == ".gguf" else copy), kv_tokens=64))
                except LiuyiError:
                    refused += 1
            assert refused > 10


@pytest.mark.slow
def test_a_killed_engine_costs_its_requests_a_clean_error_and_the_server_stays(folder: Path) -> None:
    spec = EngineSpec(model=str(folder), max_slots=4)
    client = EngineClient(partial(spawn, spec), patience=Patience(backoff_s=0.1))
    backend = ModelBackend(client, Tokenizer.load(folder), max_queue_tokens=1 << 20)
    with live_server({"tiny": backend}) as live, httpx.Client(timeout=240) as http:
        url = f"{live.url}/v1/chat/completions"
        body = LONG | {"max_tokens": 4, "seed": 1}
        before = http.post(url, json=body).json()["choices"]
        results: list[httpx.Response] = []

        def ask() -> None:
            results.append(http.post(url, json=LONG | {"n": 16, "logprobs": True, "top_logprobs": 20}))

        waiting = [threading.Thread(target=ask) for _ in range(10)]
        for thread in waiting:
            thread.start()
        eventually(lambda: live.backend.busy().running == 4 and live.backend.busy().waiting > 4, "they do not wait")
        process = psutil.Process(client.facts.pid)
        os.kill(client.facts.pid, signal.SIGKILL)
        for thread in waiting:
            thread.join(120)
        assert [response.status_code for response in results] == [503] * 10
        assert all(int(response.headers["retry-after"]) >= 1 for response in results)
        said = [response.json()["error"]["message"] for response in results]
        assert any("SIGKILL" in message for message in said)
        # One that came only now is told that the engine starts again.
        assert all("SIGKILL" in message or "being started" in message for message in said), said
        health = http.get(f"{live.url}/health")
        if health.status_code == 503:  # still on its way
            assert health.json() == {"status": "error", "stopped": {"tiny": "restarting"}}
            refused = http.post(url, json=body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
        eventually(lambda: http.get(f"{live.url}/health").status_code == 200, "not replaced", 240)
        assert http.post(url, json=body).json()["choices"] == before
        assert 'liuyi_engine_restarts_total{model="tiny"} 1' in http.get(f"{live.url}/metrics").text
        load = live.backend.busy()
        assert load.queued_tokens == load.waiting == 0
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not psutil.pid_exists(client.facts.pid) or psutil.Process(client.facts.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_memory_is_back_where_it_was_after_many_requests(folder: Path) -> None:
    spec = EngineSpec(model=str(folder), max_slots=4)
    backend = ModelBackend(EngineClient(partial(spawn, spec)), Tokenizer.load(folder))
    with live_server({"tiny": backend}) as live, httpx.Client(timeout=60) as http:
        engine, server = psutil.Process(backend.engine.facts.pid), psutil.Process()
        url, body = f"{live.url}/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "n": 4, "logprobs": True}

        def work(rounds: int) -> tuple[int, int, int]:
            """Bytes of the engine, and files of both, once so many were answered and as many hung up on."""
            for at in range(rounds):
                assert http.post(url, json=body | {"max_tokens": 8, "seed": at}).status_code == 200
                with http.stream("POST", url, json=body | {"max_tokens": 200, "seed": at, "stream": True}) as left:
                    next(left.iter_lines())
            inside = "liuyi_http_requests_inside 0\n"
            eventually(lambda: inside in http.get(f"{live.url}/metrics").text, "somebody is inside")
            return engine.memory_info().rss, engine.num_fds(), server.num_fds()

        before, after = work(10), work(40)
        assert after[0] - before[0] < 4 << 20
        assert after[1:] == before[1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_while_its_model_loads_just_stops(number: signal.Signals) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            told.append("put away")

    with bind("127.0.0.1", 0) as bound:
        serve(make_server(app, listening=lambda: told.append("listening")), bound)
    assert told == ["put away"]
