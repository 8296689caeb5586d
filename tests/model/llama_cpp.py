"""llama.cpp itself, through `cyllama`: what it makes of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

llama_cpp = pytest.importorskip("cyllama.llama.llama_cpp", reason="llama.cpp (cyllama) is not installed")

CONTEXT = 256
llama_cpp.disable_logging()


class _Model(llama_cpp.LlamaModel):  # type: ignore[misc, name-defined]
    """Reading logits asks the model for a size that it has under another name only."""

    @property
    def n_vocab(self) -> int:
        return int(self.get_vocab().n_vocab)


class LlamaCpp:
    """A model as llama.cpp loads it, on one thread, keys and values in float32."""

    def __init__(self, path: Path) -> None:
        self.model: Any = _Model(str(path), llama_cpp.LlamaModelParams(), verbose=False)
        self.vocab = self.model.get_vocab()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens recognised, none added."""
        return list(self.vocab.tokenize(text, False, True))

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token, [tokens, vocab]."""
        context, batch = self._context(), llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.set_batch(list(tokens), 0, True)
        assert context.decode(batch) == 0
        return np.array([context.get_logits_ith(at) for at in range(len(tokens))], np.float32)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The most probable tokens after a prompt."""
        context, new, found = self._context(), list(prompt), []
        for _ in range(count):
            assert context.decode(llama_cpp.llama_batch_get_one(new, len(prompt) + len(found) - len(new))) == 0
            new = [int(np.argmax(context.get_logits_ith(-1)))]
            found += new
        return found

    def _context(self) -> Any:
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = params.flash_attn_type = 0
        return llama_cpp.LlamaContext(self.model, params, verbose=False)
