"""A checkpoint as the model to ask: Liuyi's engine in the same process, batched, with the same answers in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from data_support import artifact, corpus, document, prose, run_step

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.data.synthesis.ask import Ask, Sampling
from liuyi.data.synthesis.engine import EngineEndpoint
from liuyi.data.synthesis.generators.magpie import pre_query
from liuyi.data.synthesis.judge import GRADES, read_grade
from liuyi.data.synthesis.queue import Patience
from liuyi.data.synthesis.session import Session
from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.model.chat import encode_chat
from liuyi.model.checkpoint import save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer, train_bpe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny random model that ends its turns now and then."""
    tokenizer = train_bpe([prose(number) for number in range(20)], 384)
    model = Decoder(
        DecoderConfig(
            family="llama",
            vocab_size=384,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
        )
    )
    init_weights(model, seed=1, std=0.1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.shape[0] == 384:
                weight[list(tokenizer.stop_ids)] *= 6  # logits of the ends of turns vary more, so that some are high
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, model.eval(), tokenizer)
    return artifact(folder, "checkpoint")


def load(checkpoint: Artifact) -> EngineEndpoint:
    return EngineEndpoint.load(checkpoint.path, checkpoint.digest, slots=8, seed=0)


def session(checkpoint: Artifact, folder: Path, concurrency: int) -> Session:
    folder.mkdir(exist_ok=True)
    return Session(lambda: load(checkpoint), folder, concurrency=concurrency, patience=Patience(1))


def test_answers_are_the_engines_own_in_any_batch(checkpoint: Artifact, tmp_path: Path) -> None:
    """Asked one by one, eight at once, and of an engine without any of this."""
    sampling = Sampling(max_tokens=12, temperature=1.0)
    asks = [Ask(({"role": "user", "content": f"Say {n}"},), sampling, seed=n) for n in range(12)]
    with session(checkpoint, tmp_path / "one", 1) as one, session(checkpoint, tmp_path / "eight", 8) as eight:
        answers = one.ask(asks)
        assert answers == eight.ask(asks)
    tokenizer = Tokenizer.load(checkpoint.path)
    engine: Engine = load(checkpoint)._engine
    requests = [
        Request(
            prompt_ids=encode_chat(tokenizer, ask.prompt, add_generation_prompt=True)[0],  # type: ignore[arg-type]
            max_tokens=12,
            temperature=1.0,
            seed=ask.seed,
        )
        for ask in asks
    ]
    for answer, completion in zip(answers, engine.generate(requests), strict=True):
        assert answer is not None
        assert answer.text == completion.text
        assert (answer.finish, answer.tokens_out) == (completion.finish_reason, len(completion.token_ids))
        assert answer.model == checkpoint.digest


def test_a_schema_is_held_to_and_a_prompt_that_is_too_long_is_refused(checkpoint: Artifact, tmp_path: Path) -> None:
    with session(checkpoint, tmp_path / "work", 4) as opened:
        graded = Ask(({"role": "user", "content": "Grade"},), Sampling(400, 1.0), 3, schema=GRADES)
        long = Ask("word " * 2000, Sampling(5), 1)
        answer, refused = opened.ask([graded, long])
        assert answer is not None
        assert read_grade(answer.text) in (1, 2, 3, 4, 5)
        assert refused is None
        assert opened.tally.faults.given_up == {"refused": 1}


def test_magpie_takes_the_prompt_from_the_chat_template(checkpoint: Artifact, tmp_path: Path) -> None:
    assert pre_query(Tokenizer.load(checkpoint.path)) == "<|im_start|>user\n"
    params: dict[str, Any] = {"samples": 8, "instruction_tokens": 60, "max_tokens": 60, "temperature": 1.0}
    bench = run_step("data.magpie", tmp_path / "run", {"model": checkpoint}, **params)
    rows = pq.read_table(bench.made["chats"].file("chats.parquet")).to_pylist()
    answers = pq.read_table(bench.made["chats"].file("answers.parquet")).to_pylist()
    assert rows
    assert [row["prompt"] for row in answers[:8]] == ["<|im_start|>user\n"] * 8
    assert {row["model"] for row in rows} == {checkpoint.digest}
    dropped = json.loads(bench.made["chats"].file("synthesis.json").read_text())["dropped_by_reason"]
    assert len(rows) + sum(dropped.values()) == 8
    again = run_step("data.magpie", tmp_path / "again", {"model": checkpoint}, **params, concurrency=3)
    assert again.made["chats"].digest == bench.made["chats"].digest


def test_a_model_that_knows_nothing_has_no_yield_and_says_so(checkpoint: Artifact, tmp_path: Path) -> None:
    params: dict[str, Any] = {"tasks": ["gcd"], "problems_per_task": 3, "samples": 2, "max_tokens": 8}
    with pytest.raises(DataError, match="no row was kept") as error:
        run_step("data.verified", tmp_path / "run", {"model": checkpoint}, **params)
    assert "6 asked, 6 answered, 0 rows kept, 6 dropped" in error.value.hint
    texts = corpus(tmp_path / "texts", [document(prose(1), "pkg")])
    both: dict[str, Any] = {"model": checkpoint, "corpus": texts}
    with pytest.raises(DataError, match="both the input 'model' and an 'endpoint'"):
        run_step("data.rephrase", tmp_path / "both", both, endpoint="http://127.0.0.1:9/v1")
