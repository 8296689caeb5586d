"""Fine-tuning an adapter or some layers, merging, serving and evaluating what comes of it; params that mean nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import in_process
from liuyi.cli.models import choose
from liuyi.core.artifact import Artifact, InputRef
from liuyi.core.errors import ArtifactError
from liuyi.core.home import Home
from liuyi.core.recipe import InvalidRecipe, parse_recipe
from liuyi.finetune.merge import logit_error
from liuyi.finetune.steps import SftParams
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.process.open import open_engine
from liuyi.infer.request import Request
from liuyi.model.adapter import Adapter, LowRank
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.merge import merge_adapter
from liuyi.model.tokenizer import Tokenizer, train_bpe
from small_models import small_model

COLOURS = ("red", "blue", "green", "white")
TOKENS = torch.arange(30)[None] + 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["turn the red blue green white lamp on answer"], 290)


@pytest.fixture
def inputs(home: Home, tokenizer: Tokenizer) -> dict[str, Artifact]:
    chats = [
        [
            {"role": "user", "content": f"turn the {colour} lamp on"},
            {"role": "assistant", "content": f"answer {colour}"},
        ]
        for colour in COLOURS * 5
    ]
    staging = home.store.stage("chats")
    columns = {"id": [f"c{at}" for at in range(len(chats))], "messages": [json.dumps(chat) for chat in chats]}
    pq.write_table(pa.table(columns), staging.path / "chats.parquet")
    given = {"chats": home.store.publish(staging)}
    staging = home.store.stage("checkpoint")
    save_model(staging.path, small_model(tokenizer.vocab_size, std=0.1), tokenizer)
    return {"model": home.store.publish(staging), **given}


def run(home: Home, folder: Path, step: str, inputs: dict[str, Artifact], **params: Any) -> dict[str, Artifact]:
    folder.mkdir()
    return in_process.run_step(home, folder, step, inputs, **params)


def sft(home: Home, folder: Path, inputs: dict[str, Artifact], **params: Any) -> dict[str, Artifact]:
    settings: dict[str, Any] = {"seq_len": 64, "batch_tokens": 256, "max_steps": 8, "compute_dtype": "fp32"}
    return run(home, folder, "finetune.sft", inputs, **settings, **params)


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "lr": 0.01},
    "dora": {"rank": 4, "lr": 0.01, "dora": True, "b_lr_ratio": 4.0, "neftune_alpha": 5.0},
    "pissa": {"rank": 4, "alpha": 4.0, "lr": 0.01, "pissa": True, "rslora": True, "ema": 0.9},
    "qlora": {"rank": 4, "lr": 0.01, "base": "nf4", "targets": ("q_proj", "v_proj", "down_proj")},
}


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_an_adapter_is_what_comes_of_it(name: str, home: Home, tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    """Alone, and small; it says what it was trained on; another run gives the same bytes."""
    made = sft(home, tmp_path / "a", inputs, method="lora", **ADAPTERS[name])
    assert set(made) == {"adapter"}
    adapter = made["adapter"]
    loaded = Adapter.load(adapter.path)
    loaded.check(load_model(inputs["model"].path).config)
    assert loaded.dora == (name == "dora")
    about = json.loads(adapter.file("liuyi.json").read_text())
    assert (about["base"], about["method"]) == (inputs["model"].digest, "lora")
    assert about["base_format"] == ("nf4" if name == "qlora" else "full")
    log = [json.loads(line) for line in adapter.file("training.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert sft(home, tmp_path / "b", inputs, method="lora", **ADAPTERS[name])["adapter"].digest == adapter.digest


def test_some_layers_are_trained_and_a_checkpoint_comes_of_it(
    home: Home, tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    made = sft(home, tmp_path / "a", inputs, method="freeze", train_layers=1, train_modules=["norm"])
    before, after = (load_file(each.file("model.safetensors")) for each in (inputs["model"], made["checkpoint"]))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.1." in name or name == "model.norm.weight"}


def publish_evalset(home: Home, rows: int = 4) -> Artifact:
    staging = home.store.stage("evalset")
    messages = [json.dumps([{"role": "user", "content": f"turn the {colour} lamp on"}]) for colour in COLOURS]
    columns = {
        "id": [f"i{at}" for at in range(rows)],
        "messages": messages[:rows],
        "reference": [f"answer {colour}" for colour in COLOURS[:rows]],
        "cluster": [f"k{at}" for at in range(rows)],
    }
    pq.write_table(pa.table(columns), staging.path / "items.parquet")
    about = {"name": "lamps", "scorer": "exact"}
    (staging.path / "evalset.json").write_text(json.dumps(about))
    return home.store.publish(staging)


@pytest.mark.parametrize(
    ("form", "weights", "logits"), [("stored", 1e-6, 1e-4), ("bf16", 0.004, 0.03), ("int8", 0.02, 0.1)]
)
def test_merging_reports_what_it_costs(
    form: str, weights: float, logits: float, home: Home, tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    adapter = sft(home, tmp_path / "a", inputs, method="lora", **ADAPTERS["dora"])["adapter"]
    given = {"model": inputs["model"], "adapter": adapter, "evalset": publish_evalset(home)}
    merged = run(home, tmp_path / "merge", "finetune.merge", given, format=form)["checkpoint"]
    figures = merged.manifest.metrics
    assert 0 <= figures["matrix_error_mean"] <= figures["matrix_error_max"] < weights
    assert 0 <= figures["logit_error_mean"] < logits
    exact, _ = merge_adapter(load_model(inputs["model"].path), Adapter.load(adapter.path))
    found = load_model(merged.path)
    ours, theirs = (model.logits(model(TOKENS)).detach() for model in (found, exact))
    error = logit_error(exact, found, [TOKENS[0].tolist()])
    assert error.mean == pytest.approx(float((ours - theirs).abs().mean() / theirs.abs().mean()), rel=1e-4, abs=1e-9)
    assert error.max == pytest.approx(float((ours - theirs).abs().max() / theirs.abs().max()), rel=1e-4, abs=1e-9)
    assert error.max < 2 * logits
    about = json.loads(merged.file("liuyi.json").read_text())
    assert (about["base"], about["merged"]) == (inputs["model"].digest, adapter.digest)


def test_an_adapter_answers_as_the_merged_model(
    home: Home, tmp_path: Path, inputs: dict[str, Artifact], tokenizer: Tokenizer
) -> None:
    """In the engine and in an evaluation; by its name alone on the command line. DoRA, which has to be merged."""
    adapter = sft(home, tmp_path / "a", inputs, method="lora", **ADAPTERS["dora"])["adapter"]
    given = {"model": inputs["model"], "adapter": adapter}
    merged = run(home, tmp_path / "merge", "finetune.merge", given)["checkpoint"]
    specs = (
        EngineSpec(model=str(inputs["model"].path), merged=str(adapter.path), max_tokens=64),
        EngineSpec(model=str(merged.path), max_tokens=64),
        EngineSpec(model=str(inputs["model"].path), max_tokens=64),
    )
    asked = Request(prompt_ids=[30, 40, 50], max_tokens=12, logprobs=True)
    said = [open_engine(spec).generate([asked])[0] for spec in specs]
    assert (said[0].token_ids, said[0].logprobs) == (said[1].token_ids, said[1].logprobs)
    assert said[0].logprobs != said[2].logprobs
    evalset = publish_evalset(home)
    scored = [
        run(home, tmp_path / name, "evaluate.generate", {**each, "evalset": evalset}, max_tokens=12)["evaluation"]
        for name, each in (("beside", given), ("merged", {"model": merged}))
    ]
    outputs = [pq.read_table(each.file("items.parquet")).column("output").to_pylist() for each in scored]
    assert outputs[0] == outputs[1]
    assert json.loads(scored[0].file("evaluation.json").read_text())["subject"] == adapter.digest


def test_the_command_line_finds_the_model_of_an_adapter(home: Home, inputs: dict[str, Artifact]) -> None:
    lone, staging = home.store.stage("adapter"), home.store.stage("adapter")
    change = LowRank(torch.ones(2, 32), torch.ones(16, 2), 1.0)
    for folder, scale in ((lone.path, 1.0), (staging.path, 2.0)):
        Adapter({"model.layers.0.self_attn.k_proj": replace(change, scale=scale)}).save(folder)
    made_from = [InputRef(name="model", digest=inputs["model"].digest)]
    known = home.store.publish(staging, step="finetune.sft", output="adapter", inputs=made_from)
    chosen = choose(home, known.digest)
    assert chosen.base is not None
    assert (chosen.base.digest, chosen.path) == (inputs["model"].digest, known.path)
    with pytest.raises(ArtifactError, match="does not say which model") as raised:
        choose(home, home.store.publish(lone).digest)
    assert "--adapter NAME=" in raised.value.hint


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rank": 8}, "'rank' means nothing with method: full; it is for lora"),
        ({"method": "freeze", "train_layers": 1, "dora": True}, "'dora' means nothing with method: freeze"),
        ({"method": "lora", "processes": 2, "tensor": 2}, "'tensor' divides the matrices that an adapter is beside"),
        ({"method": "lora", "train_layers": 2}, "'train_layers' means nothing with method: lora; it is for freeze"),
        ({"method": "freeze"}, "say what is trained"),
        ({"method": "lora", "targets": []}, "at least 1 item"),
        ({"method": "lora", "targets": ["lm_head"]}, "Input should be"),
    ],
)
def test_params_that_mean_nothing_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SftParams(**params)


RECIPE = """\
recipe: tune
steps:
  desk:
    step: data.desk
  sft:
    step: finetune.sft
    model: artifact:{model}
    chats: ${{desk.train}}
    method: {method}
  merged:
    step: finetune.merge
    model: artifact:{model}
    adapter: ${{sft.adapter}}
"""


def test_a_recipe_is_held_to_the_outputs_that_its_params_give(home: Home, inputs: dict[str, Artifact]) -> None:
    """Before anything runs."""
    digest = inputs["model"].digest
    good = parse_recipe(RECIPE.format(model=digest, method="lora"), "r.yaml", stored=home.store.manifest)
    assert str(good.steps["merged"].inputs["adapter"][0]) == "${sft.adapter}"
    with pytest.raises(InvalidRecipe) as raised:
        parse_recipe(RECIPE.format(model=digest, method="full"), "r.yaml", stored=home.store.manifest)
    (problem,) = raised.value.problems
    assert problem.message == "the step 'sft' gives no 'adapter' with its parameters"
    assert problem.where.startswith("r.yaml:13")
    assert "${sft.checkpoint}" in problem.hint
