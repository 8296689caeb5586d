"""OpenVINO GenAI: `PYTHON openvino_engine.py FOLDER THREADS`, a folder as `optimum-cli export openvino` writes it."""

from __future__ import annotations

import sys
from time import perf_counter

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class OpenVino:
    """Its pipeline with the runtime's own choices of precision, attention and key-value cache."""

    def __init__(self, path: str, threads: int) -> None:
        self.one = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        schedule = openvino_genai.SchedulerConfig()
        schedule.cache_size, schedule.enable_prefix_caching = 2, False
        schedule.max_num_batched_tokens = 1024
        self.many = openvino_genai.ContinuousBatchingPipeline(path, schedule, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def decode(self, prompt: list[int], tokens: int) -> dict:
        answer = self._generate(prompt, tokens)
        metrics = answer.perf_metrics
        rest = metrics.get_tpot().mean / 1000 * (tokens - 1)
        return {"first_s": metrics.get_ttft().mean / 1000, "rest_s": rest, "ids": [int(id) for id in answer.tokens[0]]}

    def prefill(self, prompt: list[int]) -> dict:
        began = perf_counter()
        self._generate(prompt, 1)
        return {"seconds": perf_counter() - began}

    def streams(self, prompts: list[list[int]], tokens: int, temperature: float, top_p: float) -> dict:
        asked = [_sampled(tokens, temperature, top_p) if temperature else _greedy(tokens) for _ in prompts]
        began = perf_counter()
        self.many.generate([openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts], asked)
        return {"seconds": perf_counter() - began}

    def _generate(self, prompt: list[int], tokens: int) -> openvino_genai.EncodedResults:
        ids = np.array([prompt], np.int64)
        given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return self.one.generate(given, _greedy(tokens))


def _sampled(tokens: int, temperature: float, top_p: float) -> openvino_genai.GenerationConfig:
    asked = _greedy(tokens)
    asked.do_sample, asked.temperature, asked.top_p = True, temperature, top_p
    return asked


def _greedy(tokens: int) -> openvino_genai.GenerationConfig:
    asked = openvino_genai.GenerationConfig()
    asked.max_new_tokens, asked.ignore_eos, asked.do_sample = tokens, True, False
    return asked


if __name__ == "__main__":
    serve(OpenVino(sys.argv[1], int(sys.argv[2])))
