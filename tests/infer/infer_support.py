"""A tiny random model, and a live server over any backend."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from liuyi.infer.engine import Engine
from liuyi.infer.request import Update
from liuyi.infer.server.answers import Answer
from liuyi.infer.server.app import create_app
from liuyi.infer.server.backend import ChatBackend
from liuyi.infer.server.run import bind, make_server, url_of
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights

LINES = [
    'turn on the kitchen lights {"intent":"HassTurnOn","slots":{"area":"kitchen","domain":"light"}}',
    "打开厨房的灯，把卧室的温度调到二十度。",
    "The quick brown fox jumps over the lazy dog, again and again.",
    "def answer(question): return 42  # numbers 0123456789",
]
VOCAB = 384


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


class StepCounter:
    """Counts the steps that an engine takes from now on."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        step = engine.step

        def counted() -> list[Update]:
            self.steps += 1
            return step()

        monkeypatch.setattr(engine, "step", counted)


@dataclass
class LiveServer:
    """A uvicorn server in a thread, reached over loopback."""

    url: str
    backend: ChatBackend
    answers: list[Answer] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None


@contextlib.contextmanager
def live_server(backends: dict[str, ChatBackend], **options: Any) -> Iterator[LiveServer]:
    """Serve until the block ends."""
    bound = bind("127.0.0.1", 0)
    live = LiveServer(url_of(bound), next(iter(backends.values())))
    app = create_app(backends, record=live.answers.append, **options)
    listening = threading.Event()
    server = make_server(app, drain_s=10, listening=listening.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()

    def stop() -> None:
        server.should_exit = True

    live.stop = stop
    try:
        assert listening.wait(20), "the server did not start"
        yield live
    finally:
        stop()
        thread.join(20)
        bound.close()
        assert not thread.is_alive(), "the server did not stop"
