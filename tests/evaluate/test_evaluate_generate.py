"""A model answers an eval set: through the engine, scored, with the log-probabilities of its answers."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
import torch

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.evaluate.evaluation import Evaluation
from liuyi.model.chat import encode_chat
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer, train_bpe

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["HassTurnOn", "HassTurnOff"]}},
    "required": ["intent"],
    "additionalProperties": False,
}
PROMPTS = ["turn on the kitchen light", "把灯关掉", "turn the heating off", "lights"]


@pytest.fixture
def checkpoint(home: Home) -> Artifact:
    """A random decoder."""
    tokenizer = train_bpe(PROMPTS * 4, 300)
    model = Decoder(
        DecoderConfig(
            family="llama",
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
        )
    )
    init_weights(model, seed=3, std=0.3)
    staging = home.store.stage("checkpoint")
    save_model(staging.path, model, tokenizer)
    return home.store.publish(staging)


@pytest.fixture
def evalset(publish) -> Artifact:
    rows = {
        "id": [f"q{n}" for n in range(len(PROMPTS))],
        "cluster": ["on", "off", "off", "none"],
        "messages": [json.dumps([{"role": "user", "content": prompt}]) for prompt in PROMPTS],
        "reference": ['{"intent":"HassTurnOn"}'] * len(PROMPTS),
        "lang": ["en", "zh", "en", "en"],
        "kind": ["test"] * len(PROMPTS),
        "source": ["here"] * len(PROMPTS),
        "license": ["CC0-1.0"] * len(PROMPTS),
    }
    said = {"name": "desk test", "scorer": "json_exact"}
    return publish("evalset", items__parquet=pa.table(rows), evalset__json=said, schema__json=SCHEMA)


def test_free_answers_carry_the_models_own_logprobs(run_step, checkpoint: Artifact, evalset: Artifact) -> None:
    out = run_step("evaluate.generate", {"model": checkpoint, "evalset": evalset}, max_tokens=9, label="tiny")
    artifact = out["evaluation"]
    evaluation = Evaluation.load(artifact.path)
    assert (evaluation.name, evaluation.label) == ("desk test", "tiny")
    assert (evaluation.subject, evaluation.evalset) == (checkpoint.digest, evalset.digest)
    assert evaluation.columns["prompt"] == PROMPTS
    assert artifact.manifest.licences == ("CC0-1.0",)
    model, tokenizer = load_model(checkpoint.path), Tokenizer.load(checkpoint.path)
    for row, prompt in enumerate(PROMPTS):
        ids = encode_chat(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)[0]
        total, smallest, count = 0.0, 0.0, 0
        for _ in range(9):
            with torch.inference_mode():
                logits = model.logits(model(torch.tensor([ids])))[0, -1].log_softmax(-1)
            best = int(logits.argmax())
            total, smallest, count = total + float(logits[best]), min(smallest, float(logits[best])), count + 1
            ids.append(best)
            if best in tokenizer.stop_ids:
                break
        assert evaluation.columns["logprob_sum"][row] == pytest.approx(total, abs=1e-3)
        assert evaluation.columns["logprob_min"][row] == pytest.approx(smallest, abs=1e-3)
        assert evaluation.columns["tokens"][row] == count


def test_constrained_answers_follow_the_schema(run_step, checkpoint: Artifact, evalset: Artifact) -> None:
    inputs = {"model": checkpoint, "evalset": evalset}
    artifact = run_step("evaluate.generate", inputs, constrained=True, max_tokens=60)["evaluation"]
    evaluation = Evaluation.load(artifact.path)
    assert all(json.loads(output)["intent"] in ("HassTurnOn", "HassTurnOff") for output in evaluation.columns["output"])
    assert evaluation.figure("valid_schema").mean == 1
    assert artifact.manifest.metrics["exact"] == evaluation.figure("exact").mean
    again = run_step("evaluate.generate", inputs, constrained=True, max_tokens=60, slots=1)["evaluation"]
    assert Evaluation.load(again.path).columns["output"] == evaluation.columns["output"]


def test_an_item_beyond_the_context_counts_as_wrong_and_ends_nothing(run_step, checkpoint: Artifact, publish) -> None:
    said = {"name": "long", "scorer": "exact"}

    def answered(*prompts: str) -> Evaluation:
        rows = {
            "id": [f"q{n}" for n in range(len(prompts))],
            "cluster": [f"c{n}" for n in range(len(prompts))],
            "messages": [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts],
            "reference": ["yes"] * len(prompts),
        }
        evalset = publish("evalset", items__parquet=pa.table(rows), evalset__json=said)
        inputs = {"model": checkpoint, "evalset": evalset}
        return Evaluation.load(run_step("evaluate.generate", inputs, max_tokens=4)["evaluation"].path)

    alone, among = answered(PROMPTS[0]), answered("light " * 200, PROMPTS[0])
    for column in ("output", "tokens", "logprob_sum"):
        assert among.columns[column][1] == alone.columns[column][0]
    assert (among.columns["output"][0], among.columns["tokens"][0], among.columns["exact"][0]) == ("", 0, 0)
    assert among.columns["logprob_mean"][0] == pytest.approx(-math.log(Tokenizer.load(checkpoint.path).vocab_size))
    with pytest.raises(DataError, match="no item of 'long' fits the model's context of 128 tokens"):
        answered("light " * 200)


def test_only_the_first_items(run_step, checkpoint: Artifact, evalset: Artifact) -> None:
    inputs = {"model": checkpoint, "evalset": evalset}
    first = run_step("evaluate.generate", inputs, items=2, max_tokens=2)["evaluation"]
    assert Evaluation.load(first.path).columns["item"] == ["q0", "q1"]


def test_what_an_evalset_lacks_is_named(run_step, publish, checkpoint: Artifact, evalset: Artifact) -> None:
    table = {"id": ["a"], "cluster": ["a"], "messages": ["[]"], "reference": ["x"]}
    broken = {"id": ["a"], "cluster": ["a"], "messages": ["["], "reference": ["x"]}
    for rows, scorer, constrained, message in (
        (table, "exact", True, "no schema to constrain"),
        (table, "exakt", False, "no scorer 'exakt'"),
        (broken, "exact", False, "messages are not JSON"),
    ):
        made = publish("evalset", items__parquet=pa.table(rows), evalset__json={"name": "n", "scorer": scorer})
        with pytest.raises(DataError, match=message):
            run_step("evaluate.generate", {"model": checkpoint, "evalset": made}, constrained=constrained)
