"""The engine's side: takes requests from a channel, steps, and sends what each step said in one message.

    Worker(engine, channel).run()

Requests and cancellations reach the engine between steps. Grammars are checked in threads beside it, since a large
one takes time to compile. A step that fails costs the requests in work, not the engine.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np

from liuyi.core.errors import LiuyiError, OutOfMemory
from liuyi.infer.embed import Embedder
from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError
from liuyi.infer.process.channel import Channel
from liuyi.infer.process.messages import (
    Cancel,
    DropAdapter,
    Embed,
    Embedded,
    EngineFacts,
    LoadAdapter,
    Pulse,
    Ready,
    Refused,
    Step,
    Stop,
    Submit,
    Taken,
)
from liuyi.infer.request import Request, Update
from liuyi.infer.runner import BLOCK_TOKENS
from liuyi.model.adapter import Adapter

logger = logging.getLogger("liuyi.infer")

BEAT_S = 0.5
_CHECKERS = 2


class Worker:
    """Serves one engine to whoever holds the other end of the channel."""

    def __init__(self, engine: Engine, channel: Channel, gone: Callable[[], None] = lambda: None) -> None:
        """`gone` is called, in another thread, as soon as the other side has hung up."""
        self._engine = engine
        self._embedder = Embedder(engine.runner, engine.pool)
        self._embedding: set[int] = set()
        self._channel = channel
        self._gone = gone
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._checks = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="liuyi-check")
        self._checked = threading.Lock()
        self._unchecked: set[int] = set()
        """Requests whose grammars are being compiled; cancelling one takes it out."""
        self._working: set[int] = set()
        self._steps = 0
        self._step_began: float | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        """Work until the other side asks for the end or goes away."""
        engine = self._engine
        self._channel.send(
            Ready(
                EngineFacts(
                    pid=os.getpid(),
                    max_slots=engine.max_slots,
                    max_tokens=engine.max_tokens,
                    kv_tokens=engine.runner.blocks * BLOCK_TOKENS,
                    block_tokens=BLOCK_TOKENS,
                    runner=engine.runner.name,
                    stop_ids=sorted(engine.stop_ids),
                    adapters={name: engine.adapters.digest(name) for name in engine.adapters.names},
                )
            )
        )
        reader = threading.Thread(target=self._read, name="liuyi-reader", daemon=True)
        beat = threading.Thread(target=self._beat, name="liuyi-beat", daemon=True)
        reader.start()
        beat.start()
        while self._empty_inbox():
            if engine.has_work:
                self._step()
            if self._embedder.has_work:
                self._embed()
        self._fail(EngineError("the engine has stopped"))
        self._ended.set()
        beat.join()
        self._checks.shutdown(cancel_futures=True)
        self._channel.close()
        reader.join()

    @property
    def pulse(self) -> Pulse:
        """How the engine is."""
        began = self._step_began
        return Pulse(self._engine.stats, self._steps, 0.0 if began is None else monotonic() - began)

    # In the thread of the engine.

    def _empty_inbox(self) -> bool:
        """Do what was asked for, waiting for it while there is nothing else to do; False when the end was asked."""
        changed = False
        while True:
            idle = not (self._engine.has_work or self._embedder.has_work)
            if idle and changed:
                self._channel.send(Step((), self.pulse))
                changed = False
            try:
                task = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if task is None:
                return False
            task()
            changed = True

    def _begin(self, message: Submit) -> None:
        try:
            for id, request in zip(message.ids, message.requests, strict=True):
                self._engine.submit(request, id)
                self._working.add(id)
        except Exception as error:
            if not isinstance(error, LiuyiError):
                logger.exception("a request could not be taken up")
            self._end(message.ids)
            self._channel.send(Refused(message.ids[0], _for_people(error, "the request could not be taken up")))
            return
        self._channel.send(Taken(message.ids[0]))

    def _end(self, ids: Sequence[int]) -> None:
        for id in ids:
            self._working.discard(id)
            self._engine.cancel(id)
        if self._embedding.intersection(ids):
            self._embedding.difference_update(ids)
            self._embedder.cancel(ids)

    def _begin_embedding(self, message: Embed) -> None:
        self._embedding.add(message.id)
        self._embedder.add(message.id, message.texts)

    def _embed(self) -> None:
        try:
            done = self._embedder.step()
        except Exception as error:
            logger.exception("texts could not be embedded")
            self._fail(_for_people(error, "the engine failed"))
            return
        for id, vectors in done:
            self._embedding.discard(id)
            data = np.stack(vectors).astype("<f4")
            self._channel.send(Embedded(id, data.tobytes(), data.shape[1]))

    def _load_adapter(self, message: LoadAdapter, adapter: Adapter) -> None:
        try:
            held = self._engine.adapters.load(message.name, adapter)
        except LiuyiError as error:
            self._channel.send(Refused(message.id, error))
        else:
            self._channel.send(Taken(message.id, held.digest))

    def _drop_adapter(self, message: DropAdapter) -> None:
        try:
            self._engine.adapters.drop(message.name)
        except LiuyiError as error:
            self._channel.send(Refused(message.id, error))
        else:
            self._channel.send(Taken(message.id))

    def _step(self) -> None:
        self._step_began = monotonic()
        try:
            updates = self._engine.step()
        except Exception as error:
            logger.exception("a step of the engine failed")
            self._fail(_for_people(error, "the engine failed"))
            return
        finally:
            self._step_began = None
            self._steps += 1
        self._publish(updates)

    def _publish(self, updates: Sequence[Update]) -> None:
        for update in updates:
            if update.completion is not None or update.error is not None:
                self._working.discard(update.id)
        if updates:
            self._channel.send(Step(updates, self.pulse))

    def _fail(self, error: LiuyiError) -> None:
        """End all that is in work with an error."""
        working, embedding = list(self._working), list(self._embedding)
        self._end([*working, *embedding])
        self._publish([Update(id, error=error) for id in working])
        for id in embedding:
            self._channel.send(Refused(id, error))

    # In threads beside it.

    def _read(self) -> None:
        while (message := self._channel.receive()) is not None:
            if isinstance(message, Submit):
                self._check_first(message)
            elif isinstance(message, Cancel):
                self._cancel(message)
            elif isinstance(message, Embed):
                self._check_texts(message)
            elif isinstance(message, LoadAdapter):
                self._checks.submit(self._read_adapter, message)
            elif isinstance(message, DropAdapter):
                self._inbox.put(partial(self._drop_adapter, message))
            elif isinstance(message, Stop):
                break
        else:
            self._gone()
        self._inbox.put(None)

    def _check_first(self, message: Submit) -> None:
        with self._checked:
            self._unchecked.add(message.ids[0])
        if any(request.grammar is not None or request.schema is not None for request in message.requests):
            self._checks.submit(self._check, message)
        else:
            self._check(message)

    def _check(self, message: Submit) -> None:
        first = message.ids[0]
        if first not in self._unchecked:
            return
        problem = None
        try:
            for request in message.requests:
                self._engine.check(request)
        except Exception as error:
            if not isinstance(error, LiuyiError):
                logger.exception("a request could not be checked")
            problem = _for_people(error, "the request could not be checked")
        with self._checked:
            if first not in self._unchecked:
                return
            self._unchecked.discard(first)
            if problem is None:
                self._inbox.put(partial(self._begin, message))
        if problem is not None:
            self._channel.send(Refused(first, problem))

    def _read_adapter(self, message: LoadAdapter) -> None:
        try:
            adapter = Adapter.load(Path(message.folder))
        except Exception as error:
            if not isinstance(error, LiuyiError):
                logger.exception("an adapter could not be read")
            self._channel.send(Refused(message.id, _for_people(error, "the adapter cannot be read")))
            return
        self._inbox.put(partial(self._load_adapter, message, adapter))

    def _check_texts(self, message: Embed) -> None:
        try:
            for text in message.texts:
                self._engine.check(Request(prompt_ids=text))
        except LiuyiError as error:
            self._channel.send(Refused(message.id, error))
        else:
            self._inbox.put(partial(self._begin_embedding, message))

    def _cancel(self, message: Cancel) -> None:
        with self._checked:
            self._unchecked.difference_update(message.ids)
            self._inbox.put(partial(self._end, message.ids))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._channel.send(Step((), self.pulse))


def _for_people(error: Exception, what: str) -> LiuyiError:
    if isinstance(error, LiuyiError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{what}: out of memory: {error}")
    return EngineError(f"{what}: {type(error).__name__}: {error}")
