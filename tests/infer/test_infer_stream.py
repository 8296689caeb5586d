"""From the engine's socket to whoever is told: nothing is lost, out of order, or another stream's loss."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from liuyi.infer.errors import EngineError
from liuyi.infer.process.link import Link
from liuyi.infer.process.messages import FromEngine, Pulse, Step, Taken, frame
from liuyi.infer.process.stream import Stream
from liuyi.infer.request import Completion, Update
from liuyi.infer.server.backend import Delta, Yielded, in_turn
from liuyi.infer.stats import Stats


def last(id: int) -> Update:
    return Update(id, completion=Completion("ab", (1, 2), (), (), "stop", 1))


class Watched(Stream):
    """A stream that keeps which requests were cancelled."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.cancelled: list[int] = []
        super().__init__(ids, self.cancelled.extend)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(within())


class TestTell:
    def test_tells_what_came_before_and_after_and_returns_with_the_last(self) -> None:
        async def work() -> None:
            stream = Watched([5, 6])
            stream.put(0, Update(5, "a"))
            told: list[tuple[int, str]] = []
            telling = asyncio.create_task(stream.tell(lambda index, update: told.append((index, update.text))))
            await asyncio.sleep(0)
            assert told == [(0, "a")]
            stream.put(1, Update(6, "x"))
            assert told == [(0, "a"), (1, "x")]  # within the call
            stream.put(0, last(5))
            stream.put(1, Update(6, "y"))
            assert not telling.done()
            stream.put(1, last(6))
            await telling
            assert told == [(0, "a"), (1, "x"), (0, ""), (1, "y"), (1, "")]
            await stream.tell(lambda index, update: pytest.fail("it is over"))
            assert stream.cancelled == []

        run(work)

    @pytest.mark.parametrize("before", [True, False])
    def test_an_error_of_one_request_ends_all_that_came_with_it(self, before: bool) -> None:
        async def work() -> None:
            stream = Watched([5, 6])
            if before:
                stream.put(1, Update(6, error=EngineError("lost")))
            telling = asyncio.create_task(stream.tell(lambda index, update: None))
            await asyncio.sleep(0)
            if not before:
                stream.put(1, Update(6, error=EngineError("lost")))
            with pytest.raises(EngineError, match="lost"):
                await telling
            assert stream.cancelled == [5, 6]

        run(work)

    def test_what_the_told_one_raises_is_its_own_matter(self) -> None:
        async def work() -> None:
            stream, seen = Watched([5]), 0

            def take(index: int, update: Update) -> None:
                nonlocal seen
                seen += 1
                raise ValueError("no")

            telling = asyncio.create_task(stream.tell(take))
            await asyncio.sleep(0)
            stream.put(0, Update(5, "a"))  # does not raise: the caller has other streams
            stream.put(0, Update(5, "b"))
            with pytest.raises(ValueError, match="no"):
                await telling
            assert (seen, stream.cancelled) == (1, [5])

        run(work)

    def test_whoever_is_cancelled_cancels_the_requests_and_hears_no_more(self) -> None:
        async def work() -> None:
            stream = Watched([5])
            told: list[Update] = []
            telling = asyncio.create_task(stream.tell(lambda index, update: told.append(update)))
            await asyncio.sleep(0)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            assert stream.cancelled == [5]
            stream.put(0, Update(5, "late"))
            assert told == []

        run(work)


class TestLink:
    MESSAGES: tuple[FromEngine, ...] = (
        Step([Update(number, "厨" * number, (number,)) for number in range(3)], Pulse(Stats(running=3), 7)),
        Taken(2, "d" * 64),
        Step([], Pulse(Stats())),
        Taken(3, "x" * 300_000),
    )

    @pytest.mark.parametrize("size", [1, 3, 5, 1000, 1 << 20])
    def test_messages_arrive_whole_however_the_socket_cuts_them(self, size: int) -> None:
        sent = self.MESSAGES if size > 5 else self.MESSAGES[:3]
        data = b"".join(map(frame, sent))

        async def work() -> None:
            came: list[Any] = []
            link = Link(came.append)
            for begin in range(0, len(data), size):
                link.data_received(data[begin : begin + size])
            assert came == list(sent)

        run(work)

    @pytest.mark.parametrize("sent", [b"", b"\0\0\0\x05ab", b"\0\0\0\x01\xc1"])
    def test_a_peer_that_hangs_up_or_talks_nonsense_is_lost(self, sent: bytes) -> None:
        async def work() -> None:
            ours, theirs = socket.socketpair()
            link = await Link.over(ours, lambda message: pytest.fail("that is no message"))
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_RDWR)
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            assert not await link.outlasts(never)
            theirs.close()

        run(work)


class TestInTurn:
    def test_yields_all_and_raises_what_ended_them(self) -> None:
        async def said() -> Any:
            yield Delta(text="a")
            yield Delta(text="b")
            raise EngineError("lost")

        async def work() -> None:
            deltas = in_turn(Yielded(said()))
            assert [(await anext(deltas)).text for _ in range(2)] == ["a", "b"]
            with pytest.raises(EngineError, match="lost"):
                await anext(deltas)

        run(work)

    def test_closes_them_when_it_is_closed(self) -> None:
        async def work() -> None:
            closed = asyncio.Event()

            async def endless() -> Any:
                try:
                    while True:
                        yield Delta(text="a")
                        await asyncio.sleep(0)
                finally:
                    closed.set()

            deltas = in_turn(Yielded(endless()))
            assert (await anext(deltas)).text == "a"
            await deltas.aclose()
            assert closed.is_set()

        run(work)
