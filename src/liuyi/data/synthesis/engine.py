"""Liuyi's own engine as a model to ask, in this process: what is asked at once is batched continuously."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

from liuyi.data.synthesis.ask import Answer, Ask, Failed
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.request import Completion, Request
from liuyi.model.chat import encode_chat


class EngineEndpoint:
    """Runs the engine's steps in a thread for as long as something is asked. Answers do not depend on the batch."""

    def __init__(self, engine: Engine, digest: str) -> None:
        """`digest` is the checkpoint's."""
        self.where = f"checkpoint {digest[:12]}"
        self._engine = engine
        self.model = digest
        self._arrived: deque[tuple[Request, asyncio.Future[Completion]]] = deque()
        self._running: dict[int, asyncio.Future[Completion]] = {}
        self._steps: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, folder: Path, digest: str, *, slots: int, seed: int) -> EngineEndpoint:
        """The model of a checkpoint's folder. Raises ModelError."""
        from liuyi.infer.open import open_evaluated
        from liuyi.model.load import load

        model, tokenizer = load(folder)
        return cls(Engine(open_evaluated(model, slots=slots), tokenizer, max_slots=slots, seed=seed), digest)

    async def start(self) -> None:
        """The engine is there already."""

    async def ask(self, ask: Ask) -> Answer:
        done: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        try:
            self._arrived.append((self._request(ask), done))
            if self._steps is None or self._steps.done():
                self._steps = asyncio.create_task(self._run())
            completion = await done
        except RequestError as error:
            raise Failed("refused", error.message, retry=False) from None
        if not completion.text.strip():
            raise Failed("empty answer", f"finish_reason {completion.finish_reason!r}", retry=False)
        return Answer(
            completion.text,
            completion.finish_reason,
            self.model,
            completion.prompt_tokens,
            len(completion.token_ids),
        )

    async def close(self) -> None:
        if self._steps is not None:
            self._steps.cancel()

    def _request(self, ask: Ask) -> Request:
        if isinstance(ask.prompt, str):
            ids = self._engine.tokenizer.encode(ask.prompt)
        else:
            ids, _ = encode_chat(self._engine.tokenizer, ask.prompt, add_generation_prompt=True)
        sampling = ask.sampling
        return Request(
            prompt_ids=ids,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=ask.seed,
            stop=ask.stop,
            schema=ask.schema,
        )

    async def _run(self) -> None:
        try:
            while self._arrived or self._engine.has_work:
                self._submit()
                for update in await asyncio.to_thread(self._engine.step):
                    if update.completion is not None:
                        _settle(self._running.pop(update.id), update.completion)
                    elif update.error is not None:
                        _settle(self._running.pop(update.id), update.error)
        except Exception as error:
            for done in [*self._running.values(), *(done for _, done in self._arrived)]:
                _settle(done, error)
            self._running.clear()
            self._arrived.clear()

    def _submit(self) -> None:
        while self._arrived:
            request, done = self._arrived.popleft()
            try:
                self._running[self._engine.submit(request)] = done
            except RequestError as error:
                _settle(done, error)


def _settle(done: asyncio.Future[Completion], outcome: Completion | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
