"""The steps of preferences and rewards: every objective, with adapters, and what a reward model is to others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from align_support import PLACES, alone, golden_head, preferences, publish, small_model, small_tokenizer
from pydantic import ValidationError

import in_process
from liuyi.align.objectives import Objective
from liuyi.align.pairs import PairRows, encode_pairs
from liuyi.align.reward_model import rewards, split_prompts
from liuyi.align.steps import PreferenceParams
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, ModelError
from liuyi.core.home import Home
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model
from liuyi.model.merge import merge_adapter
from liuyi.model.reward import RewardModel, load_reward, save_reward
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def run(home: Home, folder: Path, step: str, inputs: dict[str, Artifact], **params: Any) -> dict[str, Artifact]:
    folder.mkdir()
    settings: dict[str, Any] = {"seq_len": 96, "batch_pairs": 8, "compute_dtype": "fp32"}
    return in_process.run_step(home, folder, step, inputs, **settings, **params)


@pytest.mark.parametrize("objective", ["dpo", "cdpo", "ipo", "simpo", "orpo", "kto"])
def test_every_objective_tells_the_answers_apart(
    objective: str, home: Home, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Through an adapter, with the watch: the chosen answer gains on the rejected one."""
    table = preferences()
    inputs = publish(home, tokenizer, table, small_model(tokenizer.vocab_size))
    params = {"objective": objective, "method": "lora", "rank": 4, "max_steps": 12, "watch_every": 6}
    params["lr"] = 0.001 if objective == "orpo" else 0.003
    loose = {"probe_prompts": 4, "max_chosen_drop": 50.0, "max_kl": 50.0, "max_repetition_rise": 1.0}
    (adapter,) = run(home, tmp_path / "a", "align.preference", inputs, **params, **loose).values()
    about = json.loads(adapter.file("liuyi.json").read_text())
    assert (about["objective"], about["stopped"]) == (objective, "")
    before = load_model(inputs["model"].path).eval()
    after, _ = merge_adapter(before, Adapter.load(adapter.path))
    for row in table[:4]:
        gains = [alone(after, tokenizer, row, s) - alone(before, tokenizer, row, s) for s in ("chosen", "rejected")]
        assert gains[0] > gains[1] + 0.05
    assert about["beta"] == (2.0 if objective == "simpo" else 0.1)
    assert about["watch"]["history"][0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_pissa_is_watched_beside_the_model_it_began_as(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Its frozen weights are not that model; a collapse puts the adapter back, so that nothing is changed."""
    inputs = publish(home, tokenizer, preferences(), small_model(tokenizer.vocab_size))
    params = {"method": "lora", "rank": 4, "pissa": True, "max_steps": 10, "lr": 0.5, "nll_weight": 0.0}
    adapter = run(home, tmp_path / "a", "align.preference", inputs, watch_every=5, probe_prompts=4, **params)["adapter"]
    about = json.loads(adapter.file("liuyi.json").read_text())
    assert about["watch"]["history"][0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert about["watch"]["reverted_to"] == 0
    before = load_model(inputs["model"].path)
    after, _ = merge_adapter(before, Adapter.load(adapter.path))
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"objective": "dpo", "gamma": 0.5}, "'gamma' means nothing to dpo; it is for simpo"),
        ({"gamma": 0.5}, "'gamma' means nothing to dpo"),
        ({"objective": "orpo", "nll_weight": 0.1}, "'nll_weight' means nothing to orpo"),
        ({"objective": "ipo", "label_smoothing": 0.2}, "'label_smoothing' means nothing to ipo"),
        ({"watch": False, "max_kl": 0.1}, "'max_kl' means nothing with watch: false"),
        ({"watch": False, "watch_every": 5}, "'watch_every' means nothing with watch: false"),
        ({"objective": "simpo", "desirable_weight": 2.0}, "'desirable_weight' means nothing to simpo"),
        ({"objective": "cdpo", "label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_params_that_an_objective_does_not_use_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferenceParams(**params)


@pytest.mark.parametrize("params", [{"objective": name} for name in get_args(Objective)] + [{"method": "lora"}])
def test_params_are_read_back_with_their_defaults(params: dict[str, Any]) -> None:
    """As a step's process reads them."""
    given = PreferenceParams(**params)
    assert PreferenceParams.model_validate(given.model_dump(mode="json")) == given


def test_labels_alone_can_be_learnt_from(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Pairs are asked for by every other objective, which says so."""
    table = preferences()
    for number, row in enumerate(table):
        row["rejected" if number % 2 else "chosen"] = None
    inputs = publish(home, tokenizer, table, small_model(tokenizer.vocab_size))
    params = {"objective": "kto", "max_steps": 15, "lr": 3e-3, "watch": False, "desirable_weight": 1.5}
    checkpoint = run(home, tmp_path / "a", "align.preference", inputs, **params)["checkpoint"]
    before, after = load_model(inputs["model"].path).eval(), load_model(checkpoint.path).eval()
    gains = {
        side: [alone(after, tokenizer, row, side) - alone(before, tokenizer, row, side) for row in table if row[side]]
        for side in ("chosen", "rejected")
    }
    assert np.mean(gains["chosen"]) > np.mean(gains["rejected"]) + 0.5
    with pytest.raises(DataError, match="no preference can be trained on"):
        run(home, tmp_path / "b", "align.preference", inputs, max_steps=1)


def told_apart(count: int = 60) -> list[dict[str, Any]]:
    """Right answers name the place of the prompt; a few prompts have several pairs."""
    return [
        {
            "id": f"p{n}",
            "prompt": [{"role": "user", "content": f"light in the {PLACES[n % 4]} {n // 2 * 2}"}],
            "chosen": f"{PLACES[n % 4]} yes",
            "rejected": f"{PLACES[n % 4]} no",
            "margin": 0.5 * (n % 2),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "base": "nf4", "max_steps": 6},
        {"method": "freeze", "train_layers": 1},
    ],
)
def test_a_reward_model_prefers_what_was_chosen(
    method: dict[str, Any], home: Home, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """On prompts it did not see; saved and read again it gives the figure that it was published with."""
    table = told_apart()
    inputs = publish(home, tokenizer, table, small_model(tokenizer.vocab_size))
    params = {"heldout": 0.3, "max_steps": 25, "lr": 5e-3, **method}
    checkpoint = run(home, tmp_path / "a", "align.reward", inputs, **params)["checkpoint"]
    kept, apart = split_prompts(table, 0.3)
    pairs = encode_pairs(apart, tokenizer, 96).pairs
    model = load_reward(checkpoint.path).eval()
    with torch.no_grad():
        found = rewards(model, PairRows(pairs, 96, 3).read(np.arange(len(pairs)))).view(-1, 2)
    about = json.loads(checkpoint.file("liuyi.json").read_text())["heldout"]
    assert (about["pairs"], about["right"]) == (len(pairs), int((found[:, 0] > found[:, 1]).sum()))
    assert about["right"] / about["pairs"] > 0.9
    assert about["low"] < checkpoint.manifest.metrics["heldout_accuracy"] <= about["high"]
    assert len(kept) + len(apart) == len(table)


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    """And the share is near what was asked for."""
    table = [{"prompt": [{"role": "user", "content": str(n // 3)}]} for n in range(3000)]
    kept, apart = split_prompts(table, 0.2)
    texts = [{row["prompt"][0]["content"] for row in part} for part in (kept, apart)]
    assert not texts[0] & texts[1]
    assert 0.15 < len(apart) / len(table) < 0.25


def test_transformers_gives_the_same_rewards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    reward = RewardModel(small_model(tokenizer.vocab_size)).eval()
    reward.score.weight.data.copy_(golden_head(32))
    save_reward(tmp_path, reward, tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    pairs = encode_pairs(preferences(3), tokenizer, 96).pairs
    with torch.no_grad():
        ours = rewards(reward, PairRows(pairs, 96, 3).read(np.arange(3))).tolist()
        answers = [torch.from_numpy(each.tokens)[None] for pair in pairs for each in (pair.chosen, pair.rejected)]
        expected = [float(theirs(tokens).logits) for tokens in answers]
    assert ours == pytest.approx(expected, rel=1e-4)


def test_a_model_that_is_none_is_named(home: Home, tokenizer: Tokenizer) -> None:
    inputs = publish(home, tokenizer, preferences(2), small_model(tokenizer.vocab_size))
    with pytest.raises(ModelError, match="Qwen3ForCausalLM is no reward model"):
        load_reward(inputs["model"].path)


@pytest.mark.parametrize(("step", "objective"), [("preference", "dpo"), ("preference", "kto"), ("reward", None)])
def test_what_is_beyond_the_context_of_the_model_is_left_out(
    step: str, objective: str | None, home: Home, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    table = told_apart()
    for row in (table[3], table[4]):
        row["chosen"] += " yes" * 40
    model = small_model(tokenizer.vocab_size)
    model.config = replace(model.config, max_position_embeddings=64)
    inputs = publish(home, tokenizer, table, model)
    params = {"objective": objective, "watch": False} if objective else {"heldout": 0.3}
    made = run(home, tmp_path / "a", f"align.{step}", inputs, max_steps=1, **params)["checkpoint"]
    left_out = json.loads(made.file("liuyi.json").read_text())["left_out"]
    assert set(left_out) == {"p3", "p4"}
    assert all(reason.endswith("tokens, more than 64") for reason in left_out.values())
