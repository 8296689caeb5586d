"""A tiny random model with a tokenizer trained on a few lines, and a live server over it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from infer_support import LINES, VOCAB, LiveServer, live_server, tiny_model

from liuyi.infer.engine import Engine
from liuyi.infer.server.model_backend import ModelBackend
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer, train_bpe

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(LINES * 4, VOCAB - 8)


@pytest.fixture(scope="session")
def model() -> Decoder:
    return tiny_model()


@pytest.fixture
def engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, max_slots=8)


@pytest.fixture(scope="module")
def live(model: Decoder, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    engine = Engine(model, tokenizer, max_slots=8, seed=3)
    with live_server({"tiny": ModelBackend(engine, digest="d" * 64)}) as server:
        yield server
