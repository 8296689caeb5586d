"""A tiny random model with a tokenizer trained on a few lines, and a live server over it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import openai
import pytest
import torch
from infer_support import LINES, VOCAB, LiveServer, backend_over, client_of, live_server, tiny_model

from liuyi.infer.engine import Engine
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer, train_bpe

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of engines in processes of their own


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
def live_engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, max_slots=8, seed=3)


@pytest.fixture(scope="module")
def live(live_engine: Engine) -> Iterator[LiveServer]:
    with live_server({"tiny": backend_over(live_engine, digest="d" * 64)}) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(live) as client:
        yield client
