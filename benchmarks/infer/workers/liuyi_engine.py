"""Liuyi: `PYTHON liuyi_engine.py FOLDER THREADS FORMAT KV`; the last two are `open_runner`'s `weights` and `kv`."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from protocol import serve

from liuyi.core.machine import machine_limits
from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.request import Request
from liuyi.infer.runner import BLOCK_TOKENS, Batch, ids
from liuyi.model.checkpoint import load_model
from liuyi.model.tokenizer import Tokenizer


class Liuyi:
    """The engine as `liuyi serve` has it, with 16 slots."""

    def __init__(self, path: str, threads: int, weights: str, kv: str) -> None:
        torch.set_num_threads(threads)
        self.runner = open_runner(load_model(Path(path)), weights=weights, kv=kv, kv_tokens=16 * 1024)
        self.engine = Engine(self.runner, Tokenizer.load(Path(path)), max_slots=16)

    def decode(self, prompt: list[int], tokens: int) -> dict:
        ((times, new),) = self._answers([prompt], tokens)
        return {"first_s": times[0], "rest_s": times[-1] - times[0], "ids": new}

    def prefill(self, prompt: list[int]) -> dict:
        ((times, _),) = self._answers([prompt], 1)
        return {"seconds": times[0]}

    def streams(self, prompts: list[list[int]], tokens: int, temperature: float, top_p: float) -> dict:
        answers = self._answers(prompts, tokens, temperature=temperature, top_p=top_p)
        return {"seconds": max(times[-1] for times, _ in answers)}

    def agreement(self, texts: list[list[int]]) -> dict:
        """The most probable next token after each token of each text."""
        best = []
        for text in texts:
            found: list[int] = []
            for at in range(0, len(text), 256):
                piece = text[at : at + 256]
                tables = ids([range(-(-len(text) // BLOCK_TOKENS))])
                rows = ids(range(len(piece)))
                batch = Batch(ids(piece), ids([len(piece)]), ids([at]), tables, rows, ids([-1]))
                found += self.runner.logits(batch).argmax(-1).tolist()
            best.append(found)
        return {"best": best}

    def limits(self) -> dict:
        """What this machine can do with these weights at most, in tokens/s, and what it was measured to do."""
        machine, runner = machine_limits(fresh=True), self.runner
        flops, config = machine.flops(runner.format), runner.config
        # Of a prompt only the last token needs the head.
        per_token = config.num_parameters - config.vocab_size * config.hidden_size * (2 - config.tie_word_embeddings)
        return {
            "machine": machine.fingerprint,
            "memory_gb_per_s": machine.memory_bytes_per_s / 1e9,
            "gflops": (flops or 0) / 1e9,
            "weight_mb": runner.weight_bytes / 1e6,
            "decode": machine.decode_tokens_per_s(runner.weight_bytes),
            "prefill": flops / (2 * per_token) if flops else None,
        }

    def _answers(
        self, prompts: list[list[int]], tokens: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[tuple[list[float], list[int]]]:
        """For each prompt seconds from the submission of all to each token, and the tokens."""
        sampling = {"temperature": temperature, "top_p": top_p}
        asked = [Request(prompt_ids=prompt, max_tokens=tokens, ignore_eos=True, **sampling) for prompt in prompts]
        began = perf_counter()
        answers: dict[int, tuple[list[float], list[int]]] = {self.engine.submit(each): ([], []) for each in asked}
        while self.engine.has_work:
            updates = self.engine.step()
            now = perf_counter() - began
            for update in updates:
                times, new = answers[update.id]
                times += [now] * len(update.token_ids)
                new += map(int, np.asarray(update.token_ids))
        return list(answers.values())


if __name__ == "__main__":
    serve(Liuyi(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
