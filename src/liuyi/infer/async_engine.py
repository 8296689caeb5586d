"""An engine in a thread of its own, for asyncio: nothing that a client does can hold up a step.

    engine = AsyncEngine(Engine(model, tokenizer), max_queue=256)
    engine.start()
    stream = await engine.submit(lambda: [Request(prompt_ids=tokenizer.encode(text))], count=1)
    async for index, update in stream: ...
    await engine.close()

Requests and cancellations go to the thread through an inbox that it empties between steps; the updates of one step
come back in one call of the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError, Overloaded, RequestError
from liuyi.infer.request import Completion, Request, Update

logger = logging.getLogger("liuyi.infer")

_LONGEST_RETRY_S = 60


class Stream:
    """The updates of requests that came together, as (number of the request, update).

    Close it before its end to cancel what is left; after its end closing does nothing.
    """

    def __init__(self, engine: AsyncEngine, requests: Sequence[Request], ids: Sequence[int]) -> None:
        self.requests = requests
        self.updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self._engine = engine
        self._ids = ids
        self._unfinished = len(requests)
        self._began = monotonic()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[int, Update]:
        if not self._unfinished:
            raise StopAsyncIteration
        index, update = await self.updates.get()
        if update.error is not None:
            await self.aclose()
            raise update.error
        if update.completion is not None:
            self._unfinished -= 1
            self._engine.release(1, seconds=monotonic() - self._began)
        return index, update

    async def aclose(self) -> None:
        """Cancel the requests that have not ended; their slots are free before the next step."""
        if self._unfinished:
            self._engine.release(self._unfinished)
            self._engine.cancel(self._ids)
            self._unfinished = 0


class AsyncEngine:
    """Admits requests up to a limit, hands them to the engine's thread, and brings updates back."""

    def __init__(self, engine: Engine, *, max_queue: int = 256) -> None:
        """`max_queue` requests may wait beside those that have a slot; more are refused."""
        self.engine = engine
        self.max_queue = max_queue
        self._admitted = 0
        self._mean_s = 1.0
        self._ids = itertools.count()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[int, tuple[Stream, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="liuyi-engine", daemon=True)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self.engine.running

    @property
    def waiting(self) -> int:
        """Requests admitted that have no slot yet."""
        return max(0, self._admitted - self.engine.running)

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._thread.is_alive() and not self._closing

    def start(self) -> None:
        """Begin to work, for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Stop after the current step; requests that have not ended fail with EngineError."""
        self._closing = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of all requests, in their order. Cancelling the task cancels the requests."""
        stream = await self.submit(lambda: requests, len(requests))
        done: dict[int, Completion] = {}
        try:
            async for index, update in stream:
                if update.completion is not None:
                    done[index] = update.completion
        finally:
            await stream.aclose()
        return [done[index] for index in range(len(requests))]

    async def submit(self, make: Callable[[], Sequence[Request]], count: int) -> Stream:
        """Admit `count` requests, then `make` them, in another thread, since tokenising and grammars take time.

        Raises Overloaded before anything is made if the queue is full, RequestError if they can never be answered,
        EngineError if the engine has stopped.
        """
        if not self.alive:
            raise EngineError("the engine does not run")
        self._admit(count)
        try:
            requests = await asyncio.to_thread(self._made, make)
            if self._closing:
                raise EngineError("the engine has stopped")
        except BaseException:
            self.release(count)
            raise
        ids = list(itertools.islice(self._ids, count))
        stream = Stream(self, requests, ids)
        for index, (id, request) in enumerate(zip(ids, requests, strict=True)):
            self._inbox.put(partial(self._begin, id, request, stream, index))
        return stream

    def release(self, count: int, seconds: float | None = None) -> None:
        """`count` admitted requests have ended, after `seconds` if they were answered."""
        self._admitted -= count
        if seconds is not None:
            self._mean_s += 0.1 * (seconds - self._mean_s)

    def cancel(self, ids: Sequence[int]) -> None:
        """Drop requests before the next step."""
        self._inbox.put(partial(self._end, ids))

    def _made(self, make: Callable[[], Sequence[Request]]) -> Sequence[Request]:
        requests = make()
        for request in requests:
            self.engine.check(request)
        return requests

    def _admit(self, count: int) -> None:
        most = self.engine.max_slots + self.max_queue
        if count > most:
            raise RequestError(f"{count} answers are asked for at once, and this server takes {most}", param="n")
        if count > most - self._admitted:
            waits = self._mean_s * max(1.0, self.waiting / self.engine.max_slots)
            raise Overloaded(
                f"{self._admitted} requests are in work or wait, which is all this server takes",
                retry_after_s=min(_LONGEST_RETRY_S, max(1, math.ceil(waits))),
            )
        self._admitted += count

    # What follows runs in the engine's thread.

    def _begin(self, id: int, request: Request, stream: Stream, index: int) -> None:
        self._listeners[id] = (stream, index)
        try:
            self.engine.submit(request, id)
        except Exception as error:
            logger.exception("a request could not be taken up")
            self._fail([id], f"the request could not be taken up: {type(error).__name__}: {error}")

    def _end(self, ids: Sequence[int]) -> None:
        for id in ids:
            self._listeners.pop(id, None)
            self.engine.cancel(id)

    def _work(self) -> None:
        while self._empty_inbox():
            try:
                updates = self.engine.step()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self._fail(list(self._listeners), f"the engine failed: {type(error).__name__}: {error}")
                continue
            self._deliver(updates)
        self._fail(list(self._listeners), "the engine has stopped")

    def _empty_inbox(self) -> bool:
        """Do what was asked for, waiting for it while there is nothing else to do; False when the end was asked."""
        try:
            while True:
                task = self._inbox.get(block=not self.engine.has_work)
                if task is None:
                    return False
                task()
        except queue.Empty:
            return True

    def _deliver(self, updates: Sequence[Update]) -> None:
        batch = []
        for update in updates:
            batch.append((*self._listeners[update.id], update))
            if update.completion is not None or update.error is not None:
                del self._listeners[update.id]
        if batch and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put_all, batch)

    def _fail(self, ids: Sequence[int], reason: str) -> None:
        for id in ids:
            self.engine.cancel(id)
        self._deliver([Update(id, error=EngineError(reason)) for id in ids])


def _put_all(batch: Sequence[tuple[Stream, int, Update]]) -> None:
    for stream, index, update in batch:
        stream.updates.put_nowait((index, update))
