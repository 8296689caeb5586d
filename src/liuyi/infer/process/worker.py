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
from time import monotonic

from liuyi.core.errors import LiuyiError, OutOfMemory
from liuyi.infer.engine import Engine
from liuyi.infer.errors import EngineError
from liuyi.infer.process.channel import Channel
from liuyi.infer.process.messages import (
    Cancel,
    EngineFacts,
    Ready,
    Refused,
    Stats,
    Step,
    Stop,
    Submit,
    Taken,
)
from liuyi.infer.request import Update

logger = logging.getLogger("liuyi.infer")

BEAT_S = 0.5
_CHECKERS = 2


class Worker:
    """Serves one engine to whoever holds the other end of the channel."""

    def __init__(self, engine: Engine, channel: Channel, gone: Callable[[], None] = lambda: None) -> None:
        """`gone` is called, in another thread, as soon as the other side has hung up."""
        self._engine = engine
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
                )
            )
        )
        reader = threading.Thread(target=self._read, name="liuyi-reader", daemon=True)
        beat = threading.Thread(target=self._beat, name="liuyi-beat", daemon=True)
        reader.start()
        beat.start()
        while self._empty_inbox():
            self._step()
        self._fail(list(self._working), EngineError("the engine has stopped"))
        self._ended.set()
        beat.join()
        self._checks.shutdown(cancel_futures=True)
        self._channel.close()
        reader.join()

    @property
    def stats(self) -> Stats:
        """How busy the engine is."""
        began = self._step_began
        return Stats(
            running=self._engine.running,
            waiting=self._engine.waiting,
            steps=self._steps,
            step_s=0.0 if began is None else monotonic() - began,
        )

    # In the thread of the engine.

    def _empty_inbox(self) -> bool:
        """Do what was asked for, waiting for it while there is nothing else to do; False when the end was asked."""
        changed = False
        while True:
            idle = not self._engine.has_work
            if idle and changed:
                self._channel.send(Step((), self.stats))
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

    def _step(self) -> None:
        self._step_began = monotonic()
        try:
            updates = self._engine.step()
        except Exception as error:
            logger.exception("a step of the engine failed")
            self._fail(list(self._working), _for_people(error, "the engine failed"))
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
            self._channel.send(Step(updates, self.stats))

    def _fail(self, ids: Sequence[int], error: LiuyiError) -> None:
        for id in ids:
            self._engine.cancel(id)
        self._publish([Update(id, error=error) for id in ids])

    # In threads beside it.

    def _read(self) -> None:
        while (message := self._channel.receive()) is not None:
            if isinstance(message, Submit):
                self._check_first(message)
            elif isinstance(message, Cancel):
                self._cancel(message)
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

    def _cancel(self, message: Cancel) -> None:
        with self._checked:
            self._unchecked.difference_update(message.ids)
            self._inbox.put(partial(self._end, message.ids))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._channel.send(Step((), self.stats))


def _for_people(error: Exception, what: str) -> LiuyiError:
    if isinstance(error, LiuyiError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{what}: out of memory: {error}")
    return EngineError(f"{what}: {type(error).__name__}: {error}")
