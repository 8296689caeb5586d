"""The engine serves mixtures of experts in torch: in batches and from cached blocks it gives what the decoder gives."""

from __future__ import annotations

import torch

from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.request import Request
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer


def test_cached_generation_of_a_mixture_is_that_of_the_decoder(tokenizer: Tokenizer) -> None:
    config = DecoderConfig(
        "qwen3_moe", tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, qk_norm=True, num_experts=5, moe_intermediate_size=24
    )
    model = Decoder(config)
    init_weights(model, 1, std=0.2)
    prompts = [tokenizer.encode(text) for text in ("turn on the light", "the door", "open")]
    engine = Engine(open_runner(model, slots=3), tokenizer)
    answers = engine.generate([Request(prompt_ids=ids, max_tokens=10, ignore_eos=True) for ids in prompts])
    for ids, answer in zip(prompts, answers, strict=True):
        text = list(ids)
        with torch.no_grad():
            for _ in range(10):
                text.append(int(model.logits(model(torch.tensor([text])))[0, -1].argmax()))
        assert list(answer.token_ids) == text[len(ids) :]
