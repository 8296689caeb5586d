"""A tiny random model, an engine in a thread that is served as if in a process, and a live server over any backend."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import torch
from fastapi import FastAPI

from liuyi.infer.engine import Engine
from liuyi.infer.pace import Pace
from liuyi.infer.process.channel import Channel
from liuyi.infer.process.client import EngineClient
from liuyi.infer.process.worker import Worker
from liuyi.infer.request import Update
from liuyi.infer.server.answers import Answer
from liuyi.infer.server.app import create_app
from liuyi.infer.server.backend import ChatBackend
from liuyi.infer.server.gate import Gate
from liuyi.infer.server.model_backend import ModelBackend
from liuyi.infer.server.run import make_server
from liuyi.infer.server.sockets import bind, url_of
from liuyi.infer.verify_cost import VerifyCost
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank, projection_shapes
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights

LINES = [
    'turn on the kitchen lights {"intent":"HassTurnOn","slots":{"area":"kitchen","domain":"light"}}',
    "打开厨房的灯，把卧室的温度调到二十度。",
    "The quick brown fox jumps over the lazy dog, again and again.",
    "def answer(question): return 42  # numbers 0123456789",
]
VOCAB = 384
MESSAGES: list[Any] = [{"role": "user", "content": "turn on the lights"}]
LONG: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "logit_bias": {"0": -100, "2": -100}}
"""Goes on for 200 tokens."""


def tiny_model(seed: int = 1, **changes: Any) -> Decoder:
    """A random decoder whose logits differ enough for its greedy output to be varied."""
    shape: dict[str, Any] = {
        "family": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    model = Decoder(DecoderConfig(**(shape | changes)))
    init_weights(model, seed=seed, std=0.3)
    return model.eval()


def random_adapter(model: Decoder, rank: int, seed: int, projections: tuple[str, ...] = PROJECTIONS) -> Adapter:
    """An adapter of some of the model's projections."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LowRank(
            torch.randn(rank, columns, generator=generator) * 0.2,
            torch.randn(rows, rank, generator=generator) * 0.2,
            0.7,
        )
        for name, (rows, columns) in projection_shapes(model.config).items()
        if name.rpartition(".")[2] in projections
    }
    return Adapter(modules)


class ThreadPeer:
    """An engine behind a socket, as a process would be, but in a thread where tests can look at it."""

    def __init__(self, engine: Engine) -> None:
        self.sock, theirs = socket.socketpair()
        self._thread = threading.Thread(target=Worker(engine, Channel(theirs)).run, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> str:
        """Wait for the thread."""
        self._thread.join(120)
        assert not self._thread.is_alive(), "the worker did not end"
        return "its thread ended"


class ThreadClient(EngineClient):
    """A client of engines in threads, each of which can be lost as a process can."""

    def __init__(self, engine: Engine | Callable[[], Engine], **options: Any) -> None:
        super().__init__(self._thread, **options)
        self._engine = engine
        self.peers: list[ThreadPeer] = []

    def _thread(self) -> ThreadPeer:
        engine = self._engine
        self.peers.append(ThreadPeer(engine if isinstance(engine, Engine) else engine()))
        return self.peers[-1]

    def kill(self) -> None:
        """Lose the engine that is there."""
        self.peers[-1].kill()


def client_over(engine: Engine | Callable[[], Engine], **options: Any) -> ThreadClient:
    """A client of an engine in a thread, or of several made one after the other."""
    return ThreadClient(engine, **options)


def backend_over(engine: Engine, **options: Any) -> ModelBackend:
    """A backend over an engine in a thread."""
    return ModelBackend(client_over(engine), engine.tokenizer, **options)


def eventually(holds: Callable[[], bool], what: str, patience_s: float = 60) -> None:
    """Wait until it holds."""
    until = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.01)


class SlowSteps:
    """Counts the steps that an engine takes from now on, before each of which it rests.

    So that there is time for others, on a busy machine too, before a tiny model has said all it has to say.
    """

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, rest_s: float = 0.01) -> None:
        self.count, self.rest_s = 0, rest_s
        step = engine.step

        def counted() -> list[Update]:
            time.sleep(self.rest_s)
            self.count += 1
            return step()

        monkeypatch.setattr(engine, "step", counted)


@dataclass
class LiveServer:
    """A uvicorn server in a thread, reached over loopback."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None
    backends: dict[str, ChatBackend] = field(default_factory=dict)

    @property
    def backend(self) -> ChatBackend:
        """The first of its backends."""
        return next(iter(self.backends.values()))


@contextlib.contextmanager
def served(make: Callable[[Callable[[Answer], None], Gate], FastAPI]) -> Iterator[LiveServer]:
    """Serve what `make(record, gate)` returns until the block ends."""
    bound = bind("127.0.0.1", 0)
    live = LiveServer(url_of(bound))
    gate = Gate()
    listening = threading.Event()
    server = make_server(make(live.answers.append, gate), gate=gate, drain_s=10, listening=listening.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    live.stop = server.drain
    try:
        assert listening.wait(90), "the server did not start"
        yield live
    finally:
        server.drain()
        thread.join(120)
        bound.close()
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def live_server(backends: dict[str, ChatBackend], **options: Any) -> Iterator[LiveServer]:
    """Serve backends until the block ends."""
    with served(lambda record, gate: create_app(backends, record=record, gate=gate, **options)) as live:
        live.backends = backends
        yield live


def client_of(live: LiveServer) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0, timeout=120)


def let_drafts_cost(monkeypatch: pytest.MonkeyPatch, token_s: float = 0.001) -> None:
    """Each drafted token adds so much to a step, of which each takes a second: drafting follows no clock."""
    monkeypatch.setattr(VerifyCost, "seconds", lambda self, tokens: token_s * tokens)
    monkeypatch.setattr(VerifyCost, "least_token_s", token_s)
    monkeypatch.setattr(VerifyCost, "most", 1000)
    monkeypatch.setattr(Pace, "step_s", lambda self, generating: 1.0)
    monkeypatch.setattr(Pace, "looks", lambda self, generating: False)
