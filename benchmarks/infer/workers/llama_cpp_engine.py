"""llama.cpp through the C interface that llama-cpp-python binds: `PYTHON llama_cpp_engine.py MODEL.gguf THREADS`."""

from __future__ import annotations

import sys
from time import perf_counter

import llama_cpp as lib
import numpy as np
from protocol import serve


class LlamaCpp:
    """Flash attention as llama.cpp chooses, batches of 2,048 in pieces of 512, a cache of its own for each sequence."""

    def __init__(self, path: str, threads: int) -> None:
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(2048, 0, 1)
        self.contexts = {
            sequences: self._context(sequences, tokens, threads) for sequences, tokens in ((1, 8192), (16, 1024))
        }
        self.context = self.contexts[1]

    def _context(self, sequences: int, tokens: int, threads: int) -> lib.llama_context_p:
        asked = lib.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = sequences * tokens, 2048, 512, sequences
        asked.n_threads = asked.n_threads_batch = threads
        asked.kv_unified = False
        return lib.llama_init_from_model(self.model, asked)

    def decode(self, prompt: list[int], tokens: int) -> dict:
        began = perf_counter()
        ids = [self._prompt(prompt, 0)]
        first = perf_counter()
        for at in range(len(prompt), len(prompt) + tokens - 1):
            ids.append(int(self._run([(ids[-1], at, 0, True)])[0].argmax()))
        return {"first_s": first - began, "rest_s": perf_counter() - first, "ids": ids}

    def prefill(self, prompt: list[int]) -> dict:
        began = perf_counter()
        self._prompt(prompt, 0)
        return {"seconds": perf_counter() - began}

    def streams(self, prompts: list[list[int]], tokens: int, temperature: float, top_p: float) -> dict:
        if (temperature, top_p) != (0, 1):
            raise NotImplementedError("this worker takes the likeliest tokens")
        self.context = self.contexts[16]
        began = perf_counter()
        self._forget()
        ids = [self._prompt(prompt, at, forget=False) for at, prompt in enumerate(prompts)]
        for step in range(tokens - 1):
            rows = [(token, len(prompts[at]) + step, at, True) for at, token in enumerate(ids)]
            ids = [int(token) for token in self._run(rows).argmax(1)]
        seconds = perf_counter() - began
        self.context = self.contexts[1]
        return {"seconds": seconds}

    def agreement(self, texts: list[list[int]]) -> dict:
        """The most probable next token after each token of each text."""
        best = []
        for text in texts:
            self._forget()
            rows = [(token, at, 0, True) for at, token in enumerate(text)]
            best.append(
                [int(row.argmax()) for at in range(0, len(rows), 256) for row in self._run(rows[at : at + 256])]
            )
        return {"best": best}

    def _forget(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)

    def _prompt(self, prompt: list[int], sequence: int, *, forget: bool = True) -> int:
        if forget:
            self._forget()
        rows = [(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)]
        for at in range(0, len(rows), 2048):
            logits = self._run(rows[at : at + 2048])
        return int(logits[-1].argmax())

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Logits `[rows that ask for them, vocabulary]` of (token, position, sequence, asks) rows."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, asks) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, asks
        if lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        asking = sum(row[3] for row in rows)
        if not asking:
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(lib.llama_get_logits(self.context), (asking, self.vocab_size))


if __name__ == "__main__":
    serve(LlamaCpp(sys.argv[1], int(sys.argv[2])))
