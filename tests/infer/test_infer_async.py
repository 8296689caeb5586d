"""The engine in its thread: admission, cancellation, failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from infer_support import StepCounter

from liuyi.infer.async_engine import AsyncEngine, Stream
from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError, Overloaded, RequestError
from liuyi.infer.request import Request
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@asynccontextmanager
async def running(engine: Engine, **options: Any) -> AsyncIterator[AsyncEngine]:
    working = AsyncEngine(engine, **options)
    working.start()
    try:
        yield working
    finally:
        await working.close()


def long_request(at: int = 0) -> Request:
    return Request(prompt_ids=[30 + at], max_tokens=200, ignore_eos=True)


async def submit(engine: AsyncEngine, *requests: Request) -> Stream:
    return await engine.submit(lambda: requests, len(requests))


async def until_idle(engine: AsyncEngine) -> None:
    for _ in range(500):
        if not engine.engine.has_work and not engine.waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine is still busy")


def test_answers_are_those_of_the_engine_alone(model: Decoder, tokenizer: Tokenizer) -> None:
    requests = [Request(prompt_ids=[30 + at], max_tokens=20, temperature=1.0, seed=at) for at in range(12)]
    expected = Engine(model, tokenizer).generate(requests)

    async def together() -> None:
        async with running(Engine(model, tokenizer, max_slots=3)) as engine:
            one_by_one = await asyncio.gather(*(engine.generate([request]) for request in requests))
            assert [answer for (answer,) in one_by_one] == expected
            assert await engine.generate(requests) == expected
            assert engine.waiting == engine.running == 0

    asyncio.run(together())


def test_a_full_queue_refuses_before_anything_is_made(model: Decoder, tokenizer: Tokenizer) -> None:
    async def overload() -> None:
        async with running(Engine(model, tokenizer, max_slots=2), max_queue=3) as engine:
            streams = [await submit(engine, long_request(at)) for at in range(5)]
            with pytest.raises(Overloaded) as caught:
                await engine.submit(lambda: pytest.fail("made although the queue is full"), 1)
            assert 1 <= caught.value.retry_after_s <= 60
            await streams[0].aclose()
            last = await submit(engine, Request(prompt_ids=[30], max_tokens=1))
            with pytest.raises(Overloaded):
                await submit(engine, Request(prompt_ids=[30], max_tokens=1))
            for stream in streams[1:]:
                await stream.aclose()
            assert len([update async for update in last]) == 1
            await until_idle(engine)

    asyncio.run(overload())


def test_more_at_once_than_there_are_places_is_a_mistake_not_an_overload(engine: Engine) -> None:
    async def ask() -> None:
        async with running(engine, max_queue=2) as working:
            with pytest.raises(RequestError) as caught:
                await submit(working, *(long_request() for _ in range(11)))
            assert caught.value.param == "n"

    asyncio.run(ask())


def test_a_request_that_cannot_be_answered_gives_its_place_back(engine: Engine) -> None:
    async def refuse() -> None:
        async with running(engine, max_queue=0) as working:
            for _ in range(engine.max_slots + 1):
                with pytest.raises(RequestError):
                    await submit(working, Request(prompt_ids=[99_999]))
            assert working.waiting == 0

    asyncio.run(refuse())


def test_closing_a_stream_frees_its_slots(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave() -> None:
        counter = StepCounter(engine, monkeypatch)
        async with running(engine) as working:
            stream = await submit(working, *(long_request(at) for at in range(12)))
            await stream.__anext__()
            await stream.aclose()
            await stream.aclose()
            await until_idle(working)
            assert counter.steps < 100  # answering all would have taken 400
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()

            task = asyncio.ensure_future(working.generate([long_request()]))
            while not engine.running:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until_idle(working)

    asyncio.run(leave())


def test_a_reader_that_is_stuck_holds_up_nobody(engine: Engine) -> None:
    async def stuck() -> None:
        async with running(engine) as working:
            never_read = await submit(working, long_request())
            answers = await working.generate([long_request(1)])
            assert len(answers[0].token_ids) == 200
            assert len([update async for update in never_read]) == 200

    asyncio.run(stuck())


def test_closing_the_engine_ends_what_is_in_work(engine: Engine) -> None:
    async def close() -> None:
        working = AsyncEngine(engine)
        with pytest.raises(EngineError):
            await submit(working, long_request())
        working.start()
        stream = await submit(working, long_request())
        await stream.__anext__()
        began = time.monotonic()
        await working.close()
        assert time.monotonic() - began < 5
        with pytest.raises(EngineError):
            async for _ in stream:
                pass
        assert not engine.has_work
        assert not working.alive
        with pytest.raises(EngineError):
            await submit(working, long_request())

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
            with pytest.raises(EngineError, match="no memory"):
                await working.generate([long_request()])
            assert len(await working.generate([Request(prompt_ids=[30], max_tokens=3)])) == 1
            assert working.alive

    asyncio.run(fail())
