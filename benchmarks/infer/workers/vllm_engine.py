"""vLLM's CPU build: `PYTHON vllm_engine.py FOLDER THREADS`, a folder as transformers reads it."""

from __future__ import annotations

import os
import sys
from time import perf_counter

from protocol import serve


class Vllm:
    """Its offline engine in bfloat16, in this process."""

    def __init__(self, path: str, threads: int) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm

        self.vllm = vllm
        self.engine = vllm.LLM(
            path, dtype="bfloat16", max_model_len=8192, max_num_seqs=16, enable_prefix_caching=False, seed=0
        )

    def decode(self, prompt: list[int], tokens: int) -> dict:
        began = perf_counter()
        self._generate([prompt], 1)
        first = perf_counter() - began
        began = perf_counter()
        ids = self._generate([prompt], tokens)
        return {"first_s": first, "rest_s": perf_counter() - began - first, "ids": ids}

    def prefill(self, prompt: list[int]) -> dict:
        began = perf_counter()
        self._generate([prompt], 1)
        return {"seconds": perf_counter() - began}

    def streams(self, prompts: list[list[int]], tokens: int, temperature: float, top_p: float) -> dict:
        began = perf_counter()
        self._generate(prompts, tokens, temperature=temperature, top_p=top_p)
        return {"seconds": perf_counter() - began}

    def _generate(
        self, prompts: list[list[int]], tokens: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[int]:
        asked = self.vllm.SamplingParams(
            temperature=temperature, top_p=top_p, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        return list(self.engine.generate(given, asked, use_tqdm=False)[0].outputs[0].token_ids)


if __name__ == "__main__":
    serve(Vllm(sys.argv[1], int(sys.argv[2])))
