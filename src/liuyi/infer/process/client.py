"""The owner's side, for asyncio: hands requests to an engine's process, brings updates back, and replaces a lost one.

engine = EngineClient(partial(spawn, EngineSpec(model=folder)))
await engine.start()
stream = await engine.submit([Request(prompt_ids=ids)])
async for index, update in stream: ...
await engine.close()
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import LiuyiError
from liuyi.infer.errors import EngineError, Unavailable
from liuyi.infer.process.link import Link
from liuyi.infer.process.messages import (
    NO_PULSE,
    Cancel,
    DropAdapter,
    Embed,
    Embedded,
    EngineFacts,
    FromEngine,
    LoadAdapter,
    Ready,
    Refused,
    Step,
    Stop,
    Submit,
    Taken,
    ToEngine,
    Unusable,
)
from liuyi.infer.process.spawn import Peer
from liuyi.infer.process.stream import Stream
from liuyi.infer.request import Completion, Request, Update

logger = logging.getLogger("liuyi.infer")

State = Literal["new", "starting", "ready", "restarting", "failed", "closed"]
_RETRY_S = 5


@dataclass(frozen=True)
class Patience:
    """When an engine's process counts as lost, and how often it is replaced."""

    silence_s: float = 30.0
    """Without a word for so long, it is ended and replaced."""
    stall_s: float = 300.0
    """A single step may last so long."""
    open_s: float = 1800.0
    """Loading the model may take so long."""
    restarts: int = 5
    """So many replacements are made within `window_s`; then the engine has failed for good."""
    window_s: float = 600.0
    backoff_s: float = 0.5
    """The first replacement is started at once, the second after so long, and each further one after twice as long."""


class EngineClient:
    """One engine in another process, and its successors."""

    def __init__(self, launch: Callable[[], Peer], *, patience: Patience | None = None) -> None:
        """`launch` starts a process and returns its peer, whose first message says whether the engine is open."""
        self._new_peer = launch
        self._patience = patience or Patience()
        self._ids = itertools.count()
        self._listeners: dict[int, tuple[Stream, int]] = {}
        self._taking: dict[int, asyncio.Future[str]] = {}
        self._embedding: dict[int, asyncio.Future[NDArray[np.float32]]] = {}
        self._lost: deque[float] = deque()
        self._silent_s = 0.0
        self._launched: Peer | None = None
        self._peer: Peer
        self._link: Link
        self._opened: asyncio.Future[Ready | Unusable]
        self._supervisor: asyncio.Task[None] | None = None
        self.facts: EngineFacts
        self.adapters: dict[str, str] = {}
        """Digests of the adapters that requests may choose, by name."""
        self._folders: dict[str, str | None] = {}
        """What was loaded, and with None what was dropped, since the engine was first opened."""
        self.state: State = "new"
        self.pulse = NO_PULSE
        self.restarts = 0

    def launch(self) -> None:
        """Start the process before there is an event loop; `start` waits for it, `abandon` ends it."""
        self._launched = self._new_peer()

    def abandon(self) -> None:
        """End what was launched and will not be started."""
        if self._launched is not None:
            self._launched.kill()
            self._launched.end()
            self._launched.sock.close()
            self._launched = None

    async def start(self) -> None:
        """Start the process, unless that was done, and wait until its engine is open.

        Raises LiuyiError if it cannot be opened.
        """
        self.state = "starting"
        await self._open()
        self.state = "ready"
        self.adapters = dict(self.facts.adapters)
        self._supervisor = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """Stop after the current step; requests that have not ended fail with EngineError."""
        was, self.state = self.state, "closed"
        if self._supervisor is None:
            return
        if was == "ready":
            self._send(Stop())
        elif was == "restarting":
            self._supervisor.cancel()
        try:
            await asyncio.wait_for(asyncio.shield(self._supervisor), self._patience.silence_s)
        except TimeoutError:
            self._peer.kill()
            await self._supervisor
        except asyncio.CancelledError:
            if not self._supervisor.cancelled():
                raise

    async def submit(self, requests: Sequence[Request]) -> Stream:
        """Put requests into the engine's queue, all or none.

        Raises RequestError if one can never be answered, Unavailable while there is no engine, EngineError if it is
        lost before they are taken.
        """
        self._require_ready()
        ids = list(itertools.islice(self._ids, len(requests)))
        stream = Stream(ids, self.cancel)
        for index, id in enumerate(ids):
            self._listeners[id] = (stream, index)
        try:
            await self._ask(ids[0], Submit(ids, requests))
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def load_adapter(self, name: str, folder: str) -> str:
        """Make the adapter in a folder known by a name, to successors of this engine too; its digest.

        Raises ModelError if it cannot be read or does not fit the model, and as `submit` does.
        """
        self._require_ready()
        id = next(self._ids)
        digest = await self._ask(id, LoadAdapter(id, name, folder))
        self.adapters[name] = digest
        self._folders[name] = folder
        return digest

    async def drop_adapter(self, name: str) -> None:
        """Let no new request find an adapter. Raises RequestError if there is none of that name."""
        self._require_ready()
        id = next(self._ids)
        await self._ask(id, DropAdapter(id, name))
        self.adapters.pop(name, None)
        self._folders[name] = None

    async def _ask(self, id: int, message: ToEngine) -> str:
        """Send, and wait until it is taken or refused."""
        taken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._taking[id] = taken
        self._send(message)
        try:
            return await taken
        finally:
            del self._taking[id]

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of all requests, in their order. Cancelling the task cancels the requests."""
        stream = await self.submit(requests)
        done: dict[int, Completion] = {}
        try:
            async for index, update in stream:
                if update.completion is not None:
                    done[index] = update.completion
        finally:
            await stream.aclose()
        return [done[index] for index in range(len(requests))]

    async def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The mean of the final hidden states of each text, [texts, hidden]. Cancelling the task cancels the work.

        Raises as `submit` does.
        """
        self._require_ready()
        id = next(self._ids)
        vectors: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._embedding[id] = vectors
        self._send(Embed(id, texts))
        try:
            return await vectors
        except asyncio.CancelledError:
            if self.state == "ready":
                self._send(Cancel([id]))
            raise
        finally:
            del self._embedding[id]

    def cancel(self, ids: Sequence[int]) -> None:
        """Drop those of the requests that have not ended."""
        left = [id for id in ids if self._listeners.pop(id, None) is not None]
        if left and self.state == "ready":
            self._send(Cancel(left))

    def _require_ready(self) -> None:
        if self.state in ("starting", "restarting"):
            raise Unavailable("the engine is being started", retry_after_s=_RETRY_S)
        if self.state != "ready":
            raise EngineError("the engine does not run")

    def _send(self, message: ToEngine) -> None:
        self._link.send(message)

    # One process after the other.

    async def _supervise(self) -> None:
        while True:
            watch = asyncio.create_task(self._watch())
            try:
                await self._link.lost
            finally:
                watch.cancel()
                self._link.close()
            closing = self.state == "closed"
            if not closing:
                self.state = "restarting"
            how = await asyncio.to_thread(self._peer.end)
            if closing:
                self._fail(EngineError("the engine has stopped"))
                return
            logger.error("the engine's process was lost: %s", how)
            lost = f"the engine was lost while the request was in it: {how}; ask again"
            self._fail(Unavailable(lost, retry_after_s=_RETRY_S))
            if not await self._replace():
                return

    async def _replace(self) -> bool:
        """Start another process; False once that has been tried too often."""
        while True:
            now = monotonic()
            self._lost.append(now)
            while self._lost[0] < now - self._patience.window_s:
                self._lost.popleft()
            if len(self._lost) > self._patience.restarts:
                logger.error("the engine was lost %d times; it is not started again", len(self._lost))
                self.state = "failed"
                return False
            if len(self._lost) > 1:
                await asyncio.sleep(self._patience.backoff_s * 2 ** (len(self._lost) - 2))
            self.restarts += 1
            try:
                await self._open()
                try:
                    await self._restore_adapters()
                except BaseException:
                    await self._end_peer()
                    raise
                self.state = "ready"
                return True
            except (LiuyiError, OSError) as error:
                logger.error("the engine could not be started again: %s", error)

    async def _end_peer(self) -> None:
        """End a process at once, and leave nothing of it."""
        self._peer.kill()
        self._link.close()
        await asyncio.to_thread(self._peer.end)

    async def _restore_adapters(self) -> None:
        """Load and drop what was loaded and dropped before, ahead of the first request."""
        for name, folder in list(self._folders.items()):
            id = next(self._ids)
            if folder is None and name not in self.facts.adapters:
                continue
            wish = DropAdapter(id, name) if folder is None else LoadAdapter(id, name, folder)
            asked = asyncio.create_task(self._ask(id, wish))
            try:
                if not await self._link.outlasts(asked):
                    raise EngineError("the engine was lost while its adapters were loaded")
            finally:
                asked.cancel()
            if (error := asked.exception()) is not None:
                logger.error("the adapter '%s' could not be loaded again: %s", name, error)
                self.adapters.pop(name, None)
                del self._folders[name]

    async def _open(self) -> None:
        self._peer = peer = self._launched or self._new_peer()
        self._launched = None
        self._opened = asyncio.get_running_loop().create_future()
        try:
            self._link = await Link.over(peer.sock, self._take)
            async with asyncio.timeout(self._patience.open_s):
                message = self._opened.result() if await self._link.outlasts(self._opened) else None
        except TimeoutError:
            await self._end_peer()
            raise EngineError(
                f"the engine's process had not opened its model after {self._patience.open_s:g} s"
            ) from None
        except BaseException:
            await self._end_peer()
            raise
        if isinstance(message, Ready):
            self.facts, self.pulse, self._silent_s = message.facts, NO_PULSE, 0.0
            return
        self._link.close()
        how = await asyncio.to_thread(peer.end)
        if message is not None:
            raise message.error
        raise EngineError(f"the engine's process could not start: {how}")

    def _take(self, message: FromEngine) -> None:
        self._silent_s = 0.0
        if isinstance(message, Step):
            self.pulse = message.pulse
            for update in message.updates:
                self._deliver(update)
        elif isinstance(message, Taken):
            self._settle(message.id, None, message.digest)
        elif isinstance(message, Refused):
            self._settle(message.id, message.error)
        elif isinstance(message, Embedded):
            self._settle_vectors(message)
        else:
            self._opened.set_result(message)

    async def _watch(self) -> None:
        """End a process that is silent, or in one step, for too long. A busy event loop here is not its silence."""
        tick_s = min(1.0, self._patience.silence_s / 4)
        while True:
            await asyncio.sleep(tick_s)
            self._silent_s += tick_s
            if self._silent_s > self._patience.silence_s or self.pulse.step_s > self._patience.stall_s:
                logger.error("the engine's process does not answer and is ended")
                self._peer.kill()
                return

    def _deliver(self, update: Update) -> None:
        ended = update.completion is not None or update.error is not None
        listener = self._listeners.pop(update.id, None) if ended else self._listeners.get(update.id)
        if listener is not None:
            stream, index = listener
            stream.put(index, update)

    def _settle(self, id: int, error: LiuyiError | None, value: str = "") -> None:
        waiting = self._taking.get(id) or self._embedding.get(id)
        if waiting is None or waiting.done():
            return
        if error is not None:
            waiting.set_exception(error)
        elif id in self._taking:
            self._taking[id].set_result(value)

    def _settle_vectors(self, message: Embedded) -> None:
        waiting = self._embedding.get(message.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(np.frombuffer(message.vectors, dtype="<f4").reshape(-1, message.hidden_size))

    def _fail(self, error: LiuyiError) -> None:
        for id in [*self._taking, *self._embedding]:
            self._settle(id, error)
        for id in list(self._listeners):
            self._deliver(Update(id, error=error))
        self.pulse = NO_PULSE
