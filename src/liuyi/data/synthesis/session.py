"""A step's conversation with its endpoint: requests in, answers in the same order out, whatever was answered before."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from liuyi.core.digest import canonical_json
from liuyi.data.corpus import Rows
from liuyi.data.synthesis.ask import Answer, Ask
from liuyi.data.synthesis.budget import Budget
from liuyi.data.synthesis.queue import Patience, Queue
from liuyi.data.synthesis.report import Tally
from liuyi.data.synthesis.store import AnswerStore

if TYPE_CHECKING:
    import pyarrow as pa

    from liuyi.data.synthesis.endpoint import Endpoint

ANSWERS = "answers.parquet"
_STORE = "answers.jsonl"


class Progress(Protocol):
    """How a step says how far it is."""

    def __call__(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...


class Session:
    """Asks in batches. A step that starts again makes the same requests, and only the unanswered ones are sent."""

    def __init__(
        self,
        open_endpoint: Callable[[], Endpoint],
        folder: Path,
        *,
        concurrency: int,
        patience: Patience,
        max_requests: int | None = None,
        max_tokens_out: int | None = None,
        on_progress: Progress = lambda done, total, unit="", **shown: None,
    ) -> None:
        """`folder` keeps the answers between starts. `open_endpoint` is called inside the event loop."""
        self.tally = Tally()
        self._loop = asyncio.Runner()
        self._store = AnswerStore(folder / _STORE)
        self._budget = Budget(
            max_requests, max_tokens_out, requests=self._store.requests, tokens_out=self._store.tokens_out
        )
        try:
            self._endpoint = self._loop.run(_made(open_endpoint))
        except BaseException:
            self._loop.close()
            self._store.close()
            raise
        self._queue = Queue(
            self._endpoint,
            self._store,
            self._budget,
            concurrency=concurrency,
            patience=patience,
            on_answer=self._tell,
        )
        self.tally.faults = self._queue.faults
        self._on_progress = on_progress
        self._asked: set[str] = set()
        self._rows = Rows(folder / ANSWERS, _answers_schema())
        self._folder = folder
        self._expected = self._under_way = 0
        self._began = time.monotonic()
        self._tokens_before = self._store.tokens_out

    @property
    def model(self) -> str:
        """The model that answers: a checkpoint's digest, or as the endpoint names it."""
        return self._endpoint.model

    @property
    def is_spent(self) -> bool:
        """Whether a limit left something unasked."""
        return self._budget.spent

    def expect(self, asks: int) -> None:
        """Say how many requests more will probably be made, for the progress bar."""
        self._expected = max(self._expected, len(self._asked) + asks)

    def ask(self, asks: Sequence[Ask]) -> list[Answer | None]:
        """The answers, in the order of `asks`; None where there is none.

        Raises StepError when the endpoint answers nothing any more; what it answered is kept.
        """
        self._under_way = len({ask.key for ask in asks} - self._asked)
        self._loop.run(self._queue.answer(asks))
        answers = [self._store.get(ask.key) for ask in asks]
        for ask, answer in zip(asks, answers, strict=True):
            if ask.key not in self._asked:
                self._asked.add(ask.key)
                self._rows.add(_row(ask, answer))
                self.tally.count(answer)
        return answers

    def finish(self) -> None:
        """Take the time, and how much of it went into answers."""
        self.tally.seconds = time.monotonic() - self._began
        self.tally.new_tokens_out = self._store.tokens_out - self._tokens_before
        self.tally.spent = self.is_spent

    def save_answers(self, folder: Path) -> None:
        """Put `answers.parquet` into a folder: every request with its answer as it came, in the order they were made.

        Nothing is asked after that.
        """
        self._rows.__exit__(None)
        shutil.move(self._folder / ANSWERS, folder / ANSWERS)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._endpoint.close())
        self._loop.close()
        self._store.close()

    def _tell(self) -> None:
        done = self._store.answers
        seconds = max(time.monotonic() - self._began, 1e-3)
        tokens_per_s = (self._store.tokens_out - self._tokens_before) / seconds
        total = max(self._expected, len(self._asked) + self._under_way, done)
        self._on_progress(done, total, "answers", tokens_per_s=tokens_per_s)


def _answers_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("request", "template", "prompt", "answer", "finish", "model")]
    return pa.schema([*texts, *((name, pa.int64()) for name in ("seed", "tokens_in", "tokens_out"))])


def _row(ask: Ask, answer: Answer | None) -> dict[str, Any]:
    prompt = ask.prompt if isinstance(ask.prompt, str) else canonical_json(ask.prompt)
    return {
        "request": ask.key,
        "template": ask.template,
        "prompt": prompt,
        "answer": answer.text if answer else None,
        "finish": answer.finish if answer else None,
        "model": answer.model if answer else None,
        "seed": ask.seed,
        "tokens_in": answer.tokens_in if answer else None,
        "tokens_out": answer.tokens_out if answer else None,
    }


async def _made(open_endpoint: Callable[[], Endpoint]) -> Endpoint:
    endpoint = open_endpoint()
    await endpoint.start()
    return endpoint
