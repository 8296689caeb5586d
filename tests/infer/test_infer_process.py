"""The engine behind its socket: answers, cancellation, failure, and a process that is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from infer_support import SlowSteps, client_over

from liuyi.core.digest import sha256_tree
from liuyi.core.errors import ModelError, OutOfMemory
from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError, RequestError, Unavailable
from liuyi.infer.process.__main__ import main as process_main
from liuyi.infer.process.channel import Channel
from liuyi.infer.process.client import EngineClient, Patience
from liuyi.infer.process.messages import HEADER_BYTES, EngineSpec, Taken, Unusable, frame, read_from_engine
from liuyi.infer.process.spawn import EngineProcess, spawn
from liuyi.infer.request import Grammar, Request
from liuyi.infer.server.model_backend import ModelBackend
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from waiting import wait_for


@asynccontextmanager
async def running(engine: Engine, **options: Any) -> AsyncIterator[EngineClient]:
    working = client_over(engine, **options)
    await working.start()
    try:
        yield working
    finally:
        await working.close()


def test_a_model_outside_the_store_is_known_by_its_content(
    model: Decoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "copy", "other"):
        save_model(tmp_path / name, model, tokenizer)
        if name == "other":
            (tmp_path / name / "generation_config.json").write_text("{}")
        backend = ModelBackend.load(EngineSpec(model=str(tmp_path / name)))
        backend.engine.abandon()
        digests.append(backend.digest)
    assert digests[0] == digests[1] == sha256_tree(tmp_path / "one")
    assert digests[2] != digests[0]


def test_a_slow_reader_is_not_waited_for_and_reads_all_in_order() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    sent = [Taken(number, "x" * (number % 7) * 10_000) for number in range(200)]
    for message in sent:
        channel.send(message)
    closing = threading.Thread(target=channel.close)
    closing.start()
    with ours, ours.makefile("rb") as stream:
        read = [read_from_engine(stream.read(int.from_bytes(stream.read(HEADER_BYTES), "big"))) for _ in sent]
        assert read == sent
        assert stream.read() == b""
    closing.join()


def test_what_is_sent_to_nobody_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    channel = Channel(theirs)
    for number in range(3):
        channel.send(Taken(number))
    channel.close()


def long_request(at: int = 0) -> Request:
    return Request(prompt_ids=[30 + at], max_tokens=200, ignore_eos=True)


async def until(holds: Callable[[], bool], patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        await asyncio.sleep(0.01)


def test_answers_are_those_of_the_engine_alone(model: Decoder, tokenizer: Tokenizer) -> None:
    requests = [Request(prompt_ids=[30 + at], max_tokens=20, temperature=1.0, seed=at) for at in range(12)]
    expected = Engine(model, tokenizer).generate(requests)

    async def together() -> None:
        async with running(Engine(model, tokenizer, max_slots=3)) as engine:
            one_by_one = await asyncio.gather(*(engine.generate([request]) for request in requests))
            assert [answer for (answer,) in one_by_one] == expected
            assert await engine.generate(requests) == expected
            await until(lambda: engine.pulse.engine.waiting == engine.pulse.engine.running == 0)

    asyncio.run(together())


def test_every_field_of_requests_and_answers_crosses(engine: Engine) -> None:
    request = Request(
        prompt_ids=[30, 31], max_tokens=9, min_tokens=4, temperature=0.7, top_k=50, top_p=0.9, min_p=0.01,
        typical_p=0.95, repetition_penalty=1.1,
        presence_penalty=0.1, frequency_penalty=0.1, logit_bias={40: 1.5}, seed=2**63, stop=("zzz", "。"),
        stop_token_ids=(5,), ignore_eos=True, grammar=Grammar("regex", "[a-z厨]+"), logprobs=True, top_logprobs=3,
    )  # fmt: skip
    (expected,) = engine.generate([request])

    async def ask() -> None:
        async with running(engine) as working:
            assert await working.generate([request]) == [expected]

    asyncio.run(ask())


def test_a_request_that_cannot_be_answered_is_refused_with_all_that_came_with_it(engine: Engine) -> None:
    async def refuse() -> None:
        async with running(engine) as working:
            for wrong in (
                Request(prompt_ids=[99_999]),
                Request(prompt_ids=[30] * 300),
                Request(prompt_ids=[30], grammar=Grammar("regex", "(")),
            ):
                with pytest.raises(RequestError) as caught:
                    await working.submit([long_request(), wrong])
                assert caught.value.param
            await until(lambda: working.pulse.engine.running == 0)
            assert not engine.has_work

    asyncio.run(refuse())


def test_closing_a_stream_frees_what_it_holds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave() -> None:
        steps = SlowSteps(engine, monkeypatch)
        async with running(engine) as working:
            stream = await working.submit([long_request(at) for at in range(12)])
            await stream.__anext__()
            await stream.aclose()
            await stream.aclose()
            await until(lambda: not engine.has_work)
            assert steps.count < 100  # answering all would have taken 400
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()

            task = asyncio.ensure_future(working.generate([long_request()]))
            await until(lambda: engine.running == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not engine.has_work)

    asyncio.run(leave())


def test_leaving_while_the_grammar_is_compiled_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    check, begun, go_on, ended = engine.check, threading.Event(), threading.Event(), threading.Event()

    def slow(request: Request) -> Any:
        begun.set()
        assert go_on.wait(60)
        checked = check(request)
        ended.set()
        return checked

    monkeypatch.setattr(engine, "check", slow)

    async def leave() -> None:
        steps = SlowSteps(engine, monkeypatch)
        async with running(engine) as working:
            request = Request(prompt_ids=[30], max_tokens=200, grammar=Grammar("regex", "a+"))
            task = asyncio.ensure_future(working.submit([request]))
            await until(begun.is_set)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            go_on.set()
            await until(ended.is_set)
            assert await working.generate([Request(prompt_ids=[30], max_tokens=10)])
            await until(lambda: not engine.has_work)
            assert steps.count < 100  # answering would have taken 200

    asyncio.run(leave())


def test_a_reader_that_is_stuck_holds_up_nobody(engine: Engine) -> None:
    async def stuck() -> None:
        async with running(engine) as working:
            never_read = await working.submit([long_request()])
            answers = await working.generate([long_request(1)])
            assert len(answers[0].token_ids) == 200
            assert len([update async for update in never_read]) == 200

    asyncio.run(stuck())


def test_a_stuck_event_loop_does_not_hold_up_decoding(engine: Engine) -> None:
    async def stuck() -> None:
        async with running(engine) as working:
            stream = await working.submit([long_request(at) for at in range(8)])
            began = time.monotonic()
            while engine.has_work:
                assert time.monotonic() - began < 120, "decoding waits for the event loop"
                time.sleep(0.01)  # nothing else runs in this loop meanwhile
            assert len([update async for update in stream]) == 8 * 200

    asyncio.run(stuck())


def test_closing_the_engine_ends_what_is_in_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def close() -> None:
        working = client_over(engine)
        with pytest.raises(EngineError):
            await working.submit([long_request()])
        await working.start()
        steps = SlowSteps(engine, monkeypatch)
        stream = await working.submit([long_request()])
        await stream.__anext__()
        await working.close()
        assert steps.count < 100  # the answer would have taken 200
        with pytest.raises(EngineError):
            async for _ in stream:
                pass
        assert not engine.has_work
        with pytest.raises(EngineError):
            await working.submit([long_request()])

    asyncio.run(close())


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with running(engine) as working:
            step = engine.step

            def broken() -> Any:
                monkeypatch.setattr(engine, "step", step)
                raise MemoryError("no memory for this")

            monkeypatch.setattr(engine, "step", broken)
            with pytest.raises(OutOfMemory, match="no memory"):
                await working.generate([long_request()])
            assert len(await working.generate([Request(prompt_ids=[30], max_tokens=3)])) == 1
            assert working.restarts == 0

    asyncio.run(fail())


def test_embeddings_are_the_mean_of_the_final_hidden_states(model: Decoder, tokenizer: Tokenizer) -> None:
    texts = [[30], list(range(20, 220)), [40, 41, 42]]
    with torch.inference_mode():
        expected = [model(torch.tensor([text]))[0].mean(dim=0).numpy() for text in texts]
    engine = Engine(model, tokenizer, max_slots=2)

    async def embed() -> None:
        async with running(engine) as working:
            beside = asyncio.ensure_future(working.generate([long_request()]))
            vectors = await working.embed(texts)
            for vector, right in zip(vectors, expected, strict=True):
                np.testing.assert_allclose(vector, right, rtol=1e-4, atol=1e-5)
            await beside
            for wrong in ([], [99_999], [30] * 300):
                with pytest.raises(RequestError):
                    await working.embed([[30], wrong])
            task = asyncio.ensure_future(working.embed([[30] * 200] * 50))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert len(await working.embed([[30]])) == 1
            await until(lambda: engine.pool.used == 0)

    asyncio.run(embed())


@pytest.fixture(scope="module")
def folder(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(path, model, tokenizer)
    return path


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    async def start() -> None:
        with pytest.raises(ModelError, match=r"config\.json"):
            await EngineClient(partial(spawn, EngineSpec(model=str(tmp_path)))).start()

    asyncio.run(start())


def test_a_process_that_does_not_open_its_model_in_time_is_ended() -> None:
    ours, theirs = socket.socketpair()
    silent = subprocess.Popen(["sleep", "60"])

    async def start() -> None:
        client = EngineClient(lambda: EngineProcess(silent, ours), patience=Patience(open_s=0.1))
        with pytest.raises(EngineError, match=r"had not opened its model after 0\.1 s"):
            await client.start()

    with theirs:
        asyncio.run(start())
    assert silent.poll() == -signal.SIGKILL


def test_a_process_whose_opening_is_given_up_is_ended() -> None:
    ours, theirs = socket.socketpair()
    silent = subprocess.Popen(["sleep", "60"])

    async def give_up() -> None:
        starting = asyncio.create_task(EngineClient(lambda: EngineProcess(silent, ours)).start())
        await asyncio.sleep(0.05)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    with theirs:
        asyncio.run(give_up())
    assert silent.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_process_whose_owner_is_gone_ends_while_it_opens_its_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # It can be opened, and never ends.
    writers = []

    def is_read() -> bool:
        with suppress(OSError):
            writers.append(os.open(tmp_path / "config.json", os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    process = spawn(EngineSpec(model=str(tmp_path)))
    try:
        wait_for(is_read)
        process.sock.close()
        assert process.process.wait(60) == 0
    finally:
        process.kill()
        os.close(writers[0])


def test_what_nobody_foresaw_while_a_model_is_opened_is_logged_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(spec: EngineSpec) -> Engine:
        raise ValueError("odd")

    ours, theirs = socket.socketpair()
    monkeypatch.setattr("liuyi.infer.process.open.open_engine", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["process", str(theirs.detach())])
    with ours:
        ours.sendall(frame(EngineSpec(model="none")))
        process_main()
        header = ours.recv(HEADER_BYTES)
        told = read_from_engine(ours.recv(int.from_bytes(header, "big")))
    assert isinstance(told, Unusable)
    assert "ValueError: odd" in str(told.error)
    assert "Traceback" in caplog.text


def test_an_engine_that_the_system_starts_no_more_has_failed(model: Decoder, tokenizer: Tokenizer) -> None:
    first = iter([client_over(Engine(model, tokenizer, max_slots=1))._new_peer()])

    def launch() -> Any:
        peer = next(first, None)
        if peer is None:
            raise OSError("no process can be started")
        return peer

    async def lose() -> None:
        client = EngineClient(launch, patience=Patience(restarts=2, backoff_s=0.01))
        await client.start()
        client._peer.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: client.state == "failed")
        with pytest.raises(EngineError, match="does not run"):
            await client.submit([Request(prompt_ids=[30])])
        await client.close()

    asyncio.run(lose())


@pytest.mark.slow
class TestProcess:
    def test_a_killed_process_is_replaced_and_its_requests_are_told(self, folder: Path) -> None:
        async def kill() -> None:
            patience = Patience(restarts=2, backoff_s=0.1, silence_s=3)
            client = EngineClient(partial(spawn, EngineSpec(model=str(folder))), patience=patience)
            await client.start()
            request = Request(prompt_ids=[30], max_tokens=20, seed=1, temperature=1.0)
            before = await client.generate([request])
            # Killed, then frozen, then once too often.
            for at, number in enumerate((signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL)):
                stream = await client.submit([long_request(at) for at in range(100)])
                await stream.__anext__()
                os.kill(client.facts.pid, number)
                with pytest.raises(EngineError, match="SIGKILL"):
                    async for _ in stream:
                        pass
                if at == 2:
                    break
                with pytest.raises(Unavailable):
                    await client.submit([request])
                await until(lambda: client.state == "ready")
                assert await client.generate([request]) == before
            await until(lambda: client.state == "failed")
            assert client.restarts == 2
            with pytest.raises(EngineError, match="does not run"):
                await client.submit([request])
            await client.close()

        asyncio.run(kill())

    def test_it_ends_with_its_owner_whatever_becomes_of_him(self, folder: Path) -> None:
        code = (
            "import asyncio, os, sys\n"
            "from functools import partial\n"
            "from liuyi.infer.process.client import EngineClient\n"
            "from liuyi.infer.process.messages import EngineSpec\n"
            "from liuyi.infer.process.spawn import EngineProcess, spawn\n"
            "async def main():\n"
            "    client = EngineClient(partial(spawn, EngineSpec(model=sys.argv[1])))\n"
            "    await client.start()\n"
            "    print(client.facts.pid, flush=True)\n"
            "    await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        owner = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        assert owner.stdout is not None
        engine = psutil.Process(int(owner.stdout.readline()))
        assert engine.is_running()
        owner.kill()
        owner.wait()
        psutil.wait_procs([engine], timeout=60)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
